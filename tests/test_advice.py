"""What a refusal advises exists, and following it works.

Every row is a refusal, the words of its advice, and what they say done. The table has to hold every option, key and
command that a message of the package advises; the form of all messages is read from the source.
"""

import fcntl
import fractions
import functools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import command_line
import looked_at
import messages
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
import trees
from looked_at import load
from PIL import Image

from dvsnas_jax.controller import bandit, ppo, strategies
from dvsnas_jax.core import checkpoint, distributed, errors, locking, rendezvous, workdir
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.data import bench as data_bench
from dvsnas_jax.data import prepared, store, synthetic, tf_loader
from dvsnas_jax.nets import static_net, torch_weights, weights_folder
from dvsnas_jax.run import claims, evaluate, features, objective, require_labels, train, video_out
from dvsnas_jax.run import load as load_lib
from dvsnas_jax.search import ablate, bench_search, relaxed_steps, table, table_maker
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo

ROOT = messages.ROOT
TINY_NET = {"net.encoder": "resnet18", "net.width": "0.125", "net.decoder_channels": "8"}
LAYER = {"in": ["prev_state", "decoder"], "ops": ["skip", "conv_1x1"], "agg": "sum"}
ONE_LAYER = {"version": 1, "inputs": ["prev_state", "decoder"], "layers": [LAYER]}


class Row(NamedTuple):
    """One piece of advice.

    Attributes:
      name: of the test.
      refuse: words of a command, or a function that raises the refusal; gets the test's folder.
      words: that have to be in the line.
      follow: does what the line says, and succeeds; words of a command, or a function.
    """

    name: str
    refuse: Callable[[pathlib.Path], object]
    words: tuple[str, ...]
    follow: Callable[[pathlib.Path], object]


def smoke() -> ml_collections.ConfigDict:
    """The config of little work."""
    return config_lib.load(str(ROOT / "configs" / "smoke.py"))


def words_of(*words: str) -> Callable[[pathlib.Path], list[str]]:
    """The words of a command; `TMP` in them is the test's folder."""
    return lambda tmp: [word.replace("TMP", str(tmp)) for word in words]


def file(tmp: pathlib.Path, name: str, content: object) -> pathlib.Path:
    """Writes a file."""
    path = tmp / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def space_of(num_layers: int = 1, **changes) -> genotype_lib.Space:
    """A space of few inputs."""
    return genotype_lib.Space(inputs=("prev_state", "decoder"), num_layers=num_layers, **changes)


def member_without_max() -> zoo.Member:
    """A hand-designed cell of refine that does not aggregate by `max`."""
    return next(m for m in zoo.of_mode("refine") if all(layer["agg"] != "max" for layer in m.genotype["layers"]))


def embedded(num_layers: int) -> Callable[[pathlib.Path], object]:
    """Such a cell in a space that lacks what the filling of layers needs."""
    member = member_without_max()
    aggregations = tuple(name for name in genotype_lib.AGGREGATIONS if name != "max")
    space = genotype_lib.Space(tuple(member.genotype["inputs"]), num_layers, aggregations=aggregations)
    return lambda tmp: zoo.genotype(member, space)


def weights_of(tmp: pathlib.Path, net: str = "resnet18") -> pathlib.Path:
    """A PyTorch file of a whole encoder, of zeros."""
    path = tmp / f"{net}.safetensors"
    if not path.exists():
        names = torch_weights.tensor_names(net)
        wanted = torch_weights._wanted(torch_weights.settings(net), names, 11)
        shapes = {names[name]: torch_weights._torch_shape(shape) for name, shape in wanted.items()}
        safetensors.numpy.save_file({name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}, path)
    return path


def torch_file(tmp: pathlib.Path, **tensors: np.ndarray) -> pathlib.Path:
    """A file with a few tensors."""
    path = tmp / "some.safetensors"
    safetensors.numpy.save_file(dict(tensors), path)
    return path


CONV1 = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}


def imported(tmp: pathlib.Path) -> pathlib.Path:
    """A folder of weights of a narrow ResNet-18's first convolution."""
    path = tmp / "weights"
    net = {"encoder": "resnet18", "width": 0.125, "stride_in_1x1": False}
    names = ("params/encoder/conv1/kernel",)
    weights_folder.save(path, {names[0]: np.zeros((7, 7, 3, 8), np.float32)}, {"net": net, "missing": []})
    return path


def with_weights(tmp: pathlib.Path, **changes: str) -> object:
    """Loads them into a network of a config; only the manifest is compared, the variables are the folder's own."""
    config = config_lib.load(None, {**TINY_NET, **changes})
    tensors = weights_folder.read_safetensors(imported(tmp) / weights_folder.TENSORS)
    variables: dict = {}
    for name, value in tensors.items():
        *path, leaf = name.split("/")
        functools.reduce(lambda tree, key: tree.setdefault(key, {}), path, variables)[leaf] = value
    return weights_folder.load(tmp / "weights", variables, config.net)


def gumbel(**changes: str) -> Callable[[pathlib.Path], object]:
    """The check of a search by gradients."""

    def check(_: pathlib.Path) -> None:
        config = load(search__strategy="gumbel", **changes)
        space = features.space_of(config)
        relaxed_steps.check(config, space, strategies.make("gumbel", space, config.controller))

    return check


LARGE = {"search__batch_size": "4096", "search__batch_parts": "1"}


def prepare_words(tmp: pathlib.Path, *more: str, output: str = "prepared") -> list[str]:
    """`dvsnas data prepare` of that CamVid."""
    looked_at.camvid(tmp)
    own = ["--config.data.name=camvid", f"--config.data.dir={tmp / 'camvid'}", "--config.data.history=stills"]
    return ["data", "prepare", command_line.SMOKE, *own, f"--output={tmp / output}", *more]


def prepare(tmp: pathlib.Path, *more: str, output: str = "prepared") -> pathlib.Path:
    """Prepares it."""
    assert command_line.run(*prepare_words(tmp, *more, output=output)).code == 0
    return tmp / output


