"""Progress with rate and remaining time: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from dvsnas_jax.core.processes import distributed

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Counts steps by `update` and shows them; use it in `with` or call `close`. Made by `bar`."""

    def __init__(
        self, total: int | None, label: str, *, initial: int, stream: TextIO, clock: Callable[[], float]
    ) -> None:
        self._total, self._label, self._initial, self._count = total, label, initial, initial
        self._stream, self._clock = stream, clock
        self._start = self._last = clock()
        self._shown = -1
        self._note = ""
        self._tqdm: Any = None
        if stream.isatty():
            import tqdm

            self._tqdm = tqdm.tqdm(
                total=total, desc=label, initial=initial, file=stream, dynamic_ncols=True, mininterval=0.2
            )
        elif initial and initial != total:
            self._show(["goes on"])

    def note(self, text: str) -> None:
        """Sets what is shown beside the rate, for example `loss 0.123`."""
        self._note = text
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(text, refresh=False)

    def update(self, num: int = 1) -> None:
        """Counts `num` steps."""
        self._count += num
        if self._tqdm is not None:
            self._tqdm.update(num)
        elif self._clock() - self._last >= _SECONDS_BETWEEN_LINES:
            self._line()

    @property
    def count(self) -> int:
        """Steps counted so far, those of an earlier start included."""
        return self._count

    def close(self) -> None:
        """Shows the final state once."""
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None
        elif self._count != self._shown:
            self._line()
        self._shown = self._count

    def _line(self) -> None:
        """Writes one line of a log."""
        self._last = self._clock()
        self._shown = self._count
        seconds = max(self._last - self._start, 1e-9)
        rate = (self._count - self._initial) / seconds
        parts = [f"{rate:.3g}/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s each"]
        if self._total is not None and self._count >= self._total:
            parts.append(f"took {duration(seconds)}")
        elif self._total is not None and rate:
            parts.append(f"{duration((self._total - self._count) / rate)} left")
        self._show([*parts, *([self._note] if self._note else [])])

    def _show(self, parts: list[str]) -> None:
        count = f"{self._count}" if self._total is None else f"{self._count}/{self._total}"
        print(f"{time.strftime('%H:%M:%S')} {self._label} {count}, {', '.join(parts)}", file=self._stream, flush=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def bar(
    total: int | None,
    label: str,
    *,
    initial: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Bar:
    """A bar of `total` steps (None: not known), of which an earlier start has done `initial`: these do not count for
    the rate. It is shown on stderr, of several processes by the main one."""
    shown = sys.stderr if distributed.is_main() else io.StringIO()
    return Bar(total, label, initial=initial, stream=stream or shown, clock=clock)


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
