"""Odd inputs of every kind: each works, or is told in one line with exit code 2, and nothing is written or lost.

`words` are those of a command that runs in the test's own folder, after `prepare` has put files there. `line` has to be
in the refusal; None: the words are accepted. `value` has to be in what is printed, or is checked by a function.
"""

import json
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import command_line
import numpy as np
import pytest
import safetensors.numpy
import trees

from dvsnas_jax.bench import controller_speed, search_speed
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import locking
from dvsnas_jax.deploy import load as load_lib

SMOKE = command_line.SMOKE
CONFIG = SMOKE.removeprefix("--config=")
LAYER = '{"in": ["prev_state", "decoder"], "ops": ["skip", "conv_1x1"], "agg": "sum"}'
GENOTYPE = f'{{"version": 1,\n "inputs": ["prev_state", "decoder"],\n "layers": [{LAYER}]}}\n'
GRAPH = "layer0 = sum( skip(prev_state), conv_1x1(decoder) )"
LONG = "x" * 300


class Odd(NamedTuple):
    """An odd input.

    Attributes:
      name: of the test.
      words: of the command; a text is split at its blanks.
      line: what the refusal says; None: it is none.
      prepare: puts files into the folder.
      value: of what works, in its output.
      check: of what works, on the folder.
    """

    name: str
    words: str | tuple[str, ...]
    line: str | None = None
    prepare: Callable[[pathlib.Path], object] = lambda tmp: None
    value: str = ""
    check: Callable[[pathlib.Path], object] = lambda tmp: True


def put(name: str, content: str | bytes = "") -> Callable[[pathlib.Path], pathlib.Path]:
    """Writes a file."""

    def write(tmp: pathlib.Path) -> pathlib.Path:
        path = tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def folder(name: str) -> Callable[[pathlib.Path], object]:
    """Makes a folder."""
    return lambda tmp: (tmp / name).mkdir(parents=True)


def link(name: str, target: str) -> Callable[[pathlib.Path], object]:
    """Makes a symbolic link."""
    return lambda tmp: (tmp / name).symlink_to(target)


def images(*names: str, size: tuple[int, int] = (16, 12)) -> Callable[[pathlib.Path], object]:
    """Writes pictures."""
    return lambda tmp: [trees.save(tmp / name, trees.frame(name, size)) for name in names]


def tensors(name: str, **values: np.ndarray) -> Callable[[pathlib.Path], object]:
    """Writes a safetensors file."""
    return lambda tmp: safetensors.numpy.save_file(values, tmp / name)


def archive(name: str, **entries: bytes) -> Callable[[pathlib.Path], object]:
    """Writes a zip file."""

    def write(tmp: pathlib.Path) -> None:
        with zipfile.ZipFile(tmp / name, "w") as out:
            for entry, content in entries.items():
                out.writestr(entry.replace("__", "/"), content)

    return write


def both(*steps: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], object]:
    """One after another."""
    return lambda tmp: [step(tmp) for step in steps]


def run_folder(name: str = "run", **changes: str) -> Callable[[pathlib.Path], object]:
    """A run folder with a config and a winner."""
    return lambda tmp: command_line.write_run(tmp / name, config_lib.load(CONFIG, changes))


def stored(key: str) -> Callable[[pathlib.Path], object]:
    """Reads a key of the config that the run folder `w` keeps."""

    def read(tmp: pathlib.Path) -> object:
        value = json.loads((tmp / "w" / "config.json").read_text())
        for part in key.split("."):
            value = value[part]
        return value

    return read


def config(body: str | bytes) -> Callable[[pathlib.Path], object]:
    """A config file `c.py`."""
    return put("c.py", body)


def returning(value: str, head: str = "") -> Callable[[pathlib.Path], object]:
    """A config file whose `get_config` returns something."""
    return config(f"{head}\ndef get_config():\n    return {value}\n")


CONV1 = np.zeros((64, 3, 7, 7), np.float32)
IMPORT = "weights import some.safetensors --net=resnet18 --output=out --partial"
SEARCH = f"search {SMOKE} --workdir=w"
SMALL = " ".join(f"--config.data.{key}" for key in ("num_train_clips=4", "num_val_clips=1", "height=32", "width=32"))
OWN = f"search --config=c.py --workdir=w {SMALL}"
REPLAY = "compare-strategies --table --strategies=random --seeds=1 --budget=2"

