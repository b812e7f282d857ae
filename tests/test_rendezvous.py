"""The processes of a run meet: who is missing is said; a start that cannot succeed ends in one line and code 2."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import dvsnas_jax
from dvsnas_jax.core import errors
from dvsnas_jax.core.processes import distributed, rendezvous, rendezvous_host

ROOT = pathlib.Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous_host, "LINGER_SECONDS", 0.2)


@pytest.fixture(name="address")
def _address() -> str:
    return f"127.0.0.1:{free_port()}"


class Process(threading.Thread):
    """One process of a run, in a thread: its meeting, or the line that it would end with."""

    def __init__(self, address: str, process_id: int, num: int, seconds: float = 10.0) -> None:
        super().__init__(daemon=True)
        self.words, self.seconds = (address, process_id, num), seconds
        self.meeting: rendezvous.Meeting | None = None
        self.error = ""
        self.start()

    def run(self) -> None:
        try:
            self.meeting = rendezvous.meet(*self.words, seconds=self.seconds)
        except errors.UserError as error:
            self.error = str(error)

    def wait(self) -> "Process":
        self.join(20)
        assert not self.is_alive()
        return self


def connect(address: str) -> socket.socket:
    """To a process 0 that starts in this moment."""
    host, _, port = address.rpartition(":")
    for _ in range(600):
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


def hello(process: int, num: int, **other) -> bytes:
    words = {"process": process, "of": num, "version": dvsnas_jax.__version__, "who": "h, pid 1", "token": "t", **other}
    return json.dumps({"dvsnas": 1, **words}).encode() + b"\n"


def hear(sock: socket.socket, word: str) -> str:
    """Reads until a message with a word, and gives what that holds."""
    for line in sock.makefile():
        message = json.loads(line)
        if word in message:
            return str(message[word])
    raise AssertionError(f"closed without {word}")


def knock(address: str, data: bytes) -> socket.socket:
    sock = connect(address)
    sock.sendall(data)
    return sock


# --- all are there -------------------------------------------------------------------------------------------------


def test_processes_meet_and_leave_the_port_to_jax(address: str, capfd: pytest.CaptureFixture) -> None:
    processes = [Process(address, i, 4) for i in (2, 0, 3, 1)]
    assert [process.wait().error for process in processes] == [""] * 4
    # As gRPC does it: their connections are still open, the port can be listened on.
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("0.0.0.0", int(address.rpartition(":")[2])))
        server.listen()
    told: list[str] = []
    for process in processes:
        process.meeting.watch(5.0, told.append, told.append)
    for process in processes:
        process.meeting.end()
    time.sleep(0.5)
    assert told == [] and capfd.readouterr().err == ""  # a start in which all is well says nothing


@pytest.mark.parametrize(
    "processes, text",
    [
        ([1], "process 1"),
        ([1, 2, 3, 7], "processes 1-3, 7"),
        (range(1, 9), "processes 1-8"),
        (range(0, 60, 2), "processes 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, and 19 more"),
    ],
)
def test_names_of_processes(processes, text) -> None:
    assert rendezvous_host.names(processes) == text


# --- somebody is missing -------------------------------------------------------------------------------------------


def test_who_is_missing_is_said_and_all_give_up_together(address, monkeypatch, capfd) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_SECONDS", 0.6)
    monkeypatch.setattr(rendezvous, "EVERY_SECONDS", 0.5)
    start = time.monotonic()
    first, other = Process(address, 0, 4, seconds=1.5), Process(address, 2, 4, seconds=60)
    text = (
        f"the processes did not find each other at {address}: process 0 of 4 waited 1.5 s for processes 1, 3; start "
        "every process with the same --num-processes and --coordinator, the address of process 0, or let them wait "
        "longer by --start-timeout"
    )
    assert (first.wait().error, other.wait().error) == (text, text)
    assert time.monotonic() - start < 5
    lines = capfd.readouterr().err.splitlines()
    # A busy machine may skip a line; process 2 may say one more until it hears that process 0 gave up.
    for process, limit, times in ((0, "1.5", ("0.6", "1.1")), (2, "60", ("0.6", "1.1", "1.6"))):
        waits = f"dvsnas: process {process} of 4 waits for processes 1, 3 at {address}, "
        said = [line.removeprefix(waits) for line in lines if line.startswith(waits)]
        assert said and set(said) <= {f"{seconds} s of {limit}" for seconds in times}, lines
        assert len(set(said)) == len(said)


def test_without_process_0(address, monkeypatch, capfd) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_SECONDS", 0.5)
    process = Process(address, 1, 2, seconds=1).wait()
    assert f"at {address}: process 1 of 2 waited 1 s for process 0 (nobody listens there); start every" in process.error
    line = f"dvsnas: process 1 of 2 waits for process 0 at {address} (nobody listens there), 0.5 s of 1\n"
    assert capfd.readouterr().err == line


@pytest.mark.parametrize(
    "process, who, host",
    [(0, "itself", "a..b"), (1, "process 0", "no-such-host.invalid"), (1, "process 0", "x" * 70)],
)
def test_a_host_that_nobody_knows(process, who, host) -> None:
    found = Process(f"{host}:{free_port()}", process, 2, seconds=0.6).wait()
    # A look-up that hangs may have brought no answer yet.
    assert re.search(rf"waited 0.6 s for {who} \((the name of the host is not known|no answer)\)", found.error)


def test_a_process_0_that_is_not_where_the_coordinator_is(address) -> None:
    """It listens, on its own machine, where nobody looks for it."""
    host = rendezvous_host.Host(rendezvous._listener(":0"), 2)
    found = Process(address, 1, 2, seconds=0.5).wait()
    assert "process 1 of 2 waited 0.5 s for process 0 (nobody listens there)" in found.error
    host.refuse("")


@pytest.mark.parametrize(
    "greeting, text",
    [
        (b"SSH-2.0-x\r\n", "another program, or a run that is under way, answers"),
        (b"\x00\x00\x12\x04\x00", "another program, or a run that is under way, answers"),
        (b"[1]\n", "another program, or a run that is under way, answers"),
        (b"", "another program, or a run that is under way, closes the connection"),
    ],
)
def test_another_program_at_the_address(greeting, text) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                sock.recv(100)
                sock.sendall(greeting)
                sock.shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        assert f"waited 0.6 s for process 0 ({text})" in Process(address, 1, 2, seconds=0.6).wait().error
        server.shutdown(socket.SHUT_RDWR)


def test_the_port_of_process_0_is_in_use(monkeypatch) -> None:
    monkeypatch.setattr(rendezvous, "IN_USE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        found = Process(address, 0, 2, seconds=60).wait()
    assert found.error == (
        f"--coordinator: the port of {address} is in use on this machine, by another program or by a run that is under "
        "way; end that one or choose another port, the same for every process (with SLURM or a JobSet: by DVSNAS_PORT)"
    )


def test_a_missing_process_that_comes_back(address, monkeypatch, capfd) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_SECONDS", 1.0)
    first = Process(address, 0, 3)
    knock(address, hello(1, 3)).close()  # killed while 2 was missing
    text = ""
    while not text:
        time.sleep(0.1)
        text = capfd.readouterr().err
    assert text == f"dvsnas: process 0 of 3 waits for processes 1-2 at {address}, 1 s of 10\n"
    others = [Process(address, i, 3) for i in (1, 2)]
    assert [process.wait().error for process in (first, *others)] == [""] * 3


def test_a_connection_that_broke_unnoticed_is_replaced(address) -> None:
    host = rendezvous_host.Host(rendezvous._listener(f":{address.rpartition(':')[2]}"), 3)
    old = knock(address, hello(1, 3, token="same"))
    assert hear(old, "wait") == "processes 0, 2"
    new = knock(address, hello(1, 3, token="same"))
    assert hear(new, "wait") == "processes 0, 2" and old.recv(2000) == b""
    threading.Thread(target=host.refuse, args=("over",)).start()
    assert hear(new, "refused") == "over"


# --- those who are there do not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize("twice", [0, 1])
def test_two_processes_of_one_number_end_at_once(address, twice) -> None:
    start = time.monotonic()
    processes = [Process(address, i, 3, seconds=60) for i in (0, twice)]
    if twice:
        processes.append(Process(address, 1, 3, seconds=60))
    for process in processes:
        assert re.fullmatch(
            rf"the processes did not find each other at {address}: process {twice} is there twice \(on .+, pid "
            rf"{os.getpid()}, and on .+, pid {os.getpid()}\): give every process its own --process-id "
            r"\(or DVSNAS_PROCESS_ID\)",
            process.wait().error,
        )
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("num", [2, 4])
def test_processes_of_different_numbers_end_at_once(address, num) -> None:
    processes = [Process(address, 0, 3, seconds=60), Process(address, 1, num, seconds=60)]
    for process in processes:
        text = rf"process 1 \(on .+\) was started as one of {num}, process 0 as one of 3: give all the same --num-proc"
        assert re.search(text, process.wait().error)


def test_another_version_is_refused(address) -> None:
    first = Process(address, 0, 2, seconds=60)
    other = knock(address, hello(1, 2, version="9.9", who="\x1b[31mhost\n"))
    text = (
        f"process 1 (on [31mhost) runs dvsnas 9.9, process 0 {dvsnas_jax.__version__}: install one version on all hosts"
    )
    assert hear(other, "refused") == text
    assert first.wait().error.endswith(text)


# --- nothing that arrives is trusted -------------------------------------------------------------------------------


def test_whoever_else_connects_is_dropped(address, monkeypatch) -> None:
    monkeypatch.setattr(rendezvous_host, "HELLO_SECONDS", 0.5)
    first = Process(address, 0, 2)
    lines = [
        b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"\n", b"[" * 1900 + b"\n", b"{" * 5000, b"9" * 1900 + b"\n",
        b'{"dvsnas": 1}\n', hello(1, 2).replace(b'"dvsnas"', b'"other"'), hello(1, 2)[:-1], b"",
        *(hello(process, 2) for process in (2, -1, True, 1.0, "1", None, 10**30)),
        hello(1, 2, token=["x"]), b'{"dvsnas": 1, "go": true}\n', b'{"dvsnas": 1, "refused": "you"}\n',
    ]  # fmt: skip
    knocks = [knock(address, line) for line in lines]
    for sock, line in zip(knocks, lines, strict=True):
        sock.settimeout(5)
        try:
            assert sock.recv(100) == b"", line  # closed without a word
        except ConnectionResetError:
            pass
    assert Process(address, 1, 2).wait().error == "" and first.wait().error == ""


def test_so_many_strangers_do_not_keep_a_process_out(address, monkeypatch) -> None:
    monkeypatch.setattr(rendezvous_host, "SPARE_LINKS", 4)
    first = Process(address, 0, 2)
    strangers = [knock(address, b"") for _ in range(20)]
    assert Process(address, 1, 2).wait().error == "" and first.wait().error == ""
    del strangers


# --- until JAX has connected them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, text",
    [
        (b'{"dvsnas": 1, "lost": 2}\n', "process 2 ended while the run started"),
        (None, "process 0 ended while the run started"),
        (b'{"dvsnas": 1, "end": true}\n', None),
    ],
)
def test_a_process_that_ends_before_jax_has_connected_it(said, text) -> None:
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    rendezvous.Meeting("process 1 of 3", "a:1", rendezvous_host.Link(ours)).watch(0.8, told.append, told.append)
    if said:
        theirs.sendall(said)
    else:
        theirs.close()
    time.sleep(1.2)
    assert told[:1] == ([] if text is None else [text])


def test_the_others_are_told_of_the_one_that_ended(address) -> None:
    processes = [Process(address, i, 3) for i in (0, 1)]
    third = knock(address, hello(2, 3))
    assert hear(third, "go") == "True"
    told: list[str] = []
    for process in processes:
        process.wait().meeting.watch(20.0, told.append, told.append)
    third.shutdown(socket.SHUT_RDWR)
    third.close()
    while not told:
        time.sleep(0.05)
    assert set(told) == {"process 2 ended while the run started"}
    for process in processes:
        process.meeting.end()


def test_jax_that_takes_too_long(monkeypatch, capfd) -> None:
    """As on the hosts of a TPU pod, which JAX alone finds."""
    monkeypatch.setattr(rendezvous, "FIRST_SECONDS", 0.3)
    monkeypatch.setenv("http_proxy", "http://proxy")
    told: list[str] = []
    meeting = rendezvous.Meeting("this host", None)
    meeting.watch(0.7, told.append, told.append)
    while not told:
        time.sleep(0.05)
    meeting.end()
    assert told[0] == (
        "this host: JAX did not connect the processes on the hosts of the TPU pod within 0.7 s (http_proxy is set: "
        "exclude the host by no_proxy); start all processes again, or let them wait longer by --start-timeout"
    )
    line = "dvsnas: this host waits for JAX to connect the processes on the hosts of the TPU pod, 0.3 s of 0.7\n"
    assert capfd.readouterr().err == line


JAX_STARTS = """
import os
import jax  # so that the times below are spent inside of its start
from dvsnas_jax.core.processes import distributed, rendezvous
rendezvous.JOIN_SECONDS = 1.5
distributed.start(distributed.detect(os.environ), 1.5)
"""


@pytest.mark.parametrize(
    "is_closed, code, text",
    [
        (True, 75, "dvsnas: stopped, process 1 ended while the run started; the last checkpoint is kept, start all "),
        (False, 2, "dvsnas: error: process 0 of 2: JAX did not connect the processes at {} within 1.5 s"),
    ],
)
def test_the_process_is_left_from_inside_of_jax(address, is_closed, code, text) -> None:
    """JAX itself would abort it, minutes later."""
    environ = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environ |= {"DVSNAS_COORDINATOR": address, "DVSNAS_NUM_PROCESSES": "2", "DVSNAS_PROCESS_ID": "0"}
    command = [sys.executable, "-c", JAX_STARTS]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True
    )
    other = knock(address, hello(1, 2))
    assert hear(other, "go") == "True"
    if is_closed:
        time.sleep(0.8)  # so that JAX waits
        other.shutdown(socket.SHUT_RDWR)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stderr.splitlines()[-1].startswith(text.format(address))


# --- the command ---------------------------------------------------------------------------------------------------


def search(address: str, num: int, process_id: int, *words: str) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "dvsnas_jax", "search", "--config=configs/smoke.py", "--workdir=/nonexistent/run",
        "--coordinator", address, "--num-processes", str(num), "--process-id", str(process_id), *words,
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ends(process: subprocess.Popen) -> tuple[int, list[str]]:
    text, _ = process.communicate(timeout=60)
    return process.returncode, text.splitlines()


def test_the_command_ends_with_one_line_and_code_2(address) -> None:
    """One of three is missing, and the first process is killed on the way."""
    first, second = search(address, 3, 0, "--start-timeout=60"), search(address, 3, 1, "--start-timeout=2")
    connect(address).close()
    first.send_signal(signal.SIGKILL)
    code, lines = ends(second)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(
        f"dvsnas: error: the processes did not find each other at {address}: process 1 of 3 waited 2 s for process 0 ("
    )
    assert ends(first) == (-signal.SIGKILL, [])


def test_a_start_timeout_that_makes_no_sense(address) -> None:
    assert ends(search(address, 2, 0, "--start-timeout=0")) == (
        2, ["dvsnas: error: --start-timeout: must be from 1 to 604800 seconds, got 0"],
    )  # fmt: skip
    assert distributed.start_seconds({}) == 300.0
    assert distributed.start_seconds({"DVSNAS_START_TIMEOUT": "20"}) == 20.0
    assert distributed.start_seconds({"DVSNAS_START_TIMEOUT": "20"}, 5.0) == 5.0
    for text in ("soon", "nan", "-1", "inf"):
        with pytest.raises(errors.UserError, match="DVSNAS_START_TIMEOUT: must be "):
            distributed.start_seconds({"DVSNAS_START_TIMEOUT": text})


@pytest.mark.slow
def test_a_missing_process_from_the_command_line(address) -> None:
    """The times that a user sees: after 10 s, then every 20 s, at the limit one line."""
    start = time.monotonic()
    code, lines = ends(search(address, 2, 0, "--start-timeout=32"))
    assert code == 2 and 32 <= time.monotonic() - start < 45
    waits = f"dvsnas: process 0 of 2 waits for process 1 at {address}, "
    assert lines[:2] == [f"{waits}10 s of 32", f"{waits}30 s of 32"] and len(lines) == 3
    assert f"did not find each other at {address}: process 0 of 2 waited 32 s for process 1; start" in lines[2]
