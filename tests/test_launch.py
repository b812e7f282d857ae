"""The launch scripts: linted, restarted after code 75, and fitting what `core.distributed` reads."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from dvsnas_jax.core import distributed

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
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


def test_tpu_hosts_start_again_after_a_stop(tmp_path):
    """`gcloud` runs what it is given, as a host would: stopped twice, then done."""
    remote = tmp_path / "remote"
    (remote / ".venv" / "bin").mkdir(parents=True)
    body = 'echo "$DVSNAS_TPU_POD $EXTRA $*" >> calls.txt; [ "$(wc -l < calls.txt)" -ge 3 ] || exit 75'
    executable(remote / ".venv" / "bin", "dvsnas", body)
    body = 'printf "%s|" "${@:1:7}" > gcloud.txt; last="${@: -1:1}"; exec bash -c "${last#--command=}"'
    executable(tmp_path, "gcloud", body)
    words = [str(LAUNCH / "tpu_pod.sh"), "search", "--workdir=a b", "--config=$HOME"]
    known = {"TPU_NAME": "t", "ZONE": "z", "REMOTE_DIR": str(remote), "RESTART_SECONDS": "0"}
    done = run(words, tmp_path, **known, REMOTE_ENV="EXTRA=1")
    assert done.returncode == 0, done.stderr
    assert (remote / "calls.txt").read_text() == "1 1 search --workdir=a b --config=$HOME\n" * 3
    assert (tmp_path / "gcloud.txt").read_text() == "compute|tpus|tpu-vm|ssh|t|--zone=z|--worker=all|"

    executable(remote / ".venv" / "bin", "dvsnas", "echo >> failed.txt; exit 2")
    assert run(words, tmp_path, **known).returncode == 2
    executable(remote / ".venv" / "bin", "dvsnas", "echo >> failed.txt; exit 75")
    assert run(words, tmp_path, **known, MAX_RESTARTS="2").returncode == 75
    assert len((remote / "failed.txt").read_text().splitlines()) == 1 + 3


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
