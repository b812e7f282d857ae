"""The command line: exit codes, one-line errors, help with an example, overrides."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from dvsnas_jax import cli
from dvsnas_jax.core import errors
from dvsnas_jax.space import genotype

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = ("search", "train", "evaluate", "compare", "reproduce", "show", "data preview", "report", "bench", "doctor")
SPACE = genotype.Space(inputs=("prev_state", "decoder"), num_layers=2)
TOKENS = np.asarray([[0, 1, 4, 1, 2], [2, 1, 0, 3, 0]], np.int32)


_SCORES = {
    "miou": 0.5, "fwiou": 0.6, "accuracy": 0.7, "class_accuracy": 0.61, "vc": {"8": None}, "flicker": 0.1,
    "flow_consistency": None,
}  # fmt: skip
RESULT = {
    "split": "val",
    "num_frames": 12,
    "static": {**_SCORES, "ms_per_frame": 3.5},
    "cell": {**_SCORES, "miou": 0.555, "vc": {"8": 0.8}, "flicker": 0.05},
    "static_clean": None,
    "commonest_class": _SCORES,
}


def _process(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dvsnas_jax", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def _install(monkeypatch, name: str, **functions) -> None:
    """Puts a module in place of one that a command imports."""
    module = types.ModuleType(name)
    for key, function in functions.items():
        setattr(module, key, function)
    monkeypatch.setitem(sys.modules, name, module)
    package, _, leaf = name.rpartition(".")
    monkeypatch.setattr(sys.modules.get(package) or __import__(package, fromlist=["x"]), leaf, module, raising=False)


@pytest.fixture(autouse=True)
def _keep_environment(monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "")) if name in os.environ else monkeypatch.delenv(
            name, raising=False
        )
    yield
    os.environ.pop("JAX_ENABLE_COMPILATION_CACHE", None)


@pytest.fixture
def genotype_file(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(genotype.to_dict(SPACE, TOKENS), indent=1))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    (example,) = re.findall(r"^example: dvsnas (.+)$", capsys.readouterr().out, re.MULTILINE)
    words, _ = cli.split_overrides(example.split())
    while words and command == "data" and words[0] != "preview":
        words.pop(0)
    arguments = cli._parser().parse_args(words)
    assert arguments.command == command.split()[0]
    for word in words:
        if word.startswith("--config="):
            assert (ROOT / word.removeprefix("--config=")).is_file()


def test_help_is_fast_and_needs_no_jax():
    code = (
        "import sys\nfrom dvsnas_jax import cli\ntry:\n  cli.main(['--help'])\nexcept SystemExit:\n  pass\n"
        "print([m for m in ('jax', 'numpy', 'flax', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "required: COMMAND"),
        ("serch", "invalid choice: 'serch'"),
        ("search --config=configs/smoke.py", "required: --workdir"),
        ("search --config=nope.py --workdir=w", "no such file: nope.py"),
        ("search --conf=configs/smoke.py --workdir=w", "unrecognized arguments: --conf=configs/smoke.py"),
        ("search --workdir=w", "--config: is needed, as w holds no run .*give a Python file"),
        ("ablate --workdir=configs", "--config: is needed, as configs holds no run .*give a Python file"),
        ("evaluate --model=configs", "--config: is needed; give a Python file"),
        ("search --config=configs/smoke.py --workdir=w --fast", "unrecognized arguments: --fast"),
        ("search --config=configs/smoke.py --workdir=w --config.search.stepss=3", "did you mean 'search.steps'"),
        ("search --config=configs/smoke.py --workdir=w --config.search.steps=many", "needs an int .* got 'many'"),
        ("search --config=configs/smoke.py --workdir=w --config.search.steps", "--config.search.steps: needs a value"),
        ("train --config=configs/smoke.py --workdir=w --genotype=nope.json", "--genotype: nope.json does not exist"),
        ("evaluate --config=configs/smoke.py --workdir=nope", "--workdir: nope does not exist"),
        ("report --workdir=nope", "--workdir: nope does not exist"),
        ("show nope.json", "nope.json does not exist"),
        ("show x.json --config.search.steps=3", "the command show takes no config"),
        ("data preview --config=configs/smoke.py --output=x.mp4", "must end in .png"),
        ("bench everything", "invalid choice: 'everything'"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(words.split()) == errors.EXIT_USER
    captured = capsys.readouterr()
    assert re.fullmatch(rf"dvsnas: error: .*{message}.*\n", captured.err)
    assert captured.out == ""


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("sep_conv_3x3", "sep_conv_9x9", "layer 0, field ops: unknown name 'sep_conv_9x9'"),
        (
            '"prev_state",\n    "decoder"\n   ]',
            '"layer1",\n    "decoder"\n   ]',
            "layer 0, field in: forward reference",
        ),
        ("{", "", "not JSON"),
    ],
)
def test_show_of_a_bad_genotype_file(before, after, message, genotype_file, capsys):
    text = genotype_file.read_text()
    assert before in text
    genotype_file.write_text(text.replace(before, after))
    assert cli.main(["show", str(genotype_file)]) == errors.EXIT_USER
    err = capsys.readouterr().err
    assert message in err
    assert str(genotype_file) in err
    assert err.count("\n") == 1


def test_show_prints_the_graph_and_draws_it(genotype_file, tmp_path, capsys):
    for suffix, start in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
        output = tmp_path / "new" / f"cell{suffix}"
        assert cli.main(["show", str(genotype_file), f"--output={output}"]) == 0
        assert output.read_bytes().startswith(start)
    out = capsys.readouterr().out
    for name in ("prev_state", "decoder", "sep_conv_3x3", "skip", "gate", "layer1", "conv_3x3", "output"):
        assert name in out
    assert genotype.digest(SPACE, TOKENS) in out


def test_search_passes_the_config_and_the_folder_on(tmp_path, monkeypatch, capsys):
    calls = []

    def run(config, folder):
        calls.append((config.search.steps, config.data.scale, folder.path))
        return RESULT

    _install(monkeypatch, "dvsnas_jax.search.pipeline", run=run)
    _install(monkeypatch, "dvsnas_jax.report.page", write=calls.append)
    words = ["search", f"--config={ROOT}/configs/smoke.py", f"--workdir={tmp_path}", "--config.data.scale", "1,2"]
    assert cli.main([*words, "--config.search.steps=77"]) == 0
    assert calls == [(77, (1.0, 2.0), tmp_path), tmp_path], "searched, and a page written"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "val, 12 frames" and len(lines) == 5
    assert lines[2].split() == ["static", "network", "50.0", "60.0", "70.0", "61.0", "-", "10.0", "-", "-", "3.5"]
    assert lines[3].split() == ["with", "the", "cell", "55.5", "60.0", "70.0", "61.0", "80.0", "5.0", "-", "-", "-"]


def test_stopped_is_75_and_interrupt_is_1_and_a_fault_raises(tmp_path, monkeypatch, capsys):
    words = ["search", f"--config={ROOT}/configs/smoke.py", f"--workdir={tmp_path}"]
    for error, code, message in (
        (errors.Stopped("after step 3"), 75, "stopped (after step 3), state saved; start the same command again"),
        (errors.UserError("two\nlines"), 2, "dvsnas: error: two lines"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ):

        def run(config, folder, error=error):
            raise error

        _install(monkeypatch, "dvsnas_jax.search.pipeline", run=run)
        assert cli.main(words) == code
        assert message in capsys.readouterr().err

    def fail(config, folder):
        raise RuntimeError("a fault of ours")

    _install(monkeypatch, "dvsnas_jax.search.pipeline", run=fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main(words)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG])
def test_what_the_file_system_refuses_is_one_line_that_names_the_file(number, tmp_path, monkeypatch, capsys):
    def run(config, folder):
        raise OSError(number, os.strerror(number), "runs/a/metrics.jsonl")

    _install(monkeypatch, "dvsnas_jax.search.pipeline", run=run)
    assert cli.main(["search", f"--config={ROOT}/configs/smoke.py", f"--workdir={tmp_path}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"dvsnas: error: runs/a/metrics.jsonl: {os.strerror(number)}; ") and line.count("\n") == 1


def test_a_device_without_memory_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys):
    def run(config, folder):
        jax.numpy.zeros((1 << 50,), "int8").block_until_ready()

    _install(monkeypatch, "dvsnas_jax.search.pipeline", run=run)
    assert cli.main(["search", f"--config={ROOT}/configs/smoke.py", f"--workdir={tmp_path}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("dvsnas: error: memory: Out of memory allocating 1125899906842624 bytes; lower the sizes (")
    assert line.count("\n") == 1


def test_compile_cache_default_and_switch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # put back at the end, also for later processes
    _install(monkeypatch, "dvsnas_jax.bench.controller_speed", run=lambda: {})
    assert cli.main(["bench", "controller"]) == 0
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "dvsnas_jax" / "xla")
    assert cli.main(["bench", "controller", "--no-compile-cache"]) == 0
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--help"], 0, ""),
        (["search"], 2, "dvsnas: error: the following arguments are required: --workdir"),
        (["show", "nope.json"], 2, "dvsnas: error: GENOTYPE.json: nope.json does not exist"),
    ],
)
def test_exit_codes_of_the_process(words, code, message):
    done = _process(*words)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)


_WAITING = """
import sys, time, types
from dvsnas_jax import cli
from dvsnas_jax.core import errors
from dvsnas_jax.core.processes import signals
import dvsnas_jax.search
def run(config, folder):
    with signals.stop_on_signal() as stop:
        print("ready", flush=True)
        for _ in range(1000):
            time.sleep(0.02)
            if stop.requested:
                raise errors.Stopped("here")
    return {}
module = types.ModuleType("dvsnas_jax.search.pipeline")
module.run = run
sys.modules[module.__name__] = dvsnas_jax.search.pipeline = module
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_process_with_75(number, tmp_path):
    words = ["search", "--config=configs/smoke.py", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == errors.EXIT_STOPPED
    assert "state saved" in err


def test_another_config_in_the_run_folder_is_refused(tmp_path, monkeypatch, capsys):
    def run(config, folder):
        folder.claim(config)
        folder.append("metrics.jsonl", {"stage": "pretrain", "step": 1})
        return RESULT

    _install(monkeypatch, "dvsnas_jax.search.pipeline", run=run)
    words = ["search", f"--config={ROOT}/configs/smoke.py", f"--workdir={tmp_path}"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--config.seed=5"]) == errors.EXIT_USER
    assert "these keys differ: seed; use another --workdir" in capsys.readouterr().err