GENOTYPES = [
    Odd("byte-order mark", "show g.json", None, put("g.json", b"\xef\xbb\xbf" + GENOTYPE.encode()), GRAPH),
    Odd("lines of Windows", "show g.json", None, put("g.json", GENOTYPE.replace("\n", "\r\n")), GRAPH),
    Odd("UTF-16", "show g.json", "g.json: no text in UTF-8", put("g.json", GENOTYPE.encode("utf-16"))),
    Odd("empty genotype", "show g.json", "g.json: empty, not JSON", put("g.json")),
    Odd("zero bytes after a crash", "show g.json", "g.json: empty, not JSON", put("g.json", b"\0" * 200)),
    Odd("folder as genotype", "show d", "d: is a folder; give a genotype file", folder("d")),
    Odd("run folder as genotype", "show run", "run/best_genotype.json", run_folder()),
    Odd("brackets without end", "show g.json", "not usable JSON", put("g.json", "[" * 100_000)),
    Odd("number of 5000 digits", "show g.json", "not usable JSON", put("g.json", "1" * 5000)),
    Odd("comma too many", "show g.json", "not JSON", put("g.json", GENOTYPE.replace('"sum"', '"sum",'))),
    Odd(
        "newer version", "show g.json", 'version 2, "version" must be 1', put("g.json", GENOTYPE.replace("1,", "2,", 1))
    ),
    Odd(
        "version true",
        "show g.json",
        'version True, "version" must be 1',
        put("g.json", GENOTYPE.replace("1,", "true,", 1)),
    ),
    Odd(
        "key twice",
        "show g.json",
        "the key 'inputs' twice in one object",
        put("g.json", GENOTYPE.replace('"inputs"', '"inputs": ["decoder"], "inputs"')),
    ),
    Odd("list as genotype", "show g.json", "needs an object", put("g.json", "[]")),
    Odd("no layers", "show g.json", "needs an object", put("g.json", GENOTYPE.replace(LAYER, ""))),
    Odd(
        "names as one text",
        "show g.json",
        "field ops",
        put("g.json", GENOTYPE.replace('["skip", "conv_1x1"]', '"skip"')),
    ),
    Odd(
        "capital letter",
        "show g.json",
        "did you mean 'conv_1x1'?",
        put("g.json", GENOTYPE.replace("conv_1x1", "Conv_1x1")),
    ),
    Odd("link in a circle", "show l.json", "Too many levels of symbolic links", link("l.json", "l.json")),
    Odd("link to nothing", "show l.json", "does not exist", link("l.json", "gone.json")),
    Odd("file name of 300 letters", f"show {LONG}", "File name too long"),
    Odd("zoo in capitals", "show zoo:GRFP", "did you mean 'zoo:grfp'?"),
    Odd("zoo without its mark", "show grfp", "did you mean 'zoo:grfp'?"),
    Odd("picture where a folder is", "show zoo:grfp --output=a.svg", "--output: a.svg is a folder", folder("a.svg")),
    Odd("picture with a long name", f"show zoo:grfp --output={LONG}.svg", "File name too long"),
    Odd("picture without a suffix", "show zoo:grfp --output=svg", "must end in .svg or .png"),
    Odd(
        "picture with blanks and umlauts",
        ("show", "zoo:grfp", "--output=mein Bild/Zelle ü.svg"),
        check=lambda tmp: (tmp / "mein Bild" / "Zelle ü.svg").read_bytes()[:5] == b"<?xml",
    ),
]

