"""The launch scripts: linted, restarted after code 75, and fitting what `core.processes.distributed` reads."""

import fnmatch
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tomllib

import pytest

from dvsnas_jax.core.processes import distributed

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
PROJECT = ROOT / "pyproject.toml"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
HYPER_PARAMETERS = ("learning_rate", "batch_size", "--config.")

# Fields of a JobSet above its job templates: api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset.
JOBSET_FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator",
        "managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies",
    },
    "network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "rule": {"name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"},
    "replicatedJob": {"name", "groupName", "template", "replicas", "dependsOn"},
}  # fmt: skip
ACTIONS = {
    "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob", "RestartJobAndIgnoreMaxRestarts",
}  # fmt: skip


def unknown_fields(jobset: dict) -> list[str]:
    """Fields of a JobSet that its type does not have, with where they are."""
    spec = jobset["spec"]
    parts = [("", jobset), ("spec", spec), ("network", spec["network"]), ("failurePolicy", spec["failurePolicy"])]
    parts += [("rule", rule) for rule in spec["failurePolicy"]["rules"]]
    parts += [("replicatedJob", job) for job in spec["replicatedJobs"]]
    return [f"{where}.{key}" for where, part in parts for key in part if key not in JOBSET_FIELDS[where]]


@pytest.fixture(name="jobset")
def _jobset() -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def executable(folder: pathlib.Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def run(words: list[str], folder: pathlib.Path, **variables: str) -> subprocess.CompletedProcess:
    """A script where the programs of `folder` are found first."""
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    return subprocess.run(words, env=environ, cwd=folder, capture_output=True, text=True, timeout=30)


# --- lint ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent))
    if program is None:
        pytest.skip("shellcheck is not installed (the extra `test` has it)")
    words = [program, "--shell=bash", "--severity=warning", "--external-sources", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "gke_jobset.yaml"], ids=lambda path: path.name)
def test_head_says_how_and_holds_no_hyper_parameter(path):
    text = path.read_text()
    head = text.partition("set -")[0] if path.suffix != ".yaml" else text.partition("apiVersion")[0]
    if path.name not in ("setup.sh",):
        assert "Usage" in head
    if path.name in ("slurm.sbatch", "tpu_pod.sh", "gke_jobset.yaml", "local_multiprocess.sh"):
        assert "edit" in head.lower()
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        assert not [word for word in HYPER_PARAMETERS if word in code]


@pytest.mark.parametrize(
    "name", ["slurm.sbatch", "tpu_pod.sh", "gke_jobset.yaml", "local_multiprocess.sh", "Dockerfile"]
)
def test_head_says_to_try_the_smallest_run_first(name):
    """By a command that can be pasted; a JobSet's is tried below."""
    head = (LAUNCH / name).read_text().partition("\nFROM" if name == "Dockerfile" else "\nset -")[0]
    assert "first see that it works" in head.lower() or "For trying" in head
    assert re.search(r"search --config=configs/smoke.py --workdir=\S+/\S+|sed 's/\w+/smoke/", head)


