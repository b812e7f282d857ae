"""TensorFlow Datasets builders. `tensorflow_datasets` is imported when one is made, not before."""

from __future__ import annotations

import functools
import os
import types as pytypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.data.datasets import classes
from dvsnas_jax.data.street import synthetic


def tensorflow_datasets() -> pytypes.ModuleType:
    """TensorFlow Datasets.

    Raises:
      UserError: it, or the package of the files it writes, is not installed.
    """
    try:
        import array_record  # noqa: F401 - TFDS asks for it late, with a stack of other errors
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise errors.UserError(
            f"data.prepared: needs tensorflow_datasets and array_record ({error}); run: pip install "
            "tensorflow-datasets array-record, or leave data.prepared empty and set data.dir"
        ) from error
    return tfds


@functools.cache
def _synthetic_class() -> Any:
    """The builder class; made once, since TFDS registers its name."""
    tfds = tensorflow_datasets()
    base: Any = tfds.core.GeneratorBasedBuilder

    class SyntheticClips(base):
        """Procedural street video with the 11 classes of CamVid."""

        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES = {"1.0.0": "First release."}
        url_infos: dict[str, Any] = {}  # nothing is downloaded: no search for a file of checksums

        def __init__(
            self, *, clip_options: dict[str, Any], split_sizes: dict[str, int], on_example: Any, **kwargs: Any
        ):
            self._options, self._sizes, self._on_example = clip_options, split_sizes, on_example
            super().__init__(**kwargs)

        def _info(self) -> Any:
            shape = (self._options["num_frames"], self._options["height"], self._options["width"])
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "name": tfds.features.Text(),
                        "frames": tfds.features.Video(shape=(*shape, 3)),
                        "labels": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="zlib"),
                    }
                ),
                metadata=tfds.core.MetadataDict({"classes": list(classes.CAMVID.names), **self._options}),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            return {split: self._generate_examples(split) for split in synthetic.SPLITS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            street = {name: value for name, value in self._options.items() if name != "num_frames"}
            for index in range(self._sizes[split]):
                clip_fn = synthetic.Street(split=split, **street).clip
                video = clip_fn(index, self._options["num_frames"], with_flow=False)
                yield index, {"name": video.name, "frames": video.frames, "labels": video.labels}
                self._on_example()

    return SyntheticClips


def synthetic_clips(
    *,
    data_dir: str | os.PathLike[str],
    seed: int = 0,
    num_train: int = 384,
    num_eval: int = 12,
    num_frames: int = 4,
    height: int = 96,
    width: int = 128,
    degrade: float = 1.0,
    on_example: Callable[[], None] = lambda: None,
) -> Any:
    """A TFDS builder of the procedural street video; `.download_and_prepare()` writes it.

    Args:
      data_dir: folder of the prepared dataset; one for each choice of the other arguments.
      seed: of the synthetic world.
      num_train: clips of train.
      num_eval: clips of val and of test.
      num_frames: T.
      height: pixels.
      width: pixels.
      degrade: strength of the degradations.
      on_example: called after every example that was written.

    Returns:
      A `tfds.core.GeneratorBasedBuilder` with the splits train, val and test; examples have `name`,
      `frames` u8 [T, H, W, 3] and `labels` u8 [T, H, W], equal to `synthetic.Street.clip`.

    Raises:
      UserError: TFDS is not installed.
    """
    options = {"seed": seed, "num_frames": num_frames, "height": height, "width": width, "degrade": degrade}
    sizes = {"train": num_train, "val": num_eval, "test": num_eval}
    return _synthetic_class()(
        data_dir=os.fspath(data_dir), clip_options=options, split_sizes=sizes, on_example=on_example
    )
