"""What the rows of `test_advice` are made of: a row, and small files, folders and words to refuse and to take."""

import fcntl
import fractions
import functools
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import command_line
import looked_at
import made_up_table
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
import trees
from looked_at import load
from messages import ROOT
from PIL import Image

from dvsnas_jax.controller import strategies
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import checkpoint, locking, workdir
from dvsnas_jax.core.processes import rendezvous
from dvsnas_jax.data.loading import store
from dvsnas_jax.data.prepared import reading
from dvsnas_jax.infer.video import writing
from dvsnas_jax.nets.weights import torch_import, torch_match, weights_folder
from dvsnas_jax.search import relaxed_steps
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.space import zoo
from dvsnas_jax.studies import ablate, table
from dvsnas_jax.train import claims, features, pretrain_loss

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
    aggregations = tuple(name for name in genotype_lib.vocabulary("aggregations") if name != "max")
    space = genotype_lib.Space(tuple(member.genotype["inputs"]), num_layers, aggregations=aggregations)
    return lambda tmp: zoo.genotype(member, space)


def weights_of(tmp: pathlib.Path, net: str = "resnet18") -> pathlib.Path:
    """A PyTorch file of a whole encoder, of zeros."""
    path = tmp / f"{net}.safetensors"
    if not path.exists():
        source = torch_import.sources()[net]
        shapes = {source.names[name]: torch_match.torch_shape(shape) for name, shape in source.shapes(11).items()}
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
        reading.open_media.cache_clear()
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
    table.save(made_up_table.make(few_cells(), 0), path)
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


def unbound(tmp: pathlib.Path) -> workdir.Workdir:
    """A run folder whose file names a genotype that has no weights in it."""
    folder = workdir.Workdir(command_line.write_run(tmp / "run", load()))
    folder.write_json("best_genotype.json", {**dict(zoo.get("grfp").genotype), "digest": "0" * 12})
    return folder


def fitting(tmp: pathlib.Path, name: str) -> object:
    """Reads a genotype as `ablate` does, in the space of the run folder `run`."""
    folder = workdir.Workdir(tmp / "run")
    config = claims.config_of(folder)
    return ablate.read_genotype(config, folder, name)


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
    return pretrain_loss.load_teacher(path, num_classes, lambda config, folder: variables)


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
    writer = writing.VideoWriter(path, (12, 16), rate=rate, time_base=1 / rate)
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


def meet_at_a_port_in_use() -> None:
    """Process 0 where another program listens, which does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendezvous, "IN_USE_SECONDS", 0.1)
        port = other.getsockname()[1]
        rendezvous.meet(f"127.0.0.1:{port}", 0, 2, seconds=5, bind=f"127.0.0.1:{port}")
