"""Data sets that a table of refusals looks at: a folder of one's own, CamVid; what is looked for, and how."""

import pathlib
import shutil
from collections.abc import Callable

import ml_collections
import numpy as np
import trees

from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core.files import workdir
from dvsnas_jax.data import datasets
from dvsnas_jax.data.loading import store, whole_videos
from dvsnas_jax.train import claims, pretrain, require_labels


def load(**changes: str) -> ml_collections.ConfigDict:
    """The defaults, changed; `search__steps` is `search.steps`."""
    return config_lib.load(None, {key.replace("__", "."): value for key, value in changes.items()})


def camvid(tmp: pathlib.Path, **changes: str) -> ml_collections.ConfigDict:
    """A small CamVid, and its config."""
    if not (tmp / "camvid").exists():
        trees.camvid_segnet(tmp / "camvid", splits=("train", "val"))
    sizes = {"data__height": "16", "data__width": "24", "data__crop_height": "16", "data__crop_width": "24"}
    own = {"data__name": "camvid", "data__dir": str(tmp / "camvid"), "data__history": "stills", **sizes}
    return load(**{**own, **changes})


def own(tmp: pathlib.Path, *places: str, masks: str = "masks", values: tuple[int, ...] = (0, 1)) -> None:
    """Frames and masks of a folder of one's own, each mask with all of the values."""
    if not (tmp / "own").exists():
        for place in places or [f"v{video}/{number:04d}.png" for video in range(3) for number in range(4)]:
            trees.save(tmp / "own" / "frames" / place, trees.frame(place, (12, 8)))
            mask = np.resize(np.repeat(np.asarray(values, np.uint8), 2), (8, 12))
            trees.save(tmp / "own" / masks / place, mask)
    datasets.find_in.cache_clear()


FRAMES, MASKS = "frames/{sequence}/{number}.png", "masks/{sequence}/{number}.png"


def own_config(tmp: pathlib.Path, **changes: str) -> ml_collections.ConfigDict:
    """The config of such a folder; `classes` is `data.folder.classes`."""
    sizes = {"data__height": "8", "data__width": "12", "data__num_frames": "2", "data__frame_gap": "1"}
    keys = {"frames": FRAMES, "masks": MASKS, "classes": "a,b"}
    keys |= {key: value for key, value in changes.items() if "__" not in key and key != "seed"}
    own = {"data__name": "folder", "data__dir": str(tmp / "own"), "data__loader": "numpy", "data__eval_gap": "1"}
    named = {f"data__folder__{key}": value for key, value in keys.items()}
    return load(**{**own, **sizes, **named, **{key: changes[key] for key in changes if key not in keys}})


def classes(tmp: pathlib.Path, names: str) -> tuple[str, ...]:
    """The classes of such a folder."""
    return datasets.class_table(own_config(tmp, classes=names).data).names


def coded(**changes: str) -> Callable[[pathlib.Path], object]:
    """Reads how the masks become classes."""
    return lambda tmp: datasets.TABLE["folder"].on_disk.code(
        "folder", datasets.options(own_config(tmp, **changes).data)
    )


def splitting(*places: str, below: str = "masks", **changes: str) -> Callable[[pathlib.Path], object]:
    """Looks for both splits of a folder of one's own, with its masks below a folder."""

    def find(tmp: pathlib.Path) -> list[object]:
        own(tmp, *places, masks=below)
        return [datasets.find(own_config(tmp, **changes).data, split).frames[0].label for split in ("train", "val")]

    return find


def clipping(**changes: str) -> Callable[[pathlib.Path], object]:
    """Looks for the clips of a folder whose frames are 2 apart."""

    def find(tmp: pathlib.Path) -> object:
        own(tmp, *(f"v/{number:04d}.png" for number in range(0, 12, 2)))
        return store.index(own_config(tmp, **changes).data, "train", int(changes.get("data__num_frames", "2")))

    return find


def watching(**changes: str) -> Callable[[pathlib.Path], object]:
    """Looks for the videos of such a folder."""

    def find(tmp: pathlib.Path) -> object:
        own(tmp, *(f"v/{number:04d}.png" for number in range(0, 12, 2)))
        return whole_videos.find(own_config(tmp, **changes).data, "train")[0].labels

    return find


def labelled(*places: str, values: tuple[int, ...] = (0, 1), **changes: str) -> Callable[[pathlib.Path], object]:
    """Looks for labels before a search of a folder of one's own."""

    def check(tmp: pathlib.Path) -> int:
        own(tmp, *places, values=values)
        config = own_config(tmp, **{"splits": "0.5,0.5", **changes})
        return require_labels.check(config, is_rewarded=True, is_evaluated=True)

    return check


def half_labelled(**changes: str) -> Callable[[pathlib.Path], object]:
    """As `labelled`, where the held-out clip that rewards are measured on first has no labelled pixel."""

    def check(tmp: pathlib.Path) -> int:
        own(tmp)
        # Stills: of so few clips with a true history, two blocks would leave none that shares no frame with them.
        keys = {"search__meta_val_fraction": "0.5", "search__reward_clips": "1", "data__history": "stills"}
        start = own_config(tmp, splits="0.5,0.5", **keys)
        split = store.index(start.data, "train", 2)
        place = split.places[:, -1][pretrain.split_clips(start)[1][0]]
        trees.save(store.source(start.data, "train").frames[place].label, np.full((8, 12), 255, np.uint8))
        return labelled(**{**keys, **changes})(tmp)

    return check


def without_val_masks(**changes: str) -> Callable[[pathlib.Path], object]:
    """As `labelled`, where one of two videos has no mask."""

    def check(tmp: pathlib.Path) -> int:
        own(tmp)
        shutil.rmtree(tmp / "own/masks/v0", ignore_errors=True)
        return labelled(**{"splits": "val:v0,test:v1", **changes})(tmp)

    return check


def repaint(tmp: pathlib.Path) -> None:
    """An id that CamVid has not, in one mask."""
    camvid(tmp)
    trees.save(sorted((tmp / "camvid/trainannot").iterdir())[0], np.full((30, 40), 77, np.uint8))


def other_camvid(tmp: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a CamVid of fewer frames than that of the run folder `run`, which has begun."""
    folder = workdir.Workdir(tmp / "run")
    if not folder.is_claimed:
        claims.claim(camvid(tmp), folder)
        folder.append("metrics.jsonl", {"step": 1})
        shutil.copytree(tmp / "camvid", tmp / "fewer")
        for part in ("train", "trainannot"):
            sorted((tmp / "fewer" / part).iterdir())[0].unlink()
    return camvid(tmp, data__dir=str(tmp / "fewer"))
