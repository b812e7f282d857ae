"""Process 0's part in the meeting of a run's processes (`rendezvous`), and the lines that both ends say."""

from __future__ import annotations

import contextlib
import itertools
import json
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import dvsnas_jax

MAX_BYTES = 2048
"""Of a line."""
HELLO_SECONDS = 10.0
"""In which whoever connects has to say who it is."""
SPARE_LINKS = 32
"""Connections beyond those of the run at a time, for whatever knocks at the port."""
SAY_SECONDS = 1.0
LINGER_SECONDS = 1.0
"""In which a start that was given up still tells those who come late, since all start in the same moment."""
SILENCE_SECONDS = 20
"""After which a machine that no longer acknowledges what it is sent is taken as gone."""
_MARK = "dvsnas"
_STRANGER = "another program, or a run that is under way,"


class Broken(Exception):  # noqa: N818 - of a link, not of the program
    """The connection is closed, or says what no process of a run says."""


class Link:
    """One connection. Its ends say lines of JSON; neither trusts the other."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.since, self._rest = sock, time.monotonic(), b""
        self.process: int | None = None  # who is there, once it has said so
        self.token = ""  # drawn by that process, so that it is known again when it comes back
        self.who = ""  # its host and pid
        self.is_joined = False  # JAX has connected it
        self.is_broken = False  # a line could not be sent
        sock.settimeout(0)
        # A machine that loses its network says no good-bye. (Names that not every system has.)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 1000 * SILENCE_SECONDS}
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def say(self, **message: Any) -> None:
        """A line. Where it cannot be sent the link is broken, which `hear` then tells."""
        line = json.dumps({_MARK: 1, **message}).encode() + b"\n"
        try:
            # Never waits: a few lines always fit into what the system keeps for a reader that lives.
            self.is_broken = self.is_broken or self.sock.send(line, socket.MSG_DONTWAIT) < len(line)
        except OSError:
            self.is_broken = True

    def hear(self, seconds: float = 0.0) -> list[dict[str, Any]]:
        """What has arrived, after so long at most.

        Broken where the connection is closed or lost, or what arrives is no short line of JSON with the mark.
        """
        if self.is_broken:
            raise Broken("the connection was lost")
        try:
            self.sock.settimeout(seconds)
            data = self.sock.recv(MAX_BYTES)
        except (BlockingIOError, TimeoutError, InterruptedError):
            return []
        except OSError:
            raise Broken("the connection was lost") from None
        if not data:
            raise Broken(f"{_STRANGER} closes the connection")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_BYTES or (self._rest and not self._rest.startswith(b"{")):
            raise Broken(f"{_STRANGER} answers")
        return [_parse(line) for line in lines]

    def close(self) -> None:
        """Ends it."""
        self.sock.close()


def _parse(line: bytes) -> dict[str, Any]:
    """A message; Broken where it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(line)
        if isinstance(message, dict) and _MARK in message:
            return message
    raise Broken(f"{_STRANGER} answers")


def printable(text: Any) -> str:
    """What somebody else said, made harmless for a terminal and a line."""
    return "".join(letter for letter in str(text) if letter.isascii() and letter.isprintable())[:800]


def names(processes: Iterable[int]) -> str:
    """Processes in words: `process 1`, `processes 1-3, 5`; not more than a line can hold."""
    ordered = sorted(processes)
    spans: list[list[int]] = []
    for _, group in itertools.groupby(range(len(ordered)), key=lambda index: ordered[index] - index):
        spans.append([ordered[index] for index in group])
    parts = [str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans]
    if len(parts) > 12:
        parts = [*parts[:11], f"and {sum(map(len, spans[11:]))} more"]
    return f"process{'es' if len(ordered) > 1 else ''} {', '.join(parts)}"


