"""One run of several processes: how they find each other, agree, wait, and end when one of them is lost.

Process 0 is the main one: it hosts JAX's coordination service and writes the logs. Nothing here starts a backend.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dvsnas_jax.core import errors
from dvsnas_jax.core.processes import rendezvous, watchdog

PORT = 12355
"""Of the coordinator, where only its host is known."""
HEARTBEAT_SECONDS = 600
"""Of JAX's own watch. It is the last resort, and longer than ours, since it counts time in which all were frozen."""
START_SECONDS = 300.0
"""For all processes to be there, where neither `--start-timeout` nor `DVSNAS_START_TIMEOUT` says otherwise."""
MAX_START_SECONDS = 7 * 24 * 3600.0
BARRIER_SECONDS = 24 * 3600
"""A barrier waits for slow work of another process; a lost one ends the run by the watchdog, not by this limit."""

_LOST = re.compile(
    r"gloo|nccl|connection (?:closed|reset|refused)|socket closed|broken pipe|coordination service|heartbeat|"
    r"UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


class Launch(NamedTuple):
    """Where a process belongs."""

    how: str  # it was found out: flags, environment, jobset, slurm or tpu
    coordinator: str | None = None  # host:port of process 0; None: JAX finds out (tpu)
    num_processes: int | None = None  # of the run
    process_id: int | None = None  # of this one
    # which of the machine's accelerators are this process's; None: all that it sees
    local_devices: tuple[int, ...] | None = None


class _Run(NamedTuple):
    """The distributed run that this process is part of."""

    client: Any
    process_id: int
    num_processes: int
    watch: watchdog.Watchdog


_run: _Run | None = None
_counter = itertools.count()


def detect(
    environ: Mapping[str, str],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Launch | None:
    """Whether this process is one of several, from flags or, without any, from what a launcher sets; None: it is alone.

    In this order: the flags, where `num_processes` 1 means this process alone, whatever the environment says;
    `DVSNAS_COORDINATOR`, `DVSNAS_NUM_PROCESSES`, `DVSNAS_PROCESS_ID`; a Kubernetes JobSet (`JOBSET_NAME`,
    `REPLICATED_JOB_NAME`, `JOB_COMPLETION_INDEX` and `DVSNAS_NUM_PROCESSES`); a step of SLURM's `srun` with several
    tasks; a TPU pod (`TPU_WORKER_HOSTNAMES` with several names, or `DVSNAS_TPU_POD=1`). `DVSNAS_PORT` says where they
    meet in a JobSet or in SLURM. What is missing or out of range is a UserError.
    """
    if num_processes == 1 and coordinator is None:
        return None
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    if any(value is not None for value in given.values()):
        return _explicit("flags", given)
    if "DVSNAS_COORDINATOR" in environ:
        names = ("DVSNAS_COORDINATOR", "DVSNAS_NUM_PROCESSES", "DVSNAS_PROCESS_ID")
        found: dict[str, Any] = {name: environ.get(name) for name in names}
        if found["DVSNAS_PROCESS_ID"] is None:
            found["DVSNAS_PROCESS_ID"] = environ.get("JOB_COMPLETION_INDEX")
        return _explicit("environment", found)
    if "JOBSET_NAME" in environ and "JOB_COMPLETION_INDEX" in environ:
        return _jobset(environ)
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environ:
        return _slurm(environ)
    if len(environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1 or environ.get("DVSNAS_TPU_POD") == "1":
        return Launch("tpu")
    return None


def _explicit(how: str, given: Mapping[str, Any]) -> Launch:
    """A launch of which everything was said: names of coordinator, number and process, with what was given."""
    missing = [name for name, value in given.items() if value is None]
    if missing:
        said = ", ".join(name for name, value in given.items() if value is not None)
        raise errors.UserError(f"{said}: a run of several processes needs {' and '.join(missing)}, too")
    (where, address), (num_name, num_text), (name, text) = given.items()
    try:
        num, process = int(num_text), int(text)
    except ValueError:
        raise errors.UserError(f"{num_name} and {name}: must be whole numbers") from None
    if num < 1 or not 0 <= process < num:
        raise errors.UserError(f"{name}: must be from 0 to {num_name} - 1, got {process} of {num}")
    port = re.fullmatch(r"\S+:(\d{1,5})", str(address))
    if port is None or not 0 < int(port[1]) < 65536:
        raise errors.UserError(
            f"{where}: must be HOST:PORT of process 0, with a port from 1 to 65535, got {str(address)!r}"
        )
    return Launch(how, str(address), num, process)


def _jobset(environ: Mapping[str, str]) -> Launch:
    """A pod of an indexed job of a JobSet: the first pod has a stable name in the set's headless service."""
    name, job = environ["JOBSET_NAME"], environ.get("REPLICATED_JOB_NAME", "workers")
    given = {
        "JOBSET_NAME": f"{name}-{job}-0-0.{name}:{_port(environ, PORT)}",
        "DVSNAS_NUM_PROCESSES": environ.get("DVSNAS_NUM_PROCESSES"),
        "JOB_COMPLETION_INDEX": environ["JOB_COMPLETION_INDEX"],
    }
    return _explicit("jobset", given)


def _slurm(environ: Mapping[str, str]) -> Launch:
    """A task of `srun`. Of several on a node each takes the accelerator of its number, unless it sees only one."""
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    if first is None:
        raise errors.UserError(f"SLURM_STEP_NODELIST: names no node: {nodes!r}; start the program with srun")
    # Runs of one user on the same nodes must not meet: the port follows from the job.
    port = _port(environ, PORT + int(environ.get("SLURM_JOB_ID", "0")) % 4096)
    is_alone = environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0] == "1"
    is_bound = len(environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    return Launch(
        "slurm",
        f"{first[1]}{first[2] or ''}:{port}",
        int(environ["SLURM_STEP_NUM_TASKS"]),
        int(environ["SLURM_PROCID"]),
        None if is_alone or is_bound else (int(environ.get("SLURM_LOCALID", "0")),),
    )


def _port(environ: Mapping[str, str], default: int) -> int:
    """Where the processes meet, for a launcher that says no address."""
    text = environ.get("DVSNAS_PORT", str(default))
    if not re.fullmatch(r"\d{1,5}", text) or not 0 < int(text) < 65536:
        raise errors.UserError(f"DVSNAS_PORT: must be a port from 1 to 65535, got {text!r}")
    return int(text)


def start_seconds(environ: Mapping[str, str], given: float | None = None) -> float:
    """How long a process waits for the others of its run to start: `--start-timeout`, else `DVSNAS_START_TIMEOUT`.

    A UserError where that is no number of seconds.
    """
    name, value = "--start-timeout", given
    if value is None and "DVSNAS_START_TIMEOUT" in environ:
        name, text = "DVSNAS_START_TIMEOUT", environ["DVSNAS_START_TIMEOUT"]
        try:
            value = float(text)
        except ValueError:
            raise errors.UserError(f"{name}: must be a number of seconds, got {text!r}") from None
    if value is None:
        return START_SECONDS
    if not 1 <= value <= MAX_START_SECONDS:
        raise errors.UserError(f"{name}: must be from 1 to {MAX_START_SECONDS:.0f} seconds, got {value:g}")
    return value


def start(launch: Launch, seconds: float = START_SECONDS) -> None:
    """Joins the run, at most so many seconds; call it before anything that starts a JAX backend.

    The processes meet before JAX connects them (`core.processes.rendezvous`); JAX alone finds those of a TPU pod. A
    UserError where the others were not found in time, or do not fit.
    """
    global _run
    meeting, limit = rendezvous.Meeting("this host", None), seconds
    known: dict[str, Any] = {}
    if launch.coordinator is not None:
        assert launch.process_id is not None and launch.num_processes is not None
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")  # which JAX honours
        meeting = rendezvous.meet(
            launch.coordinator, launch.process_id, launch.num_processes, seconds=seconds, bind=bind
        )
        limit = max(seconds, rendezvous.JOIN_SECONDS)
        known = {
            "coordinator_address": launch.coordinator,
            "num_processes": launch.num_processes,
            "process_id": launch.process_id,
            "local_device_ids": launch.local_devices,
            "cluster_detection_method": "deactivate",
        }
    meeting.watch(limit, leave_lost, _leave_late)
    state = _initialize(limit, known)
    meeting.end()
    client, process, num = state.client, state.process_id, state.num_processes
    host, _, port = str(state.coordinator_address).rpartition(":")
    watch = watchdog.Watchdog(client, process, num, leave_fn=leave_lost)
    watchdog.on_abort(lambda: watch.has_doubts() or not _answers(host.strip("[]"), int(port)), leave_lost)
    watch.start()
    _run = _Run(client, process, num, watch)


def _initialize(limit: float, known: Mapping[str, Any]) -> Any:
    """JAX connects the processes; its limit is beyond ours, since at its own it aborts the process.

    Returns its state, which JAX 0.10 has in private alone: the public `multihost_utils` exchange values by programs on
    the devices, which must not come between the steps of a run in another order on another process.
    """
    import jax
    from jax._src import distributed as jax_distributed

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours, see core.signals
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, initialization_timeout=int(limit) + 60, **known
        )
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        _leave_late(f"JAX did not connect the processes ({text}); start all processes again")
    return jax_distributed.global_state


def _leave_late(text: str) -> None:
    """Ends this process at once with a line: a usual end would wait in JAX for the others, and abort."""
    os.write(2, f"dvsnas: error: {text}\n".encode())
    os._exit(errors.EXIT_USER)


def _answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False


def is_main() -> bool:
    """Whether this process writes logs and reports: the only one, or number 0."""
    return _run is None or _run.process_id == 0


def num_processes() -> int:
    """Processes of the run."""
    return 1 if _run is None else _run.num_processes


def process_id() -> int:
    """The number of this one."""
    return 0 if _run is None else _run.process_id


def barrier(name: str) -> None:
    """Waits until every process is here. All call it, in the same order."""
    if _run is not None:
        _run.client.wait_at_barrier(f"dvsnas/{name}/{next(_counter)}", BARRIER_SECONDS * 1000)


def agree(flag: bool) -> bool:
    """Whether the flag is set in any process. All call it, in the same order; it costs some messages."""
    if _run is None:
        return flag
    key = f"dvsnas/agree/{next(_counter)}"
    _run.client.key_value_set(f"{key}/{_run.process_id}", str(int(flag)))
    _run.client.wait_at_barrier(key, BARRIER_SECONDS * 1000)
    found = any(value == "1" for _, value in _run.client.key_value_dir_get(key))
    _run.client.wait_at_barrier(f"{key}/read", BARRIER_SECONDS * 1000)
    _run.client.key_value_delete(f"{key}/{_run.process_id}")
    return found


def tell(text: str) -> str:
    """What the first process says, for all. All call it, in the same order."""
    if _run is None:
        return text
    key = f"dvsnas/tell/{next(_counter)}"
    if is_main():
        _run.client.key_value_set(key, text)
    return str(_run.client.blocking_key_value_get(key, BARRIER_SECONDS * 1000))


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone."""
    return _run is not None and isinstance(error, RuntimeError | ValueError) and bool(_LOST.search(str(error)))


def leave_lost(reason: str) -> None:
    """Ends this process at once, because another one is gone: those that wait for it wait in vain."""
    where = "" if _run is None else f"process {_run.process_id} of {_run.num_processes}: "
    text = f"dvsnas: {where}stopped, {reason}; the last checkpoint is kept, start all processes again to go on\n"
    os.write(2, text.encode())
    os._exit(errors.EXIT_STOPPED)


def guard(run_fn: Callable[[], int]) -> int:
    """Runs this process' work to its exit code; where another process is lost, this one ends with 75.

    An error of a lone process is raised, one of several ends with its traceback and 1.
    """
    try:
        code = run_fn()
    except Exception as error:
        if is_lost(error):
            leave_lost(f"another process is gone ({' '.join(str(error).split())[:200]})")
        if _run is not None:
            traceback.print_exc()
            leave(errors.EXIT_FAULT)
        raise
    return leave(code)


def leave(code: int) -> int:
    """Ends the part in the run. After success, or a stop that all agreed on, it waits for the others.

    Returns the exit code where the process may end in the usual way.
    """
    global _run
    if _run is None:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    if code not in (errors.EXIT_DONE, errors.EXIT_STOPPED):
        os._exit(code)  # not in the usual way: JAX would wait for the others, who will never come
    import jax

    barrier("end")
    _run.watch.stop()
    if _run.process_id:
        jax.distributed.shutdown()
        os._exit(code)
    jax.distributed.shutdown()
    _run = None
    return code