WEIGHTS = [
    Odd("text as weights", "weights inspect x.pth", "neither a .safetensors file nor", put("x.pth", "hello there")),
    Odd("empty weights", "weights inspect x.pth", "neither a .safetensors file nor", put("x.pth")),
    Odd("folder as weights", "weights inspect d.pth", "Is a directory", folder("d.pth")),
    Odd("other zip as weights", "weights inspect x.pth", "no archive of tensors", archive("x.pth", a=b"x")),
    Odd("one byte of a pickle", "weights inspect x.pth", "broken or cut off", put("x.pth", b"\x80")),
    Odd(
        "header longer than the file",
        "weights inspect x",
        "not a whole safetensors",
        put("x", struct.pack("<Q", 10**12) + b"{}"),
    ),
    Odd(
        "width that is no number",
        f"{IMPORT} --width=nan",
        "--width: must be above 0",
        tensors("some.safetensors", a=CONV1),
    ),
    Odd(
        "classes below none",
        f"{IMPORT} --classes=-2",
        "--classes: must be at least 1",
        tensors("some.safetensors", a=CONV1),
    ),
    Odd(
        "weights into an exported folder",
        IMPORT,
        "no folder of weights and not empty",
        both(
            tensors("some.safetensors", **{"conv1.weight": CONV1}),
            put("out/manifest.json", '{"format": "dvsnas", "version": 1}'),
            put("out/weights.safetensors", "x"),
        ),
    ),
    Odd(
        "weights into a file",
        IMPORT,
        "--output: cannot write the folder out",
        both(tensors("some.safetensors", **{"conv1.weight": CONV1}), put("out", "x")),
    ),
]

CONFIGS = [
    Odd("empty config", OWN, "defines no function get_config()", config("")),
    Odd("syntax error", OWN, "c.py, line 1: syntax error", config("def get_config(:\n")),
    Odd("config returns nothing", OWN, "it returned NoneType; end it with `return config`", returning("None")),
    Odd(
        "config raises",
        OWN,
        "c.py, line 3: ValueError: bad luck",
        config("\ndef get_config():\n  raise ValueError('bad\\nluck')\n"),
    ),
    Odd("config ends the program", OWN, "c.py, line 1: SystemExit: 3", config("raise SystemExit(3)\n")),
    Odd("config with zero bytes", OWN, "syntax error", config(b"x = 1\n\0")),
    Odd(
        "config with a byte-order mark",
        OWN,
        prepare=config(b"\xef\xbb\xbfdef get_config():\n  return {'seed': 4}\n"),
        check=lambda tmp: stored("seed")(tmp) == 4,
    ),
    Odd("misspelt section", OWN, "did you mean 'search.steps'?", returning("{'serach': {'steps': 3}}")),
    Odd("number for a section", OWN, "config key 'search' is a section", returning("{'search': 3}")),
    Odd("key that is a number", OWN, "unknown config key '1'; the sections are", returning("{1: 3}")),
    Odd(
        "tuple as a text", OWN, "space.operations: needs a tuple of str", returning("{'space': {'operations': 'skip'}}")
    ),
    Odd(
        "nan", OWN, "pretrain.learning_rate: needs a float", returning("{'pretrain': {'learning_rate': float('nan')}}")
    ),
    Odd(
        "NumPy's numbers",
        OWN,
        prepare=returning("{'seed': np.int64(3), 'net': {'width': np.float32(0.5)}}", "import numpy as np"),
        check=lambda tmp: (stored("seed")(tmp), stored("net.width")(tmp)) == (3, 0.5),
    ),
    Odd(
        "path object",
        OWN,
        prepare=returning("{'data': {'dir': pathlib.Path('/a/b')}}", "import pathlib"),
        check=lambda tmp: stored("data.dir")(tmp) == "/a/b",
    ),
    Odd(
        "operation twice",
        OWN,
        "space.operations: needs distinct names",
        returning("{'space': {'operations': ('skip', 'skip')}}"),
    ),
    Odd(
        "JSON of a run as config",
        "search --config=run/config.json --workdir=w",
        prepare=run_folder(seed="7"),
        check=lambda tmp: stored("seed")(tmp) == 7,
    ),
    Odd("run folder as config", "search --config=run --workdir=w", "is a run folder; give its config", run_folder()),
    Odd("folder as config", "search --config=d --workdir=w", "no such file: d", folder("d")),
    Odd("config of 300 letters", f"search --config={LONG} --workdir=w", "File name too long"),
    Odd("override of nothing", f"{SEARCH} --config.=3", "unknown config key ''"),
    Odd("override with blanks", (*SEARCH.split(), "--config.seed= 5 "), check=lambda tmp: stored("seed")(tmp) == 5),
    Odd("override twice", f"{SEARCH} --config.seed=1 --config.seed=2", check=lambda tmp: stored("seed")(tmp) == 2),
    Odd("one dash", f"{SEARCH} -config.seed=3", "did you mean --config.seed?"),
    Odd("yes for true", f"{SEARCH} --config.data.flip=yes", "needs a bool (true or false), got 'yes'"),
    Odd("comma for a point", f"{SEARCH} --config.pretrain.learning_rate=0,5", "needs a float"),
    Odd("infinite rate", f"{SEARCH} --config.pretrain.learning_rate=1e400", "needs a float"),
    Odd(
        "leaf of several sections",
        f"{SEARCH} --config.batch_size=3",
        "did you mean 'pretrain.batch_size' or 'search.batch_size' or 'train.batch_size'?",
    ),
    Odd("scale the wrong way round", f"{SEARCH} --config.data.scale=2,1", "must be (smallest, largest)"),
    Odd("name in capitals", f"{SEARCH} --config.data.name=CamVid", "must be one of synthetic, camvid"),
]