def read_prepared(split: str = "train", **changes: str) -> Callable[[pathlib.Path], object]:
    """Reads a split of a prepared data set."""

    def read(tmp: pathlib.Path) -> object:
        prepared.open_media.cache_clear()
        return store.source(looked_at.camvid(tmp, **{"data__prepared": str(tmp / "prepared"), **changes}).data, split)

    return read


def saved(tmp: pathlib.Path, name: str = "checkpoints") -> checkpoint.Checkpointer:
    """Checkpoints of two steps."""
    keeper = checkpoint.Checkpointer(tmp / name, keep=2)
    if keeper.latest_step() is None:
        for step in (1, 2):
            keeper.save(step, {"x": np.full(3, step, np.float32)})
    return keeper


def damage(tmp: pathlib.Path) -> None:
    """Cuts the files of the second one."""
    keeper = saved(tmp)
    keeper.close()
    for path in (tmp / "checkpoints" / "2").rglob("*"):
        if path.is_file() and "d" in path.parts:
            path.write_bytes(path.read_bytes()[:1])
    saved(tmp).restore({"x": np.zeros(3, np.float32)})


def restore_first(tmp: pathlib.Path) -> None:
    """Deletes the folder that the line names and goes on from what is left."""
    shutil.rmtree(tmp / "checkpoints" / "2")
    assert checkpoint.Checkpointer(tmp / "checkpoints").restore({"x": np.zeros(3, np.float32)})["x"][0] == 1


def claim(tmp: pathlib.Path, name: str, **changes: str) -> None:
    """Claims a run folder."""
    workdir.Workdir(tmp / name).claim(load(**changes))


def other_config(tmp: pathlib.Path) -> None:
    """Claims a folder for two configs, the first of which has begun."""
    claim(tmp, "run", seed="1")
    workdir.Workdir(tmp / "run").append("metrics.jsonl", {"step": 1})
    claim(tmp, "run", seed="2")