class Host:
    """Process 0's part, in a thread of its own: listens where they meet until all are there, or there is a `verdict`,
    why there will be no run.
    """

    def __init__(self, listener: socket.socket, num_processes: int) -> None:
        self._listener: socket.socket | None = listener
        self._num = num_processes
        self._links: list[Link] = []
        self.verdict: str | None = None
        self._ended = threading.Event()
        self._said = 0.0
        listener.settimeout(0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="rendezvous host", daemon=True)
        self._thread.start()

    def refuse(self, text: str) -> None:
        """Tells all why there will be no run (the first reason, where there is one), and ends."""
        self.verdict = self.verdict or text
        self._thread.join(5)

    def end(self) -> None:
        """JAX has connected all: tells them, and ends."""
        self._ended.set()
        self._thread.join(5)

    def _run(self) -> None:
        over: float | None = None
        while not self._ended.is_set() and (over is None or time.monotonic() < over):
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._links:  # an earlier event may have dropped it
                    self._hear(key.data)
            for link in [link for link in self._links if link.is_broken]:
                self._lose(link)
            if self.verdict is not None:
                over = over or time.monotonic() + LINGER_SECONDS
                for link in self._known():  # they leave
                    link.say(refused=self.verdict)
                    self._drop(link)
            elif self._listener is not None:
                self._gather()
        if self._listener is not None:
            self._listener.close()
        for link in self._known():
            link.say(end=True)
        for link in list(self._links):
            self._drop(link)
        self._selector.close()

    def _known(self, *, is_known: bool = True) -> list[Link]:
        """The links of processes that have said who they are, or of the others."""
        return [link for link in self._links if (link.process is not None) == is_known]

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            link = Link(self._listener.accept()[0])
        except OSError:  # gone again, or no more files can be opened: it will come back
            return
        unknown = self._known(is_known=False)
        if len(unknown) >= SPARE_LINKS + self._num:
            self._drop(unknown[0])
        self._links.append(link)
        self._selector.register(link.sock, selectors.EVENT_READ, link)

    def _drop(self, link: Link) -> None:
        self._links.remove(link)
        self._selector.unregister(link.sock)
        link.close()

    def _hear(self, link: Link) -> None:
        try:
            for message in link.hear():
                if link.process is None:
                    self._welcome(link, message)
                elif "joined" in message:
                    link.is_joined = True
        except Broken:
            self._lose(link)

    def _lose(self, link: Link) -> None:
        """A connection is closed: of a process that may come back, or, where all had met, of one that is lost."""
        self._drop(link)
        self._said = 0.0  # who is missing may have changed
        if self._listener is None and link.process is not None and not link.is_joined:
            for other in self._known():
                other.say(lost=link.process)

    def _welcome(self, link: Link, message: dict[str, Any]) -> None:
        """Takes in a process that says who it is; Broken where it says something else."""
        process, num, token = message.get("process"), message.get("of"), message.get("token")
        if not (type(process) is int and type(num) is int and isinstance(token, str) and 0 <= process < num):
            raise Broken
        link.who, version = printable(message.get("who"))[:100], printable(message.get("version"))[:40]
        before = [other for other in self._known() if other.process == process]
        link.process, link.token = process, token
        if self.verdict is not None:
            return
        if before and before[0].token == token:  # its connection broke, which was not noticed here
            self._drop(before[0])
        elif before:
            self.verdict = (
                f"process {process} is there twice (on {before[0].who}, and on {link.who}): give every process its own "
                "--process-id (or DVSNAS_PROCESS_ID)"
            )
        elif num != self._num:
            self.verdict = (
                f"process {process} (on {link.who}) was started as one of {num}, process 0 as one of {self._num}: give "
                "all the same --num-processes (or DVSNAS_NUM_PROCESSES)"
            )
        elif version != dvsnas_jax.__version__:
            self.verdict = (
                f"process {process} (on {link.who}) runs dvsnas {version}, process 0 {dvsnas_jax.__version__}: "
                "install one version on all hosts"
            )
        self._said = 0.0

    def _gather(self) -> None:
        """Tells all who is missing, or that none is."""
        now = time.monotonic()
        for link in self._known(is_known=False):
            if now - link.since > HELLO_SECONDS:
                self._drop(link)
        missing = set(range(self._num)) - {link.process for link in self._known()}
        if not missing:
            self._go()
        elif now - self._said > SAY_SECONDS:
            self._said = now
            for link in self._known():
                link.say(wait=names(missing))

    def _go(self) -> None:
        """All are there. The port is closed before the first one hears of it: JAX listens there next."""
        assert self._listener is not None
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = None
        for link in self._known(is_known=False):
            self._drop(link)
        for link in self._known():
            link.say(go=True)