FOLDERS = [
    Odd("variable that is not set", f"search {SMOKE} --workdir=", "--workdir: an empty value"),
    Odd("empty word", ("show", ""), "an empty value"),
    Odd("file as run folder", SEARCH, "--workdir: cannot write the folder w", put("w", "x")),
    Odd("run folder below a file", f"search {SMOKE} --workdir=f/w", "--workdir: cannot write", put("f", "x")),
    Odd("run folder on /proc", f"search {SMOKE} --workdir=/proc/x", "--workdir: cannot write"),
    Odd("run folder of 300 letters", f"search {SMOKE} --workdir={LONG}", "--workdir: cannot write the folder"),
    Odd("training in 300 letters", f"train {SMOKE} --workdir={LONG}", "File name too long; choose another --workdir"),
    Odd("evaluation of 300 letters", f"evaluate --workdir={LONG}", "File name too long"),
    Odd("report of 300 letters", f"report {LONG}", "File name too long"),
    Odd("data of 300 letters", f"{SEARCH} --config.data.name=camvid --config.data.dir={LONG}", "no such dataset"),
    Odd("check of 300 letters", f"data check {LONG}", "no such folder"),
    Odd(
        "prepared data of 300 letters",
        f"{SEARCH} --config.data.name=camvid --config.data.prepared={LONG}",
        "File name too long; give a shorter path",
    ),
    Odd("teacher of 300 letters", f"{SEARCH} --config.pretrain.teacher={LONG}", "pretrain.teacher: "),
    Odd("run folder that is a link to itself", SEARCH, "--workdir: cannot write", link("w", "w")),
    Odd("profile in a file", f"bench search {SMOKE} --profile=f/p", "--profile: cannot write f/p", put("f")),
    Odd(
        "run folder with two dots",
        f"search {SMOKE} --workdir=a/../w",
        prepare=folder("a"),
        check=lambda tmp: (tmp / "w/config.json").is_file(),
    ),
    Odd(
        "run folder with blanks",
        ("search", SMOKE, "--workdir=my runs/größe"),
        check=lambda tmp: (tmp / "my runs/größe/config.json").is_file(),
    ),
    Odd(
        "run folder at home",
        f"search {SMOKE} --workdir=~/w",
        check=lambda tmp: (tmp / "home/w/config.json").is_file() and not (tmp / "~").exists(),
    ),
    Odd(
        "data at home",
        f"{SEARCH} --config.data.dir=~/data",
        check=lambda tmp: stored("data.dir")(tmp) == str(tmp / "home/data"),
    ),
    Odd("torn config of a run", SEARCH, "not JSON", put("w/config.json", '{"seed": 0, ')),
    Odd("run of a newer program", SEARCH, "unknown config key 'newkey'", put("w/config.json", '{"newkey": 5}')),
    Odd(
        "number as a run's config",
        SEARCH,
        "must hold a configuration, sections of keys, got int",
        put("w/config.json", "3"),
    ),
]