# --- SLURM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, restarts, is_requeued", [(0, 0, False), (75, 0, True), (75, 49, True), (75, 50, False), (2, 0, False)]
)
def test_slurm_puts_a_stopped_job_back_into_the_queue(tmp_path, code, restarts, is_requeued):
    executable(tmp_path, "srun", f'printf "%s|" "$@" > srun.txt; exit {code}')
    executable(tmp_path, "scontrol", 'echo "$@" >> scontrol.txt')
    done = run(
        ["bash", str(LAUNCH / "slurm.sbatch"), "search", "--workdir=a b"], tmp_path,
        SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[1-2]", SLURM_RESTART_COUNT=str(restarts), DVSNAS="/x/dvsnas",
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert (tmp_path / "srun.txt").read_text() == "--kill-on-bad-exit=0|/x/dvsnas|search|--workdir=a b|"
    requeued = tmp_path / "scontrol.txt"
    assert (requeued.read_text() if requeued.exists() else "") == ("requeue 7\n" if is_requeued else "")


def submit(folder: pathlib.Path, **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs the batch script with an `srun` that keeps its words, and a variable that it would start with."""
    executable(folder, "srun", 'printf "%s\\n" "cores=${SRUN_CPUS_PER_TASK:-unset} $MODULE" "$@" > srun.txt')
    known = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "MODULE": ""}
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "search", "--workdir=a b"]
    done = run(words, folder, **{**known, **variables})
    path = folder / "srun.txt"
    return done, path.read_text().splitlines() if path.exists() else []


def test_slurm_gives_the_cores_of_the_job_to_its_step(tmp_path):
    """Since SLURM 22.05 srun does not take them over."""
    assert submit(tmp_path, DVSNAS="d", SLURM_CPUS_PER_TASK="64")[1][0] == "cores=64 "
    assert submit(tmp_path, DVSNAS="d")[1][0] == "cores=unset "


def test_slurm_ways_to_bring_the_program_to_the_nodes(tmp_path):
    done, called = submit(tmp_path)
    assert (done.returncode, called) == (2, [])
    assert done.stderr.startswith(f"error: {tmp_path} has no .venv/bin/dvsnas; install it, or set DVSNAS or CONTAINER")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    executable(tmp_path / ".venv" / "bin", "dvsnas", "")
    assert submit(tmp_path)[1][1:] == ["--kill-on-bad-exit=0", ".venv/bin/dvsnas", "search", "--workdir=a b"]
    (tmp_path / "setup").write_text("export MODULE=loaded")
    assert submit(tmp_path, SETUP="setup")[1][0] == "cores=unset loaded"
    done, called = submit(tmp_path, SETUP="none")
    assert (done.returncode, done.stderr) == (2, "error: SETUP=none cannot be read\n")
    program = ["apptainer", "exec", "--nv", "--bind", "/x y,/d", "i.sif", "dvsnas", "search", "--workdir=a b"]
    assert submit(tmp_path, CONTAINER="i.sif", BINDS="/x y,/d")[1][2:] == program
    words = ["--kill-on-bad-exit=0", "--container-image=i", "--label", "dvsnas", "search", "--workdir=a b"]
    assert submit(tmp_path, SRUN_OPTIONS="--container-image=i --label", DVSNAS="dvsnas")[1][1:] == words


def test_slurm_asks_for_a_signal_to_the_steps_and_to_be_requeued():
    asked = [line for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --requeue" in asked and "#SBATCH --signal=TERM@300" in asked  # without B: the steps get it
    assert "#SBATCH --ntasks-per-node=1" in asked


def test_slurm_tasks_find_each_other():
    environ = {
        "SLURM_JOB_ID": "4099", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[03-04]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }  # fmt: skip
    found = distributed.detect(environ)
    assert found == distributed.Launch("slurm", f"n03:{distributed.PORT + 3}", 2, 1, None)


# --- TPU pod ------------------------------------------------------------------------------------------------------


class Slice:
    """A slice of one host, this machine: `gcloud` runs what it is given, and keeps its other words."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.remote = folder, folder / "a host"
        (self.remote / ".venv" / "bin").mkdir(parents=True)
        body = 'printf "%s|" "${@:1:7}" >> gcloud.txt; echo >> gcloud.txt; last="${@: -1:1}"'
        executable(folder, "gcloud", f'{body}; exec bash -c "${{last#--command=}}"')
        self.known = {"TPU_NAME": "t", "ZONE": "z", "REMOTE_DIR": str(self.remote), "RESTART_SECONDS": "0"}

    def program(self, body: str) -> None:
        """What stands for dvsnas on the host."""
        executable(self.remote / ".venv" / "bin", "dvsnas", body)

    def call(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        return run([str(LAUNCH / "tpu_pod.sh"), *words], self.folder, **self.known, **variables)

    def lines(self, name: str) -> list[str]:
        path = self.remote / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(name="tpus")
def _tpus(tmp_path):
    return Slice(tmp_path)


def test_tpu_hosts_start_again_after_a_stop(tpus):
    """Stopped twice, then done."""
    tpus.program(
        'echo "$DVSNAS_TPU_POD $EXTRA $*" >> calls.txt; [ "$(wc -l < calls.txt)" -ge 3 ] || exit 75; echo done'
    )
    done = tpus.call("search", "--workdir=a b", "--config=$HOME", REMOTE_ENV="EXTRA=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"  # the log of the first host
    assert tpus.lines("calls.txt") == ["1 1 search --workdir=a b --config=$HOME"] * 3
    called = (tpus.folder / "gcloud.txt").read_text().splitlines()
    assert called == [f"compute|tpus|tpu-vm|ssh|t|--zone=z|--worker={worker}|" for worker in ("all", "0")]

    tpus.program("echo >> failed.txt; exit 2")
    assert tpus.call("search").returncode == 2
    tpus.program("echo >> failed.txt; exit 75")
    assert tpus.call("search", MAX_RESTARTS="2").returncode == 75
    assert len(tpus.lines("failed.txt")) == 1 + 3
    assert "ended with code 75" in tpus.call("status").stdout


def test_tpu_hosts_go_on_without_the_connection(tpus):
    """The terminal here is lost; the run is followed from another one, is not started twice, and is stopped."""
    tpus.program(
        "trap 'echo saved; exit 75' TERM; echo started; touch started; for i in $(seq 300); do sleep 0.1; done; exit 1"
    )
    words = [str(LAUNCH / "tpu_pod.sh"), "search"]
    environ = {**os.environ, "PATH": f"{tpus.folder}:{os.environ['PATH']}", **tpus.known}
    first = subprocess.Popen(
        words, env=environ, cwd=tpus.folder, stdout=subprocess.PIPE, start_new_session=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )  # fmt: skip
    while first.stdout.readline() != "started\n":
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGHUP)  # script, gcloud and the log: all that hangs on the connection
    first.communicate(timeout=20)
    assert "is running; started" in tpus.call("status").stdout
    again = tpus.call("search")
    assert again.returncode == 2 and "a run is under way here; follow or stop it first" in again.stderr
    follower = subprocess.Popen([words[0], "follow"], env=environ, cwd=tpus.folder, stdout=subprocess.PIPE, text=True)
    stopped = tpus.call("stop")
    assert stopped.returncode == 0 and "ended with code 75" in stopped.stdout, stopped
    text, _ = follower.communicate(timeout=20)
    assert (follower.returncode, text.splitlines()) == (75, ["started", "saved"])  # and was not started again
    assert "nothing is running" in tpus.call("stop").stdout


def test_tpu_words_are_no_commands_of_the_program(tpus):
    done = subprocess.run([sys.executable, "-m", "dvsnas_jax", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert not [word for word in ("follow", "status", "stop") if re.search(rf"^ +{word}\b", done.stdout, re.MULTILINE)]
    done = tpus.call("follow")
    assert (done.returncode, done.stderr) == (2, "error: nothing was started on this host\n")


def test_tpu_script_needs_to_know_where(tmp_path):
    done = run([str(LAUNCH / "tpu_pod.sh"), "search"], tmp_path, ZONE="z", TPU_NAME="")
    assert done.returncode != 0 and "TPU_NAME" in done.stderr
    assert distributed.detect({"DVSNAS_TPU_POD": "1"}) == distributed.Launch("tpu")


# --- Kubernetes ---------------------------------------------------------------------------------------------------


def test_jobset_has_the_fields_of_its_type(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert unknown_fields(jobset) == []
    assert unknown_fields({**jobset, "spec": {**jobset["spec"], "networks": {}}}) == ["spec.networks"]
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] in ACTIONS
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert spec["completions"] == spec["parallelism"] and job["replicas"] == 1
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy needs it


def test_job_template_has_the_fields_of_its_type(jobset):
    """By the models of the Kubernetes client, which refuse what they do not know."""
    models = pytest.importorskip("kubernetes.client.models", reason="the package kubernetes is not installed")
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    models.V1JobSpec.model_validate(spec)
    with pytest.raises(ValueError, match="completionsMode"):
        models.V1JobSpec.model_validate({**spec, "completionsMode": "Indexed"})
    pod = spec["template"]["spec"]
    claimed = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == claimed


def test_jobset_restarts_without_limit_after_code_75_only(jobset):
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    by_code, by_condition = spec["podFailurePolicy"]["rules"]
    container = spec["template"]["spec"]["containers"][0]["name"]
    assert by_code["onExitCodes"] == {"containerName": container, "operator": "In", "values": [75]}
    assert by_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert by_code["action"] == by_condition["action"] == "FailJob"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"] == [
        {
            "name": "stopped",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    assert policy["maxRestarts"] == 3


def test_pods_find_each_other(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    annotations = {
        "metadata.annotations['jobset.sigs.k8s.io/jobset-name']": jobset["metadata"]["name"],
        "metadata.annotations['jobset.sigs.k8s.io/replicatedjob-name']": job["name"],
    }
    environ = {
        item["name"]: item["value"] if "value" in item else annotations[item["valueFrom"]["fieldRef"]["fieldPath"]]
        for item in container["env"]
    }
    environ["JOB_COMPLETION_INDEX"] = "1"  # set by Kubernetes where completionMode is Indexed
    found = distributed.detect(environ)
    assert found == distributed.Launch("jobset", "dvsnas-workers-0-0.dvsnas:12355", spec["completions"], 1)
    assert container["ports"] == [{"containerPort": distributed.PORT}]


def test_the_jobset_of_the_smallest_run(jobset):
    """As its head makes it."""
    yaml = pytest.importorskip("yaml")
    command = re.search(
        r"^#   (sed .*) \| kubectl apply -f -$", (LAUNCH / "gke_jobset.yaml").read_text(), re.MULTILINE
    )[1]
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    made = yaml.safe_load(done.stdout)

    def container(spec: dict) -> dict:
        (found,) = spec["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        return found

    assert container(made)["args"] == ["search", "--config=configs/smoke.py", "--workdir=/runs/smoke"]
    container(made)["args"] = container(jobset)["args"]
    assert made == jobset


# --- the image ----------------------------------------------------------------------------------------------------


INSTRUCTIONS = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


@pytest.fixture(name="image")
def _image() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their words, in their order."""
    lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in logical if line.strip()]


def words_of(image: list[tuple[str, str]], instruction: str) -> list[str]:
    return [words for name, words in image if name == instruction]


def ignored(path: str) -> bool:
    """Whether `docker build` leaves a path out: the last pattern that fits it decides."""
    found = False
    for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = pathlib.PurePath(path).parts if line.startswith("**/") else (pathlib.PurePath(path).parts[0],)
            if any(fnmatch.fnmatch(part, pattern) for part in parts):
                found = not line.startswith("!")
    return found


def test_image_is_built_from_what_is_there(image):
    assert {name for name, _ in image} == INSTRUCTIONS
    (base,) = words_of(image, "FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim-bookworm", base)
    assert version and int(version[1]) >= int(re.search(r'requires-python = ">=3\.(\d+)"', PROJECT.read_text())[1])
    copied = [source for words in words_of(image, "COPY") for source in words.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists() or ignored(source)] == []
    assert {"dvsnas_jax", "configs", "pyproject.toml", "constraints.txt"} <= set(copied)
    assert ignored(".git") and ignored(".venv/bin/python") and ignored("runs/a") and ignored("tests/trees.py")
    assert ignored("dvsnas_jax/core/__pycache__/x.pyc") and not ignored("dvsnas_jax/core/errors.py")


def test_image_runs_the_command_as_a_user_of_its_own(image):
    project = tomllib.loads(PROJECT.read_text())["project"]
    (entry,) = words_of(image, "ENTRYPOINT")
    assert json.loads(entry) == ["tini", "--", "dvsnas"] and json.loads(words_of(image, "CMD")[0]) == ["--help"]
    assert "dvsnas" in project["scripts"]
    names = [name for name, _ in image]
    assert words_of(image, "USER") == ["dvsnas"] and names.index("USER") > max(
        number for number, name in enumerate(names) if name in ("RUN", "COPY")
    )
    head = (LAUNCH / "Dockerfile").read_text()
    extras = set(re.findall(r"EXTRA=(\w+)", head + (LAUNCH / "gke_jobset.yaml").read_text()))
    assert extras == {"cuda", "tpu"} <= set(project["optional-dependencies"])
    assert "jax[cuda12]" in head and project["optional-dependencies"]["cuda"] == ["jax[cuda12]"]


def test_image_installs_the_extra_that_it_is_built_with(image, tmp_path):
    """The line of the Dockerfile, as the shell of the image reads it."""
    (line,) = [words for words in words_of(image, "RUN") if words.startswith("pip")]
    executable(tmp_path, "pip", 'echo "$@"')
    for extra, wanted in (("", "."), ("cuda", ".[cuda]")):
        done = run(["sh", "-c", line], tmp_path, EXTRA=extra)
        assert done.stdout == f"install -c constraints.txt -e {wanted}\n"


def test_jobset_runs_the_image(jobset, image):
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == json.loads(words_of(image, "ENTRYPOINT")[0])
    assert container["workingDir"] == words_of(image, "WORKDIR")[0]
    assert f"USER_ID={pod['securityContext']['runAsUser']}" in words_of(image, "ARG")
    assert pod["securityContext"]["fsGroup"] == 1000
    (wait,) = [item["value"] for item in container["env"] if item["name"] == "DVSNAS_START_TIMEOUT"]
    assert distributed.start_seconds({"DVSNAS_START_TIMEOUT": wait}) == 1800


@pytest.mark.parametrize("types, tests, code", [(0, 0, 0), (1, 0, 1), (0, 5, 5), (1, 5, 1)])
def test_a_wrong_type_fails_the_tests_that_run_beside_the_check(tmp_path, types, tests, code):
    (tmp_path / "launch").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "launch" / "test.sh").write_text((LAUNCH / "test.sh").read_text())
    (tmp_path / "launch" / "setup.sh").write_text("install_into_venv() { :; }\n")
    executable(tmp_path, "id", "echo 1")  # not root: nothing is installed
    executable(tmp_path / ".venv" / "bin", "ruff", "true")
    executable(tmp_path / ".venv" / "bin", "mypy", f"echo types of $1; exit {types}")
    executable(tmp_path / ".venv" / "bin", "python", f'echo "$@"; exit {tests}')
    done = run(["bash", "launch/test.sh"], tmp_path)
    assert done.returncode == code and "types of dvsnas_jax\n" in done.stdout
    assert "-m pytest -q -n 2 --dist loadfile --no-loadscope-reorder\n" in done.stdout
    done = run(["bash", "launch/test.sh", "-m", "slow"], tmp_path)
    assert done.returncode == (types or tests) and done.stdout.endswith("" if types else "-m pytest -q -m slow\n")
