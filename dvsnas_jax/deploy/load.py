"""A trained network and cell from a folder, ready for the frames of a video: the Python API.

    segmenter = dvsnas_jax.load("runs/quickstart")
    state = segmenter.init()
    for frame in frames:  # u8 [H, W, 3], of segmenter.size
        state, labels = segmenter.step(state, frame)

What a run folder needs (Flax, Optax, Orbax) is imported when one is opened; an exported folder needs JAX alone.
TensorFlow is never imported.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dvsnas_jax.core import compilation, errors
from dvsnas_jax.infer import artifact

Frame = np.ndarray | jax.Array
State = Any
"""Opaque: what `init` and `step` give, for the next `step`."""


class Segmenter:
    """Segments the frames of videos, one at a time. It holds no state itself: any number of videos may take turns.

    Labels are `jax.Array`s: the call returns while the device still computes, `np.asarray(labels)` waits for it. So
    read the labels of a frame after the next frame was given, and both sides work at the same time.

    Attributes:
      size: height and width of the frames, pixels.
      classes: K names.
      colors: u8 [K, 3], RGB.
      mode: "refine" or "propagate".
      ids: i32 [K], what masks of the data set hold for each class.
      trained_on: name of the data set; "" where an exported folder does not say it.
      has_cell: False: a static network alone, whose labels `step` gives.
    """

    def __init__(
        self,
        *,
        init_fn: Callable[[], State],
        step_fn: Callable[[State, Any], tuple[State, jax.Array]],
        static_fn: Callable[[Any], jax.Array],
        share_fn: Callable[[State], Any],
        size: tuple[int, int],
        classes: tuple[str, ...],
        colors: np.ndarray,
        mode: str,
        ids: np.ndarray | None = None,
        trained_on: str = "",
        has_cell: bool = True,
    ) -> None:
        """Of functions of a batch of one frame: u8 [1, H, W, 3] -> u8 [1, H, W]; `load` calls this."""
        self.ids = np.arange(len(classes), dtype=np.int32) if ids is None else ids
        self.trained_on = trained_on
        self.size, self.classes, self.colors, self.mode = size, classes, colors, mode
        self.has_cell = has_cell
        self._init_fn, self._step_fn, self._static_fn, self._share_fn = init_fn, step_fn, static_fn, share_fn
        self._first_fn = compilation.jit(lambda labels: labels[0])

    def init(self) -> State:
        """The state before the first frame of a video, or after a cut."""
        return self._init_fn()

    def step(self, state: State, frame: Frame) -> tuple[State, jax.Array]:
        """Segments the next frame.

        Args:
          state: after the frame before, or `init()`. It stays valid.
          frame: u8 [H, W, 3], RGB, of the size `size`.

        Returns:
          The state for the next frame, and labels u8 [H, W], which may still be computed.

        Raises:
          UserError: the frame is of another size or type.
        """
        state, labels = self._step_fn(state, self._batch(frame))
        return state, self._first_fn(labels)

    def static_step(self, frame: Frame) -> jax.Array:
        """Labels u8 [H, W] of the static network alone; takes what `step` takes."""
        return self._first_fn(self._static_fn(self._batch(frame)))

    def key_share(self, state: State) -> float:
        """Share of the last frame that the static network computed: 1 = a key frame; refine: always 1."""
        return float(self._share_fn(state))

    def segment(self, frames: Iterable[Frame]) -> Iterator[jax.Array]:
        """Segments one video.

        Args:
          frames: each u8 [H, W, 3]; read as the labels are asked for.

        Yields:
          Labels u8 [H, W], one for each frame, which may still be computed.
        """
        state = self.init()
        for frame in frames:
            state, labels = self.step(state, frame)
            yield labels

    def _batch(self, frame: Frame) -> Frame:
        """One frame as a batch, after checks."""
        if tuple(frame.shape) != (*self.size, 3) or frame.dtype != np.uint8:
            raise errors.UserError(
                f"frame: {frame.dtype} {tuple(frame.shape)}, needed is uint8 {(*self.size, 3)}; resize it to "
                f"{self.size[1]}x{self.size[0]} pixels RGB"
            )
        return frame[None]


def load(path: str | os.PathLike[str], *, key_interval: int | None = None) -> Segmenter:
    """Opens a trained network and cell.

    Args:
      path: a run folder with a trained cell or a static network alone, or a folder that `dvsnas export` wrote.
      key_interval: propagate: the (longest) distance of key frames, in place of the run's `schedule.interval`.

    Returns:
      Its segmenter. Programs are compiled at the first frame of each kind.

    Raises:
      UserError: no such folder, nothing trained in it, or a `key_interval` that it cannot have.
    """
    folder = pathlib.Path(path)
    if not os.path.isdir(folder):
        raise errors.UserError(f"{folder}: no such folder, give a run folder or an exported one")
    return _load_artifact(folder, key_interval) if artifact.is_artifact(folder) else _load_run(folder, key_interval)


def _load_artifact(path: pathlib.Path, key_interval: int | None) -> Segmenter:
    """Opens an exported folder."""
    model = artifact.open_folder(path, key_interval)
    manifest = model.manifest
    if key_interval is not None:
        check_interval(manifest["mode"], key_interval)
    return Segmenter(
        init_fn=model.initial_state,
        step_fn=model.step,
        static_fn=model.static_step,
        share_fn=model.key_share,
        size=(manifest["size"][0], manifest["size"][1]),
        classes=tuple(manifest["classes"]),
        colors=np.array(manifest["colors"], np.uint8),
        mode=manifest["mode"],
        ids=np.array(manifest["ids"], np.int32) if "ids" in manifest else None,
        trained_on=str(manifest.get("trained_on", "")),
        has_cell=bool(manifest["genotype"]),
    )


def _load_run(path: pathlib.Path, key_interval: int | None) -> Segmenter:
    """Opens a run folder; nothing is written to it."""
    from dvsnas_jax.core.files import workdir
    from dvsnas_jax.data import datasets
    from dvsnas_jax.data.loading import pipeline
    from dvsnas_jax.deploy import opened
    from dvsnas_jax.train import cell_training, claims

    folder = workdir.Workdir(path)
    config = claims.config_of(folder)
    mode = config.space.mode if cell_training.has_cell(folder) else "refine"  # alone it sees every frame
    if key_interval is not None:
        check_interval(mode, key_interval)
        config = config.copy_and_resolve_references().unlock()
        config.schedule.interval = key_interval
    made = opened.segmenter(config, folder)
    table = pipeline.class_table(config.data)
    return Segmenter(
        init_fn=made.initial_state,
        step_fn=made.cell_step,
        static_fn=made.static_step,
        share_fn=lambda state: (np.asarray(state.age) == 0).mean() if state.is_propagating else 1.0,
        size=(config.data.height, config.data.width),
        classes=table.names,
        colors=table.colors,
        mode=mode,
        ids=datasets.written_ids(config.data),
        trained_on=datasets.title(config.data),
        has_cell=cell_training.has_cell(folder),
    )


def check_interval(mode: str, key_interval: int) -> None:
    """Checks an interval that is asked for.

    Raises:
      UserError: the mode has no key frames, or it is below 1.
    """
    if mode != "propagate":
        raise errors.UserError(f"key interval {key_interval}: mode {mode} has no key frames, leave it out")
    if key_interval < 1:
        raise errors.UserError(f"key interval {key_interval}: must be at least 1 (every frame is a key frame)")