OUTPUTS = [
    Odd(
        "picture of data in a folder of its name",
        f"data preview {SMOKE} --output=d.png",
        "choose another --output",
        folder("d.png"),
    ),
    Odd("no frames", f"data preview {SMOKE} --output=x.png --frames=0", "--frames: must be at least 1"),
    Odd("video before the first", f"data preview {SMOKE} --output=x.gif --video=-1", "--video: must be from 0 to 1"),
    Odd(
        "split in capitals", f"data preview {SMOKE} --output=x.png --split=Train", "choose from 'train', 'val', 'test'"
    ),
    Odd(
        "frames of any size",
        "data prepare --config=c.py --output=o --height=99999999 --width=99999999",
        "memory: ",
        both(
            returning("{'data': {'name': 'camvid', 'dir': 'cv'}}"),
            lambda tmp: trees.camvid_segnet(tmp / "cv", splits=("val",)),
        ),
    ),
    Odd("figures into nowhere", "bench controller --json=none/x.json", "--json: cannot write none/x.json"),
    Odd("figures into a folder", "bench controller --json=.", "--json: cannot write ."),
    Odd("none of an option of another part", "bench controller --candidates=0", "only `dvsnas bench search` takes it"),
    Odd("speed that is no number", "bench search --tflops=nan", "--tflops: must be above 0, got nan"),
    Odd("more than all", "bench search --tflops-share=2", "--tflops-share: must be above 0 and at most 1"),
    Odd("two parts", "bench controller cell", "unrecognized arguments: cell"),
    Odd("misspelt option", "show zoo:grfp --ouput=x.svg", "did you mean --output? (see dvsnas show --help)"),
]

STRATEGIES = [
    Odd("no seeds", "compare-strategies --table --seeds=0", "--seeds: must be at least 1"),
    Odd("budget that is no number", f"{REPLAY} --budget=nan", "--budget: must be a share"),
    Odd("endless budget", f"{REPLAY} --budget=inf", "--budget: must be a share"),
    Odd("budget of half a cell", f"{REPLAY} --budget=2.5", "--budget: must be a share"),
    Odd("steps larger than the budget", f"{REPLAY} --per-step=1000000", value="1 runs of 2 evaluations"),
    Odd("near strategy", f"{REPLAY} --strategies=PPO", "--strategies: unknown name 'PPO', did you mean 'ppo'?"),
    Odd("strategy twice", f"{REPLAY} --strategies=ppo,ppo", "--strategies: needs distinct names"),
    Odd("report in a file", f"{REPLAY} --output=f/x", "--output: ", put("f", "x")),
    Odd("folder as table", "compare-strategies --table=d", "--table: d: cannot be read (Is a directory)", folder("d")),
    Odd("tau that is no number", "compare-strategies --made-up --tau=nan", "--tau: must be above 0 and at most 1"),
    Odd("made-up budget of a half", "compare-strategies --made-up --budget=2.5", "--budget: must be a whole number"),
]