def small_table(tmp: pathlib.Path, **changes) -> pathlib.Path:
    """A table file."""
    path = tmp / "table.json"
    table.save(table.made_up(few_cells(), 0), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def few_cells() -> genotype_lib.Space:
    """A space of few cells."""
    return space_of(operations=("none", "skip"), aggregations=("sum", "gate"))


def replay_words(*more: str) -> list[str]:
    """A replay against the table of the package that takes no time."""
    return ["compare-strategies", "--strategies=random", "--seeds=1", "--budget=2", *more]


def bench_words(*more: str) -> Callable[[pathlib.Path], list[str]]:
    """`dvsnas bench` of a part."""
    return words_of("bench", *more)


GENOTYPES = [
    Row("near zoo", words_of("show", "zoo:grpf"), ("did you mean 'zoo:grfp'",), words_of("show", "zoo:grfp")),
    Row("zoo left out", words_of("show", "grfp"), ("did you mean 'zoo:grfp'?",), words_of("show", "zoo:grfp")),
    Row(
        "folder for a genotype",
        lambda tmp: ["show", command_line.write_run(tmp / "run", load())],
        ("give a genotype file, for example", "run/best_genotype.json"),
        words_of("show", "TMP/run/best_genotype.json"),
    ),
    Row(
        "no genotype",
        lambda tmp: ["show", file(tmp, "g.json", "[]")],
        ("correct it, or give a file as `dvsnas search` writes it (best_genotype.json)",),
        lambda tmp: ["show", command_line.write_run(tmp / "run", load()) / "best_genotype.json"],
    ),
    Row(
        "version",
        lambda tmp: ["show", file(tmp, "g.json", {**ONE_LAYER, "version": 2})],
        ('version 2, "version" must be 1',),
        lambda tmp: ["show", file(tmp, "g.json", {**ONE_LAYER, "version": 1})],
    ),
    Row(
        "all drawn at once",
        words_of("show", "zoo", "--output=TMP/x.svg"),
        ("--output: ", "choose one, for example zoo:static"),
        words_of("show", "zoo:static", "--output=TMP/x.svg"),
    ),
    Row(
        "fewer layers than the space",
        lambda tmp: genotype_lib.from_dict(ONE_LAYER, space_of(3)),
        ("set --config.space.num_layers=1",),
        lambda tmp: genotype_lib.from_dict(ONE_LAYER, space_of(load(space__num_layers="1").space.num_layers)),
    ),
    Row(
        "more layers than the space",
        lambda tmp: zoo.genotype(zoo.get("grfp"), genotype_lib.Space(genotype_lib.REFINE_INPUTS, 1)),
        (f"set --config.space.num_layers={len(zoo.get('grfp').genotype['layers'])}",),
        lambda tmp: zoo.genotype(
            zoo.get("grfp"), genotype_lib.Space(genotype_lib.REFINE_INPUTS, len(zoo.get("grfp").genotype["layers"]))
        ),
    ),
    Row(
        "nothing to fill layers with",
        embedded(len(member_without_max().genotype["layers"]) + 1),
        ("lacks", f"set --config.space.num_layers={len(member_without_max().genotype['layers'])}"),
        embedded(len(member_without_max().genotype["layers"])),
    ),
    Row(
        "another mode",
        words_of(
            "train", command_line.SMOKE, "--workdir=TMP/w", "--genotype=zoo:accel", "--config.schedule.kind=regions",
        ),
        ("zoo:accel: ", "add --config.space.mode=propagate --config.schedule.kind=fixed"),
        words_of(
            "train", command_line.SMOKE, "--workdir=TMP/w", "--genotype=zoo:accel", "--config.schedule.kind=regions",
            "--config.space.mode=propagate", "--config.schedule.kind=fixed", "--config.space.inputs=prev_state,stage1",
        ),
    ),
]  # fmt: skip

CONFIGS = [
    Row(
        "near key",
        words_of("doctor", "--config.search.stepz=3"),
        ("did you mean 'search.steps'?",),
        lambda tmp: load(search__steps="3"),
    ),
    Row(
        "key without its section",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.width=3"),
        ("did you mean 'data.width' or 'net.width'?",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.net.width=3"),
    ),
    Row(
        "section",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.search=3"),
        ("is a section; set one of its keys, for example 'search.batch_parts'",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.search.batch_parts=1"),
    ),
    Row(
        "no get_config",
        lambda tmp: config_lib.load(str(file(tmp, "c.py", "x = 1\n"))),
        ("get_config()", "write it as configs/smoke.py does"),
        lambda tmp: config_lib.load(str(file(tmp, "c.py", (ROOT / "configs" / "smoke.py").read_text()))),
    ),
    Row(
        "nothing returned",
        lambda tmp: config_lib.load(str(file(tmp, "c.py", "def get_config():\n  config = {}\n"))),
        ("end it with `return config`",),
        lambda tmp: config_lib.load(str(file(tmp, "c.py", "def get_config():\n  config = {}\n  return config\n"))),
    ),
    Row(
        "run folder for a config",
        lambda tmp: ["search", f"--config={command_line.write_run(tmp / 'r', smoke())}", f"--workdir={tmp / 'w'}"],
        ("is a run folder; give its config, ", "config.json"),
        words_of("search", "--config=TMP/r/config.json", "--workdir=TMP/w"),
    ),
    Row(
        "no file",
        words_of("search", "--config=TMP/none.py", "--workdir=TMP/w"),
        ("--config: no such file", "give a Python file with get_config()"),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w"),
    ),
    Row(
        "override without a value",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.seed"),
        ("needs a value, --config.seed=VALUE",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.seed=3"),
    ),
    Row(
        "no config is taken",
        words_of("show", "zoo:grfp", "--config.seed=3"),
        ("--config.seed: the command show takes no config; leave it out",),
        words_of("show", "zoo:grfp"),
    ),
    Row(
        "parts of a batch",
        lambda tmp: load(search__batch_size="8", search__batch_parts="3"),
        ("'search.batch_parts': must divide search.batch_size (8)",),
        lambda tmp: load(search__batch_size="8", search__batch_parts="4"),
    ),
    Row(
        "parts of scratch steps",
        lambda tmp: load(search__scratch_steps="8", search__scratch_parts="3"),
        ("'search.scratch_parts': must divide search.scratch_steps (8)",),
        lambda tmp: load(search__scratch_steps="8", search__scratch_parts="4"),
    ),
    Row(
        "more retrained than derived",
        lambda tmp: load(derive__num_rewarded="1", derive__num_probable="1", derive__num_retrain="3"),
        ("'derive.num_retrain': must be at most derive.num_rewarded + derive.num_probable",),
        lambda tmp: load(derive__num_rewarded="1", derive__num_probable="2", derive__num_retrain="3"),
    ),
    Row(
        "minibatch",
        lambda tmp: ppo._check(load(controller__minibatch="9", controller__buffer="8").controller),
        ("controller.minibatch: must be at most controller.buffer (8), got 9",),
        lambda tmp: ppo._check(load(controller__minibatch="8", controller__buffer="8").controller),
    ),
    Row(
        "all operations masked",
        lambda tmp: strategies.operation_mask(few_cells(), ("none", "skip")),
        ("controller.masked_operations: ", "leave one out of it"),
        lambda tmp: strategies.operation_mask(few_cells(), ("none",)),
    ),
    Row(
        "network larger than the machine",
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.net.width=100000"),
        ("net: a network of 1.12e+17 variables", "lower net.width or net.decoder_channels"),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w", "--config.net.width=0.25"),
    ),
    Row(
        "dropout",
        lambda tmp: static_net.make(load(net__dropout="0.5").net, 11),
        ("set net.dropout to 0",),
        lambda tmp: static_net.make(load(net__dropout="0").net, 11),
    ),
]

WORDS = [
    Row(
        "near option",
        words_of("show", "zoo:grfp", "--outptu=TMP/x.svg"),
        ("did you mean --output?", "(see dvsnas show --help)"),
        words_of("show", "zoo:grfp", "--output=TMP/x.svg"),
    ),
    Row(
        "unknown option",
        words_of("show", "zoo:grfp", "--quick"),
        ("leave them out (see dvsnas show --help)",),
        words_of("show", "zoo:grfp"),
    ),
    Row(
        "value of a variable that is not set",
        words_of("search", command_line.SMOKE, "--workdir="),
        ("--workdir: an empty value; give one",),
        words_of("search", command_line.SMOKE, "--workdir=TMP/w"),
    ),
    Row(
        "part without a config",
        bench_words("controller", command_line.SMOKE),
        ("bench controller: takes no config; leave --config out",),
        bench_words("controller"),
    ),
    Row(
        "option of another part",
        bench_words("controller", "--candidates=0"),
        ("--candidates: only `dvsnas bench search` takes it; leave it out",),
        bench_words("search", "--candidates=5"),
    ),
    Row(
        "figures that cannot be written",
        bench_words("controller", "--json=TMP/none/x.json"),
        ("--json: cannot write", "give the name of a file in a folder that is there"),
        bench_words("controller", "--json=TMP/x.json"),
    ),
    Row(
        "bench of a search without shared weights",
        lambda tmp: bench_search._prepared(load(search__mode="scratch")),
        ("set search.mode to 'share'",),
        lambda tmp: bench_search._prepared(load(search__mode="share")),
    ),
    Row(
        "bench of a search by gradients",
        lambda tmp: bench_search._prepared(load(search__strategy="gumbel")),
        ("set search.strategy to another name",),
        lambda tmp: bench_search._prepared(load(search__strategy="ppo")),
    ),
    Row(
        "bench of the other loader",
        lambda tmp: data_bench.run(load(data__loader="numpy").data),
        ("set data.loader to 'auto'",),
        lambda tmp: data_bench.run(looked_at.camvid(tmp, data__loader="auto").data),
    ),
    Row(
        "bench of prepared data",
        lambda tmp: next(data_bench._decode(load(data__prepared="prepared").data, 1, 2)),
        ("leave data.prepared empty",),
        lambda tmp: next(data_bench._decode(load(data__prepared="").data, 1, 2)),
    ),
]

STRATEGIES = [
    Row(
        "gradients with candidates trained alone",
        gumbel(search__mode="scratch"),
        ("set search.mode to 'share'",),
        gumbel(search__mode="share"),
    ),
    Row(
        "gradients of too large a step",
        gumbel(**LARGE),
        ("shorten space.operations, lower space.num_layers, space.channels or search.batch_size, or raise the limit",),
        lambda tmp: [
            gumbel(**change)(tmp)
            for change in (
                {**LARGE, "search__batch_size": "2"},
                {**LARGE, "space__channels": "1", "space__num_layers": "1", "space__operations": "none,skip"},
                {**LARGE, "search__relaxed_limit": "1e9"},
            )
        ],
    ),
    Row(
        "neither table nor folder",
        words_of("compare-strategies", command_line.SMOKE),
        ("--workdir: is needed, or --table to replay",),
        words_of(*replay_words("--table")),
    ),
    Row(
        "two tables",
        words_of(*replay_words("--table", "--make-table")),
        ("--make-table: makes a table, --table reads one; leave out one of them",),
        words_of(*replay_words("--table")),
    ),
    Row(
        "made-up rewards and a table",
        words_of(*replay_words("--table", "--made-up")),
        ("--made-up: ", "leave out --table and --make-table"),
        words_of("compare-strategies", "--made-up", "--strategies=random", "--seeds=1", "--budget=2"),
    ),
    Row(
        "no such table",
        words_of(*replay_words("--table=TMP/none.json")),
        ("give --table alone for the table of the package, or make one with --make-table",),
        words_of(*replay_words("--table")),
    ),
    Row(
        "damaged table",
        lambda tmp: table.load(small_table(tmp, rows=[])),
        ("is damaged", "make it again with --make-table"),
        lambda tmp: table.load(small_table(tmp)),
    ),
    Row(
        "gradients in a replay",
        words_of("compare-strategies", "--table", "--strategies=random,gumbel", "--seeds=1", "--budget=2"),
        ("leave gumbel out, or compare it in real searches, without --table and --made-up",),
        lambda tmp: [
            words_of(*replay_words("--table"))(tmp),
            words_of("compare-strategies", "--strategies=random,gumbel", command_line.SMOKE, "--workdir=TMP/w")(tmp),
        ],
    ),
    Row(
        "report where a file is",
        lambda tmp: [*replay_words("--table"), f"--output={file(tmp, 'f', 'x')}"],
        ("choose another --output",),
        words_of(*replay_words("--table"), "--output=TMP/other"),
    ),
    Row(
        "table of a large space",
        lambda tmp: table_maker.run(load(), workdir.Workdir(tmp / "w"), num_seeds=1, command=""),
        ("shorten space.inputs, space.operations, space.aggregations or space.num_layers, as configs/table.py does",),
        lambda tmp: [
            "compare-strategies", "--make-table", f"--config={ROOT / 'configs' / 'table.py'}", f"--workdir={tmp / 'w'}"
        ],
    ),
]  # fmt: skip

WEIGHTS = [
    Row(
        "no folder of weights",
        lambda tmp: weights_folder.load(tmp, {}),
        ("make such a folder with `dvsnas weights import`, or leave net.weights empty",),
        lambda tmp: ["weights", "import", weights_of(tmp), "--net=resnet18", f"--output={tmp / 'weights'}"],
    ),
    Row(
        "weights of another network",
        lambda tmp: with_weights(tmp, **{"net.width": "0.25"}),
        ("set --config.net.width=0.125, or import other weights with `dvsnas weights import`",),
        lambda tmp: with_weights(tmp, **{"net.width": "0.125"}),
    ),
    Row(
        "some tensors",
        lambda tmp: ["weights", "import", torch_file(tmp, **CONV1), "--net=resnet18", f"--output={tmp / 'out'}"],
        ("give another --net, or add --partial to take what fits",),
        words_of("weights", "import", "TMP/some.safetensors", "--net=resnet18", "--output=TMP/out", "--partial"),
    ),
    Row(
        "no tensor",
        lambda tmp: [
            "weights", "import", torch_file(tmp, x=np.zeros(2, np.float32)), "--net=resnet18", "--partial",
            f"--output={tmp / 'out'}",
        ],
        ("see them with `dvsnas weights inspect`",),
        words_of("weights", "inspect", "TMP/some.safetensors"),
    ),
    Row(
        "folder of something else",
        lambda tmp: [
            "weights", "import", torch_file(tmp, **CONV1), "--net=resnet18",
            f"--output={file(tmp, 'full/notes.txt', 'x').parent}", "--partial",
        ],
        ("is no folder of weights and not empty; choose another --output",),
        words_of("weights", "import", "TMP/some.safetensors", "--net=resnet18", "--output=TMP/new", "--partial"),
    ),
    Row(
        "no file of tensors",
        lambda tmp: ["weights", "inspect", file(tmp, "t.pth", "hello")],
        ("give a .safetensors file or one of torch.save(model.state_dict(), FILE)",),
        lambda tmp: ["weights", "inspect", torch_file(tmp, **CONV1)],
    ),
]  # fmt: skip

DATA = [
    Row(
        "one video of a sheet",
        words_of("data", "preview", command_line.SMOKE, "--output=TMP/x.png", "--video=0"),
        ("add --animate, or end --output in .gif",),
        lambda tmp: [
            words_of("data", "preview", command_line.SMOKE, "--output=TMP/x.png", "--video=0", "--animate")(tmp),
            words_of("data", "preview", command_line.SMOKE, "--output=TMP/x.gif", "--video=0", "--frames=2")(tmp),
        ],
    ),
    Row(
        "picture in a file",
        lambda tmp: ["data", "preview", command_line.SMOKE, f"--output={trees_folder(tmp / 'd.png')}"],
        ("choose another --output",),
        words_of("data", "preview", command_line.SMOKE, "--output=TMP/e.png"),
    ),
    Row(
        "no folder",
        lambda tmp: store.source(load(data__name="camvid").data, "train"),
        ("set data.dir or DVSNAS_CAMVID",),
        lambda tmp: [store.source(looked_at.camvid(tmp).data, "train"), by_variable(tmp)],
    ),
    Row(
        "nothing prepared",
        lambda tmp: prepared.open_media(str(tmp / "prepared"), "train"),
        ("run `dvsnas data prepare --output=", "with this --config first, or leave data.prepared empty"),
        lambda tmp: [prepare(tmp), read_prepared()(tmp), read_prepared(data__prepared="")(tmp)],
    ),
    Row(
        "prepared from another data set",
        lambda tmp: prepared.of(load(data__name="folder", data__prepared=str(prepare(tmp))).data, "train"),
        ("set data.name to 'camvid', or leave data.prepared empty",),
        read_prepared(),
    ),
    Row(
        "two prepared data sets",
        lambda tmp: [
            [prepare(tmp, output=f"two/{name}") for name in "ab"],
            (tmp / "two/a/camvid_clips").rename(tmp / "two/one_clips"),
            (tmp / "two/b/camvid_clips").rename(tmp / "two/camvid_clips"),
            prepared.locate(tmp / "two"),
        ],
        ("data.prepared: ", "give one of them: "),
        lambda tmp: prepared.locate(tmp / "two" / "one_clips" / prepared.VERSION),
    ),
    Row(
        "split that is not prepared",
        lambda tmp: [prepare(tmp, "--splits=val"), read_prepared()(tmp)],
        ("delete it and run `dvsnas data prepare` again with --splits=val,train",),
        lambda tmp: [delete(tmp / "prepared"), prepare(tmp, "--splits=val,train"), read_prepared()(tmp)],
    ),
    Row(
        "prepared otherwise",
        lambda tmp: prepare(tmp, "--splits=val") and prepare_words(tmp, "--splits=train"),
        ("choose another --output, or delete that folder",),
        lambda tmp: prepare_words(tmp, "--splits=train", output="other"),
    ),
    Row(
        "size of synthetic clips",
        words_of("data", "prepare", command_line.SMOKE, "--output=TMP/p", "--height=8", "--width=8"),
        ("set data.height and data.width",),
        words_of(
            "data", "prepare", command_line.SMOKE, "--output=TMP/p", "--config.data.height=32",
            "--config.data.width=32", "--config.data.num_train_clips=1", "--config.data.num_val_clips=1",
        ),
    ),
    Row(
        "one side of a size",
        lambda tmp: prepare_words(tmp, "--height=8"),
        ("give both, above 0, or neither",),
        lambda tmp: prepare_words(tmp, "--height=8", "--width=8"),
    ),
    Row(
        "split without labels",
        lambda tmp: prepare_words(tmp, "--splits=test"),
        ("no frames",),
        lambda tmp: prepare_words(tmp, "--splits=val"),
    ),
    Row(
        "sizes of a clip",
        lambda tmp: synthetic.clip(
            seed=0, split="train", index=0, num_frames=1, height=0, width=8
        ),
        ("correct data.seed, data.height or data.width",),
        lambda tmp: synthetic.clip(
            seed=0, split="train", index=0, num_frames=1, height=8, width=8
        ),
    ),
    Row(
        "longer clips than videos",
        lambda tmp: store.index(load(data__val_frames="4").data, "val", 9),
        ("raise data.val_frames",),
        lambda tmp: store.index(load(data__val_frames="9").data, "val", 9),
    ),
]  # fmt: skip

FOLDERS = [
    Row(
        "no checkpoint",
        lambda tmp: checkpoint.Checkpointer(tmp / "c").restore({"x": np.zeros(3, np.float32)}),
        ("there are none; restore that folder, or train in another --workdir",),
        lambda tmp: saved(tmp, "c").restore({"x": np.zeros(3, np.float32)}),
    ),
    Row("damaged checkpoint", damage, ("delete that folder and start the run again",), restore_first),
    Row(
        "checkpoint of another network",
        lambda tmp: saved(tmp).restore({"y": np.zeros(3, np.float32)}),
        ("checkpoint of another tree", "use another --workdir"),
        lambda tmp: saved(tmp, "other").restore({"x": np.zeros(3, np.float32)}),
    ),
    Row(
        "another config",
        other_config,
        ("use another --workdir or the same config",),
        lambda tmp: [claim(tmp, "other", seed="2"), claim(tmp, "run", seed="1")],
    ),
]


OWN_DATA = [
    Row(
        "class twice",
        looked_at.coded(classes="a,a"),
        ("all its ids in data.folder.ids, as 1+2",),
        looked_at.coded(classes="a", ids="0+1"),
    ),
    Row(
        "classes without names",
        looked_at.coded(classes=""),
        ("data.folder.classes: ", "as sky,road,car; camvid, or cityscapes, stands for all of its classes"),
        lambda tmp: [looked_at.coded(classes=names)(tmp) for names in ("sky,road,car", "camvid")],
    ),
    Row("one id of two classes", looked_at.coded(ids="1,1"), ("correct data.folder.ids",), looked_at.coded(ids="1,2")),
    Row(
        "colours without classes",
        looked_at.coded(classes="", colors="#000000"),
        ("data.folder.colors: ", "name them in data.folder.classes"),
        looked_at.coded(classes="a", colors="#000000"),
    ),
    Row(
        "splits of masks alone",
        looked_at.splitting(below="masks/train", masks="masks/{split}/{sequence}/{number}.png"),
        ("write * for it in the masks, and set data.folder.splits",),
        looked_at.splitting(masks="masks/*/{sequence}/{number}.png", splits="0.5,0.5"),
    ),
    Row(
        "one video for two splits",
        looked_at.splitting(*(f"v/{number:04d}.png" for number in range(4)), splits="0.5,0.5"),
        ("set data.folder.split_by=blocks",),
        looked_at.splitting(splits="0.5,0.5", split_by="blocks"),
    ),
    Row(
        "gap of frames",
        looked_at.clipping(),
        ("gaps that exist: 2", "change data.num_frames, data.frame_gap or data.frame_gap_tolerance", "data.history"),
        lambda tmp: [
            looked_at.clipping(**{key: value})(tmp)
            for key, value in (
                ("data__num_frames", "1"), ("data__frame_gap", "2"), ("data__frame_gap_tolerance", "1"),
                ("data__history", "stills"),
            )
        ],
    ),
    Row(
        "gap of videos",
        looked_at.watching(),
        ("gaps that exist: 2", "change data.eval_gap"),
        looked_at.watching(data__eval_gap="2"),
    ),
    Row(
        "one clip",
        looked_at.labelled("v0/0000.png", "v0/0001.png", "v1/0000.png", "v1/0001.png"),
        ("data: the train split has one clip", "add labelled frames, or lower data.num_frames or data.frame_gap"),
        looked_at.labelled(data__num_frames="1"),
    ),
    Row(
        "no label where rewards are measured",
        looked_at.half_labelled(),
        ("change search.meta_val_fraction, search.reward_clips or seed",),
        lambda tmp: [looked_at.half_labelled(**change)(tmp) for change in ({"search__reward_clips": "2"},)],
    ),
    Row(
        "nothing to score on",
        looked_at.without_val_masks(),
        ("split val: none of its frames has a label image", "name another split in evaluate.split"),
        looked_at.without_val_masks(evaluate__split="test"),
    ),
    Row(
        "masks of 0 and 255",
        looked_at.labelled(values=(0, 255)),
        ("set data.folder.ids, as 0,255, or name classes that are not there in data.folder.absent",),
        lambda tmp: [looked_at.labelled(ids="0,255")(tmp), looked_at.labelled(absent="b")(tmp)],
    ),
    Row(
        "unknown id of a folder",
        looked_at.labelled(values=(0, 1, 7)),
        ("make a class of it by data.folder.ids, or leave it out: --config.data.folder.ignore=255,7",),
        lambda tmp: [looked_at.labelled(ignore="255,7")(tmp), looked_at.labelled(classes="a,b,c", ids="0,1,7")(tmp)],
    ),
    Row(
        "unknown id of CamVid",
        lambda tmp: [looked_at.repaint(tmp), require_labels.check(looked_at.camvid(tmp))],
        ("leave it out: --config.data.ignore=77",),
        lambda tmp: require_labels.check(looked_at.camvid(tmp, data__ignore="77")),
    ),
    Row(
        "classes of another data set",
        lambda tmp: evaluate._check_classes(("a", "b"), looked_at.classes(tmp, "b,a"), tmp),
        ("the same classes in the same order (data.folder.classes)",),
        lambda tmp: evaluate._check_classes(("a", "b"), looked_at.classes(tmp, "a,b"), tmp),
    ),
    Row(
        "other data than the run's",
        lambda tmp: claims.check(looked_at.other_camvid(tmp), workdir.Workdir(tmp / "run")),
        ("use another --workdir, or score other data by `dvsnas evaluate --other-data`",),
        lambda tmp: [
            claims.check(looked_at.other_camvid(tmp), workdir.Workdir(tmp / "run"), ignore=("data",)),
            claims.check(looked_at.other_camvid(tmp), workdir.Workdir(tmp / "new")),
        ],
    ),
]  # fmt: skip

RUNS = [
    Row(
        "cell of `train` in a search",
        lambda tmp: ["search", f"--workdir={command_line.write_run(tmp / 'run', smoke())}"],
        ("holds the cell of genotype ", "search in another --workdir"),
        words_of("search", "--config=TMP/run/config.json", "--workdir=TMP/other"),
    ),
    Row(
        "another cell",
        lambda tmp: ["train", f"--workdir={command_line.write_run(tmp / 'run', smoke())}", "--genotype=zoo:static"],
        ("holds the trained cell of genotype ", "in another --workdir"),
        words_of("train", "--config=TMP/run/config.json", "--workdir=TMP/other", "--genotype=zoo:static"),
    ),
    Row(
        "weights that are not there",
        lambda tmp: train.load_winner(load(), unbound(tmp)),
        ("put the file back, or train the genotype in a folder of its own with `dvsnas train --genotype`",),
        words_of("train", command_line.SMOKE, "--workdir=TMP/own", "--genotype=TMP/run/best_genotype.json"),
    ),
    Row(
        "cell of another mode in an ablation",
        lambda tmp: ["ablate", f"--workdir={command_line.write_run(tmp / 'run', load())}", "--genotype=zoo:dff"],
        ("--genotype: zoo:dff does not fit the run", "mode refine, ", "for example zoo:static, zoo:netwarp, zoo:grfp"),
        lambda tmp: fitting(tmp, "zoo:grfp"),
    ),
    Row(
        "cell of more layers in an ablation",
        lambda tmp: [
            "ablate", f"--workdir={command_line.write_run(tmp / 'run', load(space__num_layers='2'))}",
            "--genotype=zoo:grfp",
        ],
        ("does not fit the run in ", "2 layers", "for example zoo:static, zoo:netwarp"),
        lambda tmp: fitting(tmp, "zoo:netwarp"),
    ),
    Row(
        "in use",
        lambda tmp: [in_use(tmp / "run"), claim(tmp, "run")],
        ("is in use", "wait until that ends or stop it, or use another --workdir"),
        lambda tmp: [claim(tmp, "other"), is_over(), claim(tmp, "run")],
    ),
    Row(
        "seeds beyond the last",
        words_of("compare", command_line.SMOKE, "--workdir=TMP/w", "--genotypes=zoo:grfp", "--config.seed=4294967295"),
        ("--seeds: ", "lower seed or --seeds"),
        words_of(
            "compare", command_line.SMOKE, "--workdir=TMP/w", "--genotypes=zoo:grfp", "--config.seed=4294967295",
            "--seeds=1",
        ),
    ),
    Row(
        "teacher without a run",
        lambda tmp: teacher(str(tmp / "none")),
        ("pretrain.teacher: ", "give a run folder, or leave pretrain.teacher empty"),
        lambda tmp: [teacher(""), teacher(str(command_line.write_run(tmp / "run", smoke())))],
    ),
    Row(
        "teacher without weights",
        lambda tmp: teacher(str(command_line.write_run(tmp / "run", smoke())), is_trained=False),
        ("run `dvsnas train --workdir=", "first, or leave pretrain.teacher empty"),
        words_of("train", "--workdir=TMP/run"),
    ),
    Row(
        "teacher of other classes",
        lambda tmp: teacher(str(command_line.write_run(tmp / "run", smoke())), num_classes=5),
        ("give a run on the same classes, or leave pretrain.teacher empty",),
        lambda tmp: teacher(str(tmp / "run")),
    ),
    Row(
        "port in use",
        lambda tmp: raise_(rendezvous._in_use("host:1234")),
        ("or choose another port, the same for every process (with SLURM or a JobSet: by DVSNAS_PORT)",),
        lambda tmp: distributed._port({"DVSNAS_PORT": "1235"}, 1234) == 1235 or pytest.fail("the port stays"),
    ),
    Row(
        "process that does not come",
        lambda tmp: rendezvous.meet("127.0.0.1:1", 1, 2, seconds=0.1),
        ("let them wait longer by --start-timeout",),
        lambda tmp: distributed.start_seconds({}, 600.0) == 600 or pytest.fail("the time stays"),
    ),
]  # fmt: skip

SEGMENTS = [
    Row(
        "nothing to write",
        lambda tmp: segment_words(tmp),
        ("give --output, --masks or --summary",),
        lambda tmp: [
            segment_words(tmp, f"--{flag}={tmp / name}")
            for flag, name in (("output", "x.mp4"), ("masks", "m"), ("summary", "s.json"))
        ],
    ),
    Row(
        "rate of a video",
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", "--fps=5", source=video_file(tmp)),
        ("leave --fps out",),
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", source=video_file(tmp)),
    ),
    Row(
        "rate of an animation",
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", "--fps=5", source=animation_file(tmp)),
        ("leave --fps out",),
        lambda tmp: segment_words(tmp, f"--masks={tmp / 'm'}", source=animation_file(tmp)),
    ),
]


def unbound(tmp: pathlib.Path) -> workdir.Workdir:
    """A run folder whose file names a genotype that has no weights in it."""
    folder = workdir.Workdir(command_line.write_run(tmp / "run", load()))
    folder.write_json("best_genotype.json", {**dict(zoo.get("grfp").genotype), "digest": "0" * 12})
    return folder


def fitting(tmp: pathlib.Path, name: str) -> object:
    """Reads a genotype as `ablate` does, in the space of the run folder `run`."""
    folder = workdir.Workdir(tmp / "run")
    config = claims.config_of(folder)
    return ablate._genotype(config, folder, features.space_of(config), name)


_HELD: list[int] = []


def in_use(path: pathlib.Path) -> None:
    """Locks a folder as another process does."""
    claim(path.parent, path.name)
    handle = os.open(path / locking.FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    _HELD.append(handle)


def is_over() -> None:
    """The other process has ended."""
    os.close(_HELD.pop())


def teacher(path: str, *, is_trained: bool = True, num_classes: int = 11) -> object:
    """Reads a teacher, which has 11 classes."""
    variables = {"params": {"classifier": {"bias": np.zeros(11)}}} if is_trained else None
    return objective.load_teacher(path, num_classes, lambda config, folder: variables)


def raise_(error: Exception) -> NoReturn:
    """Raises what a function made."""
    raise error


def segment_words(tmp: pathlib.Path, *more: str, source: pathlib.Path | None = None) -> list[object]:
    """`dvsnas segment` of a picture, or of a file."""
    if not (tmp / "run").exists():
        command_line.write_run(tmp / "run", load())
    trees.save(tmp / "im" / "a.png", trees.frame("a", (16, 12)))
    return ["segment", source or tmp / "im", f"--workdir={tmp / 'run'}", *more]


def video_file(tmp: pathlib.Path) -> pathlib.Path:
    """A video of one frame."""
    rate, path = fractions.Fraction(5), tmp / "v.mp4"
    writer = video_out.VideoWriter(path, (12, 16), rate=rate, time_base=1 / rate)
    writer.write(trees.frame("v", (16, 12)), 0)
    writer.close()
    return path


def animation_file(tmp: pathlib.Path) -> pathlib.Path:
    """A GIF of two frames."""
    first, second = (Image.fromarray(trees.frame(name, (16, 12))) for name in "ab")
    first.save(tmp / "a.gif", save_all=True, append_images=[second], duration=200)
    return tmp / "a.gif"



def trees_folder(path: pathlib.Path) -> pathlib.Path:
    """A folder that has the name of a picture."""
    path.mkdir()
    return path


def delete(path: pathlib.Path) -> None:
    """Deletes a folder."""
    shutil.rmtree(path)


def by_variable(tmp: pathlib.Path) -> object:
    """The data set whose folder is in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVSNAS_CAMVID", str(tmp / "camvid"))
        return store.source(load(data__name="camvid").data, "train")


ROWS = [*GENOTYPES, *CONFIGS, *WORDS, *STRATEGIES, *WEIGHTS, *DATA, *FOLDERS, *OWN_DATA, *RUNS, *SEGMENTS]


@pytest.fixture(autouse=True)
def _no_work(monkeypatch):
    command_line.stop_at_work(monkeypatch)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(bandit, "benchmark", lambda: {"figure": 1.0})
    for module, name in (
        (bench_search, "run"),
        (table_maker, "_Trainings"),
        (data_bench, "_measure"),
        (tf_loader, "tensorflow"),
        (load_lib, "load"),
    ):
        monkeypatch.setattr(module, name, command_line.accept)


def refused(refuse: Callable[[pathlib.Path], object], tmp: pathlib.Path) -> str:
    """The line of a refusal."""
    try:
        words = refuse(tmp)
    except errors.UserError as error:
        return " ".join(str(error).split())
    answer = command_line.run(*words)
    assert answer.code == errors.EXIT_USER, answer
    return answer.line


def succeeded(follow: Callable[[pathlib.Path], object], tmp: pathlib.Path) -> None:
    """Whether what is done succeeds; commands are run, as far as the work they begin."""
    try:
        result = follow(tmp)
    except command_line.Accepted:
        return
    commands = [result] if _is_command(result) else result if isinstance(result, list) else []
    for words in filter(_is_command, commands):
        answer = command_line.run(*words)
        assert answer.code in (errors.EXIT_DONE, None), answer


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_advice_that_is_followed_works(row, tmp_path):
    line = refused(row.refuse, tmp_path)
    for word in row.words:
        assert word in line
    succeeded(row.follow, tmp_path)


VARIABLES = {
    "DVSNAS_CAMVID", "DVSNAS_CITYSCAPES", "DVSNAS_COORDINATOR", "DVSNAS_NUM_PROCESSES", "DVSNAS_PORT",
    "DVSNAS_PROCESS_ID", "DVSNAS_START_TIMEOUT", "DVSNAS_TPU_POD",
}  # fmt: skip
_OTHERS_FLAGS = {
    "dvsnas_jax/core/workdir.py": {"--porcelain", "--untracked-files"},  # of git
}
_NO_TEXT_OF_OURS = "dvsnas_jax/run/report_html.py"  # a style sheet: its variables begin with two dashes


def _exists(message: messages.Message) -> list[str]:
    """What a text names that does not exist."""
    file_name = message.place.split(":")[0]
    known = messages.commands()
    options = messages.options() | _OTHERS_FLAGS.get(file_name, set())
    wrong = [key for key in messages.named_keys(message.text) if key not in messages.keys() | messages.sections()]
    wrong += [flag for flag in messages.named_flags(message.text) if flag not in options]
    for command in messages.named_commands(message.text):
        first = command.split()[0]
        has_actions = any(name.startswith(f"{first} ") for name in known)
        wrong += [f"dvsnas {command}"] if (command if has_actions else first) not in known else []
    wrong += [name for name in re.findall(r"DVSNAS_[A-Z_]+", message.text) if name not in VARIABLES]
    return wrong


def test_options_keys_commands_and_variables_that_a_text_names_exist():
    found = [message for message in messages.texts() if not message.place.startswith(_NO_TEXT_OF_OURS)]
    assert len(found) > 3000  # the source was read
    wrong = {message.place: names for message in found if (names := _exists(message))}
    assert wrong == {}


def test_packages_that_a_text_installs_are_extras_of_the_project():
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    named = {name for message in messages.texts() for name in re.findall(r"dvsnas-jax\[(\w+)\]", message.text)}
    assert "cityscapes" in named
    assert [name for name in named if not re.search(rf"^{name} = ", extras, re.MULTILINE)] == []


_VERBS = (
    "add|allow|change|choose|copy|correct|delete|empty|end|export|free|get|give|import|install|keep|leave|lower|make|name|pip|raise|rename|"
    "repair|replace|restore|run|search|see|set|shorten|resize|save|start|take|train|use|wait|write|convert"
)
_SAYS_WHAT_TO_DO = re.compile(
    rf"(?:; |, |: |\. |{messages.ANY}|\bor |\bto )(?:{_VERBS})\b|\bmust\b|\bneeds?\b|\ballowed are\b|\bis needed\b|"
    rf"\bdid you mean\b|\bthere are\b|\btakes no|; {messages.ANY}$"
)
"""An instruction, what is allowed, or an end that another function of the package makes."""
_MADE_ELSEWHERE = {
    "dvsnas_jax/commands/common.py": "… (see … --help)",  # the parser's own words, which name the option
    "dvsnas_jax/core/overrides.py": "…, line ………: …",  # `_unknown`: the nearest key, or the sections
    "dvsnas_jax/core/workdir.py": "…",  # `locking` of another process, `Workdir._unwritable`
    "dvsnas_jax/data/encoded.py": "…",  # `folders.size_problem`
    "dvsnas_jax/data/folders.py": "…",
    "dvsnas_jax/data/frames.py": "…: …",  # `LabelCode._unknown`
    "dvsnas_jax/data/prepare.py": "…",  # `_too_small`
    "dvsnas_jax/run/compare.py": "…: …",  # of the check that is passed on
    "dvsnas_jax/run/train.py": "--genotype: …: …",  # of the settings that lack an input
    "dvsnas_jax/space/genotype.py": "…: ………: …",  # of the space that a file needs
}
"""Messages whose words come from a function: the rows above, and the tests of those functions, read them."""


def test_every_refusal_says_where_what_and_what_to_do():
    found = list(messages.refusals())
    assert len(found) > 250
    wrong = {}
    for message in found:
        if _MADE_ELSEWHERE.get(message.place.split(":")[0]) == message.text:
            continue
        _, colon, rest = message.text.partition(": ")
        if not colon or not _SAYS_WHAT_TO_DO.search(f": {rest}"):
            wrong[message.place] = message.text
    assert wrong == {}


_ELSEWHERE = {
    "--help": "test_cli.py: the help of every command",
    "dvsnas search": "test_pipeline.py: whole searches",
}
"""Advice that another test follows."""


def advised() -> set[str]:
    """Every option, key and command that the part of a message behind its semicolon names."""
    found = set()
    for message in messages.refusals():
        advice = message.text.partition("; ")[2]
        found |= {*messages.named_keys(advice), *messages.named_flags(advice)}
        found |= {f"dvsnas {name}" for name in messages.named_commands(advice)}
        found |= set(re.findall(r"DVSNAS_[A-Z_]+", advice))
    return found


def test_the_table_holds_every_advice():
    in_rows = " ".join(word for row in ROWS for word in row.words)
    assert {name for name in advised() if name not in in_rows and name not in _ELSEWHERE} == set()
