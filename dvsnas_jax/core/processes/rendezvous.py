"""The processes of a run meet before JAX connects them, so that one that is missing is named.

JAX's own start waits without a word and then aborts the process, which nothing can catch. So the processes meet first,
by plain TCP at the coordinator's address: process 0 listens there; each process (0, too) connects and says in a line of
JSON who it is; process 0 answers who is missing. When all are there it closes the port, which JAX then takes over. The
connections stay until JAX has connected all: a process that ends in between is noticed at once.

Whoever reaches the port can be anybody: lines are short and few, they are read as JSON and checked field by field, and
what says anything else is dropped. Nothing here imports JAX.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable

import dvsnas_jax
from dvsnas_jax.core import errors
from dvsnas_jax.core.processes import rendezvous_host as host_lib

FIRST_SECONDS = 10.0
"""Of waiting, after which a line says for what; a start in which all is well says nothing."""
EVERY_SECONDS = 20.0
"""Between the lines that follow."""
RETRY_SECONDS = 0.5
ANSWER_SECONDS = 15.0
"""Without a word process 0 does not answer: it says who is missing every second."""
IN_USE_SECONDS = 3.0
"""For another process 0 on this machine to say that it is one; it answers at once."""
JOIN_SECONDS = 60.0
"""At least, for JAX to connect processes that have met: it takes a second or two, and much longer on a busy machine."""
_ADVICE = (
    "start every process with the same --num-processes and --coordinator, the address of process 0, or let them wait "
    "longer by --start-timeout"
)


class Meeting:
    """A process among the others, from the moment when all are there until JAX has connected them.

    `link` leads to process 0, where `host` is its other end; without a link there was no meeting, and without an
    `address` JAX knows the place (a TPU pod).
    """

    def __init__(
        self, name: str, address: str | None, link: host_lib.Link | None = None, host: host_lib.Host | None = None
    ) -> None:
        self._name, self._address, self._link, self._host = name, address, link, host
        self._ended = threading.Event()

    def watch(self, seconds: float, lost_fn: Callable[[str], None], late_fn: Callable[[str], None]) -> None:
        """Watches, while this process is inside of JAX for at most so many seconds: says what it waits for.

        Where another process has ended `lost_fn` is told so, where the time is over `late_fn`; each ends this process.
        """
        words = seconds, lost_fn, late_fn
        threading.Thread(target=self._watch, args=words, name="rendezvous watch", daemon=True).start()

    def end(self) -> None:
        """JAX has connected the processes: says so, and is no longer needed."""
        self._ended.set()
        if self._link is not None:
            self._link.say(joined=True)
            self._link.close()
        if self._host is not None:
            self._host.end()

    def _watch(self, seconds: float, lost_fn: Callable[[str], None], late_fn: Callable[[str], None]) -> None:
        place = f"at {self._address}" if self._address else "on the hosts of the TPU pod"
        lines = _Lines(f"{self._name} waits for JAX to connect the processes {place}", seconds)
        while not self._ended.wait(0.2):
            lost = self._lost()
            if self._ended.is_set() or lost == "":
                return
            if lost is not None:
                lost_fn(lost)
            if lines.is_over():
                late_fn(
                    f"{self._name}: JAX did not connect the processes {place} within {seconds:g} s{_proxy()}; "
                    "start all processes again, or let them wait longer by --start-timeout"
                )

    def _lost(self) -> str | None:
        """Which process has ended, in words; empty: none has, and there is nothing more to hear."""
        if self._link is None:
            return None
        try:
            for message in self._link.hear():
                if "end" in message:
                    return ""
                if "lost" in message:
                    return f"process {host_lib.printable(message['lost'])} ended while the run started"
        except host_lib.Broken:
            return "process 0 ended while the run started"
        return None


def meet(address: str, process_id: int, num_processes: int, *, seconds: float, bind: str | None = None) -> Meeting:
    """Waits until all processes of a run are there; a line on standard error says now and then who is missing.

    `address`: HOST:PORT of process 0, which listens at `bind` where that is not the port of the address on all its
    interfaces. A UserError where somebody is missing after so many seconds, two processes are the same one, they are
    not of one run, or process 0 cannot listen.
    """
    host, in_use = None, False
    if process_id == 0:
        try:
            host = host_lib.Host(_listener(bind or f":{address.rpartition(':')[2]}"), num_processes)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE  # perhaps by another process 0: that one will answer
            if not in_use:
                raise errors.UserError(
                    f"--coordinator: process 0 cannot listen on the port of {address}: {_reason(error)}; "
                    "choose another port, the same for every process"
                ) from None
    guest = _Guest(address, process_id, num_processes)
    name = f"process {process_id} of {num_processes}"
    lines = _Lines(lambda: f"{name} {guest.waits_for()}", seconds)
    start = time.monotonic()
    while not guest.answered.wait(0.1):
        if in_use and time.monotonic() - start > IN_USE_SECONDS:
            raise errors.UserError(
                f"--coordinator: the port of {address} is in use on this machine, by another program or by a run that "
                "is under way; end that one or choose another port, the same for every process (with SLURM or a "
                "JobSet: by DVSNAS_PORT)"
            )
        if host is not None and host.verdict is not None:
            break
        if lines.is_over():
            guest.stop()
            text = f"{name} waited {seconds:g} s {guest.waits_for(is_over=True)}; {_ADVICE}"
            if host is not None:
                host.refuse(text)  # the others need not wait for their own limits
            raise _not_found(address, text)
    if host is not None and host.verdict is not None:
        host.refuse(host.verdict)  # until it has told all
        raise _not_found(address, host.verdict)
    if guest.refusal is not None:
        raise _not_found(address, guest.refusal)
    return Meeting(name, address, guest.link, host)


def _not_found(address: str, text: str) -> errors.UserError:
    return errors.UserError(f"the processes did not find each other at {address}: {text}")


class _Lines:
    """Says now and then what a process waits for, a text or a function that knows it at the moment, for so many
    seconds.
    """

    def __init__(self, text: str | Callable[[], str], seconds: float) -> None:
        self._text, self._seconds = text, seconds
        self._start, self._next = time.monotonic(), FIRST_SECONDS

    def is_over(self) -> bool:
        """Whether the time is over; says a line where one is due."""
        waited = time.monotonic() - self._start
        if waited >= self._seconds:
            return True
        if waited >= self._next:
            text, due = self._text if isinstance(self._text, str) else self._text(), self._next
            while self._next <= waited:  # one line, however long this process was stopped
                due, self._next = self._next, self._next + EVERY_SECONDS
            sys.stderr.write(f"dvsnas: {text}, {due:g} s of {self._seconds:g}\n")  # one write: lines stay whole
            sys.stderr.flush()
        return False


class _Guest:
    """The part of every process: connects to process 0, in a thread of its own, since a look-up of a name may hang."""

    def __init__(self, address: str, process_id: int, num_processes: int) -> None:
        self._address, self._process_id = address, process_id
        self._hello = {
            "process": process_id,
            "of": num_processes,
            "version": dvsnas_jax.__version__,
            "who": f"{socket.gethostname()[:60]}, pid {os.getpid()}",
            "token": secrets.token_hex(8),
        }
        self.answered = threading.Event()  # process 0 has said that all are there, or why they will not be
        self.refusal: str | None = None  # why not
        self.link: host_lib.Link | None = None  # the connection, once all are there
        self._stopped = threading.Event()
        self._missing: str | None = None
        self._trouble = "no answer"
        threading.Thread(target=self._run, name="rendezvous", daemon=True).start()

    def stop(self) -> None:
        """Connects no more."""
        self._stopped.set()

    def waits_for(self, *, is_over: bool = False) -> str:
        """What for, as the rest of a sentence; after the time is over without the place."""
        missing, where = self._missing, "" if is_over else f" at {self._address}"
        verb = "for" if is_over else "waits for"
        if missing is not None:
            return f"{verb} {missing}{where}"
        if self._process_id == 0:
            return f"{'for' if is_over else 'does not reach'} itself{where} ({self._trouble})"
        return f"{verb} process 0{where} ({self._trouble})"

    def _run(self) -> None:
        while not self._stopped.is_set() and not self.answered.is_set():
            try:
                self._connect_and_hear()
            except (OSError, UnicodeError, host_lib.Broken) as error:
                self._missing, self._trouble = None, _reason(error)
                self._stopped.wait(RETRY_SECONDS)

    def _connect_and_hear(self) -> None:
        """From the connection to the answer; the caller tries again where it breaks."""
        name, _, port = self._address.rpartition(":")
        sock = socket.create_connection((name.strip("[]"), int(port)), timeout=5)
        link = host_lib.Link(sock)
        try:
            if sock.getsockname() == sock.getpeername():  # TCP lets a socket meet itself where it draws that port
                raise ConnectionRefusedError
            link.say(**self._hello)
            last = time.monotonic()
            while not self._stopped.is_set():
                for message in link.hear(0.2):
                    last = time.monotonic()
                    if "go" in message:
                        self.link = link
                        self.answered.set()
                        return
                    if "refused" in message:
                        self.refusal = host_lib.printable(message["refused"])
                        self.answered.set()
                    elif "wait" in message:
                        self._missing = host_lib.printable(message["wait"])
                if self.answered.is_set():
                    break
                if time.monotonic() - last > ANSWER_SECONDS:
                    raise TimeoutError
        except BaseException:
            link.close()
            raise
        link.close()


def _listener(bind: str) -> socket.socket:
    """Listens; alone, whatever JAX's service would share the port with."""
    name, _, port = bind.rpartition(":")
    name = name.strip("[]")
    is_dual = name in ("", "::") and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual or ":" in name else socket.AF_INET
    address = ("" if is_dual else name, int(port))
    return socket.create_server(address, family=family, dualstack_ipv6=is_dual, backlog=128)


def _reason(error: Exception) -> str:
    """An error of the network in a few words."""
    match error:
        case host_lib.Broken():
            return str(error)
        case socket.gaierror() | UnicodeError():
            return "the name of the host is not known"
        case ConnectionRefusedError():
            return "nobody listens there"
        case TimeoutError():
            return "no answer"
    return (getattr(error, "strerror", None) or str(error)).lower()


def _proxy() -> str:
    """gRPC honours the variables of a proxy, which cannot pass what JAX's processes say to each other."""
    found = [name for name in sorted(os.environ) if name.lower() in ("http_proxy", "https_proxy", "grpc_proxy")]
    return f" ({', '.join(found)} is set: exclude the host by no_proxy)" if found else ""