RUNS = [
    Odd(
        "retrained from a file with a byte-order mark",
        f"train {SMOKE} --workdir=w --genotype=g.json",
        None,
        put("g.json", b"\xef\xbb\xbf" + GENOTYPE.encode()),
    ),
    Odd(
        "retrained from UTF-16",
        f"train {SMOKE} --workdir=w --genotype=g.json",
        "no text in UTF-8",
        put("g.json", GENOTYPE.encode("utf-16")),
    ),
    Odd(
        "retrained from a folder",
        f"train {SMOKE} --workdir=w --genotype=d",
        "is a folder; give a genotype file",
        folder("d"),
    ),
    Odd("retrained from a name of 300 letters", f"train {SMOKE} --workdir=w --genotype={LONG}", "File name too long"),
    Odd("retrained without the zoo's mark", f"train {SMOKE} --workdir=w --genotype=grfp", "did you mean 'zoo:grfp'?"),
    Odd("network of any width", f"{SEARCH} --config.net.width=1e9", "lower net.width or net.decoder_channels"),
    Odd("decoder of any width", f"{SEARCH} --config.net.decoder_channels=100000000", "lower net.width"),
    Odd(
        "largest seed",
        f"{SEARCH} --config.seed=4294967295",
        check=lambda tmp: stored("seed")(tmp) == 4294967295,
    ),
    Odd(
        "evaluation of a folder that is no run",
        f"evaluate {SMOKE} --workdir=d",
        "d: holds no run (no config.json)",
        put("d/best_genotype.json", GENOTYPE),
    ),
    Odd(
        "predictions of a run without weights",
        "evaluate --workdir=run --predictions=new/p",
        "holds no trained static network",
        run_folder(),
    ),
    Odd(
        "predictions into a file",
        "evaluate --workdir=run --predictions=f",
        "--predictions: ",
        both(run_folder(), put("f")),
    ),
    Odd(
        "torn winner in an ablation",
        "ablate --workdir=run",
        "best_genotype.json: not JSON",
        both(run_folder(), put("run/best_genotype.json", GENOTYPE[:40])),
    ),
    Odd(
        "empty winner in an export",
        "export --workdir=run --output=out",
        "run",
        both(run_folder(), put("run/best_genotype.json")),
    ),
    Odd(
        "winner that is a list in a search",
        "search --workdir=run",
        "best_genotype.json: needs an object",
        both(run_folder(), put("run/best_genotype.json", "[]")),
    ),
    Odd(
        "identity that is a list",
        "train --workdir=run --genotype=zoo:grfp",
        "identity.json: needs a JSON object",
        both(run_folder(), put("run/identity.json", "[]")),
    ),
    Odd("seed of 2^32", f"{SEARCH} --config.seed=4294967296", "config key 'seed': must be "),
    Odd("seed of 20 digits", f"{SEARCH} --config.seed=99999999999999999999", "config key 'seed': must be "),
    Odd(
        "run's config in UTF-16", SEARCH, "w/config.json: no text in UTF-8", put("w/config.json", "{}".encode("utf-16"))
    ),
    Odd(
        "run's environment is a list",
        "train --workdir=run --genotype=zoo:grfp",
        None,
        both(run_folder(), put("run/environment.json", "[]")),
    ),
    Odd(
        "run's environment is torn",
        "train --workdir=run --genotype=zoo:grfp",
        None,
        both(run_folder(), put("run/environment.json", "{torn")),
    ),
    Odd(
        "one genotype under two spellings",
        f"compare {SMOKE} --workdir=w --genotypes=a.json,./a.json --seeds=1",
        None,  # one row, see `compare.Entry.key`
        put("a.json", GENOTYPE),
        check=lambda tmp: len(set(json.loads((tmp / "w/compare.jsonl").read_text())["genotypes"].values())) == 1,
    ),
    Odd("compared without the zoo's mark", f"compare {SMOKE} --workdir=w --genotypes=grfp", "did you mean 'zoo:grfp'?"),
    Odd(
        "genotype file with a comma in its name",
        ("compare", SMOKE, "--workdir=w", "--genotypes=x,y.json"),
        "genotype",
        put("x,y.json", GENOTYPE),
    ),
    Odd(
        "report over a run's config",
        "report run --output=run/config.json",
        "--output: run/config.json must end in .html",
        run_folder(),
    ),
    Odd("report as PDF", "report run --output=x.pdf", "--output: x.pdf must end in .html", run_folder()),
    Odd(
        "report where a folder is",
        "report run --output=d.html",
        "choose another --output",
        both(run_folder(), folder("d.html")),
    ),
    Odd(
        "report of a run that is not finished",
        "report run",
        prepare=run_folder(),
        check=lambda tmp: (tmp / "run/report.html").is_file(),
    ),
    Odd("report of no run", "report d", "d", folder("d")),
    Odd(
        "picture in a folder that a refusal must not make",
        "data preview --config=c.py --output=new/x.png",
        "no such",
        returning("{'data': {'name': 'folder', 'dir': 'none'}}"),
    ),
    Odd(
        "text as video",
        "segment t.mp4 --workdir=run --output=out/x.mp4",
        "t.mp4: no video that can be read",
        both(run_folder(), put("t.mp4", "hello")),
    ),
    Odd(
        "empty video",
        "segment t.mp4 --workdir=run --output=x.mp4",
        "t.mp4: the file is empty",
        both(run_folder(), put("t.mp4")),
    ),
    Odd(
        "folder without pictures",
        "segment d --workdir=run --output=x.mp4",
        "d: the folder holds no image",
        both(run_folder(), put("d/a.txt")),
    ),
    Odd(
        "pattern without match",
        ("segment", "*.avi", "--workdir=run", "--output=x.mp4"),
        "no file matches this pattern",
        run_folder(),
    ),
    Odd(
        "camera that is not there",
        "segment camera:99 --workdir=run --output=x.mp4",
        "camera:99: no such camera",
        run_folder(),
    ),
    Odd("video of 300 letters", f"segment {LONG} --workdir=run --output=x.mp4", "too long", run_folder()),
    Odd(
        "output of 300 letters",
        f"segment im --workdir=run --output={LONG}.mp4",
        "too long",
        both(run_folder(), images("im/a.png")),
    ),
    Odd(
        "output over the input",
        "segment a.mp4 --workdir=run --output=./a.mp4",
        "a.mp4",
        both(run_folder(), put("a.mp4", "x")),
    ),
    Odd(
        "summary over the input",
        "segment im --workdir=run --summary=im/a.png",
        "--summary: ",
        both(run_folder(), images("im/a.png")),
    ),
    Odd(
        "summary over the output",
        "segment im --workdir=run --output=x.mp4 --summary=x.mp4",
        "--summary: ",
        both(run_folder(), images("im/a.png")),
    ),
    Odd(
        "summary where a folder is",
        "segment im --workdir=run --summary=d",
        "--summary: ",
        both(run_folder(), images("im/a.png"), folder("d")),
    ),
    Odd(
        "masks into the frames",
        "segment im --workdir=run --masks=./im",
        "--masks: ./im is the folder of the input",
        both(run_folder(), images("im/a.png")),
    ),
    Odd(
        "one frame in thirty years",
        "segment im --workdir=run --output=x.mp4 --fps=1e-9",
        "--fps: must be from 0.001 to 1000",
        both(run_folder(), images("im/a.png")),
    ),
    Odd(
        "no frames a second",
        "segment im --workdir=run --output=x.mp4 --fps=nan",
        "--fps: must be from 0.001 to 1000",
        both(run_folder(), images("im/a.png")),
    ),
    Odd(
        "no frame at all",
        "segment im --workdir=run --output=x.mp4 --max-frames=0",
        "--max-frames: must be at least 1",
        both(run_folder(), images("im/a.png")),
    ),
    Odd(
        "AVI",
        "segment im --workdir=run --output=x.avi",
        "--output: x.avi must end in",
        both(run_folder(), images("im/a.png")),
    ),
    Odd("export into the run folder", "export --workdir=run --output=run", "run", run_folder()),
    Odd(
        "evaluation of a run folder as a model",
        f"evaluate {SMOKE} --model=run",
        "--model: run is no exported folder",
        run_folder(),
    ),
    Odd(
        "ablation of what is unknown",
        "ablate --config=run/config.json --workdir=run --what=leave_one_out",
        "did you mean 'leave-one-out'?",
        run_folder(),
    ),
    Odd(
        "none of the variants",
        "ablate --config=run/config.json --workdir=run --limit=0",
        "--limit: must be at least 1",
        run_folder(),
    ),
    Odd("no text of a split", "data check d", "problem", folder("d")),
]

