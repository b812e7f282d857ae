"""A trained network and cell from a folder, ready for the frames of a video: the Python API.

    segmenter = dvsnas_jax.load("runs/quickstart")
    state = segmenter.init()
    for frame in frames:  # u8 [H, W, 3], of segmenter.size
        state, labels = segmenter.step(state, frame)

What a run folder needs (Flax, Optax, Orbax) is imported when one is opened; an exported folder needs JAX alone.
TensorFlow is never imported.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.infer import artifact
from dvsnas_jax.infer import dispatch as dispatch_lib

Frame = np.ndarray | jax.Array
State = dispatch_lib.State
"""Opaque: what `init` and `step` give, for the next `step`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """Segments the frames of videos, one at a time. It holds no state itself: any number of videos may take turns.

    Labels are `jax.Array`s: the call returns while the device still computes, `np.asarray(labels)` waits for it. So
    read the labels of a frame after the next frame was given, and both sides work at the same time.
    """

    size: tuple[int, int]  # height and width of the frames, pixels
    classes: tuple[str, ...]  # K names
    colors: np.ndarray  # u8 [K, 3], RGB
    ids: np.ndarray  # i32 [K], what masks of the data set hold for each class
    mode: str  # "refine" or "propagate"
    trained_on: str  # name of the data set; "" where an exported folder does not say it
    dispatch: dispatch_lib.Dispatch  # the same for batches of videos

    @property
    def has_cell(self) -> bool:
        """False: a static network alone, whose labels `step` gives."""
        return self.dispatch.has_cell

    def init(self) -> State:
        """The state before the first frame of a video, or after a cut."""
        return self.dispatch.initial_state()

    def step(self, state: State, frame: Frame) -> tuple[State, jax.Array]:
        """Segments the next frame, u8 [H, W, 3] RGB of the size `size`; the state before it stays valid.

        Returns:
          The state for the next frame, and labels u8 [H, W], which may still be computed.

        Raises:
          UserError: the frame is of another size or type.
        """
        state, labels = self.dispatch.step(state, self._batch(frame))
        return state, _first(labels)

    def static_step(self, frame: Frame) -> jax.Array:
        """Labels u8 [H, W] of the static network alone; takes what `step` takes."""
        return _first(self.dispatch.static_step(self._batch(frame)))

    def key_share(self, state: State) -> float:
        """Share of the last frame that the static network computed: 1 = a key frame; refine: always 1."""
        return self.dispatch.key_share(state)

    def segment(self, frames: Iterable[Frame]) -> Iterator[jax.Array]:
        """Segments one video of frames u8 [H, W, 3], which are read as the labels u8 [H, W] are asked for."""
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


@jax.jit
def _first(labels: jax.Array) -> jax.Array:
    """One video's of a batch, without waiting for it."""
    return labels[0]


def load(
    path: str | os.PathLike[str], *, key_interval: int | None = None, keep_in: str | os.PathLike[str] | None = None
) -> Segmenter:
    """Opens a trained network and cell. Programs are compiled at the first frame of each kind.

    Args:
      path: a run folder with a trained cell or a static network alone, or a folder that `dvsnas export` wrote.
      key_interval: propagate: the (longest) distance of key frames, in place of the run's `schedule.interval`.
      keep_in: a folder where the programs of a run folder are kept, so that they are traced once for all starts;
        XLA compiles them at each start unless JAX's compile cache is set, too. None: they are not kept.

    Raises:
      UserError: no such folder, nothing trained in it, or a `key_interval` that it cannot have.
    """
    folder = pathlib.Path(path)
    if not os.path.isdir(folder):
        raise errors.UserError(f"{folder}: no such folder, give a run folder or an exported one")
    about, made = artifact.open_folder(folder) if artifact.is_artifact(folder) else _open_run(folder, keep_in)
    if key_interval is not None:
        _check_interval(about["mode"], key_interval)
        made = made.with_interval(key_interval)
    return Segmenter(
        size=(about["size"][0], about["size"][1]),
        classes=tuple(about["classes"]),
        colors=np.array(about["colors"], np.uint8),
        ids=np.array(about.get("ids", range(len(about["classes"]))), np.int32),
        mode=about["mode"],
        trained_on=str(about.get("trained_on", "")),
        dispatch=made,
    )


def _open_run(
    path: pathlib.Path, keep_in: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], dispatch_lib.Dispatch]:
    if keep_in is not None:
        from dvsnas_jax.deploy import kept_programs

        try:
            return kept_programs.open_folder(path, pathlib.Path(keep_in))
        except OSError:  # no place for them: they are traced for this process alone
            pass
    from dvsnas_jax.deploy import run_model

    return run_model.open_folder(path)


def _check_interval(mode: str, key_interval: int) -> None:
    """A UserError where the mode has no key frames, or the interval is below 1."""
    if mode != "propagate":
        raise errors.UserError(f"key interval {key_interval}: mode {mode} has no key frames, leave it out")
    if key_interval < 1:
        raise errors.UserError(f"key interval {key_interval}: must be at least 1 (every frame is a key frame)")