ODD = [*GENOTYPES, *WEIGHTS, *CONFIGS, *FOLDERS, *OUTPUTS, *STRATEGIES, *RUNS]


def content(path: pathlib.Path) -> dict[str, bytes | None]:
    """All that lies in a folder, but for the locks of run folders."""
    entries = (entry for entry in path.rglob("*") if entry.name != locking.FILE)
    return {str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None for entry in entries}


@pytest.fixture(autouse=True)
def _no_work(monkeypatch, tmp_path):
    command_line.stop_at_work(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def begin(*_, **__):
        pytest.fail("work began before the words were found wrong")

    monkeypatch.setattr(controller_speed, "run", begin)
    monkeypatch.setattr(search_speed, "run", begin)
    monkeypatch.setattr(load_lib, "load", begin)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_odd_input_works_or_is_told_in_one_line(odd, tmp_path, monkeypatch):
    words = odd.words.split() if isinstance(odd.words, str) else odd.words
    if any("~/" in word for word in words):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    odd.prepare(tmp_path)
    before = content(tmp_path)
    answer = command_line.run(*words)
    if odd.line is None:
        assert answer.code in (errors.EXIT_DONE, None), answer
        assert odd.value in answer.out and odd.check(tmp_path)
        return
    assert answer.code == errors.EXIT_USER, answer
    assert odd.line in answer.line
    assert "Traceback" not in answer.err
    assert content(tmp_path) == before
