"""A video as frames in memory, decoded as `dvsnas segment` decodes it."""

from __future__ import annotations

import functools

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data.loading import store


@functools.lru_cache(maxsize=8)
def read(path: str, size: tuple[int, int]) -> np.ndarray:
    """All frames of a video file, an animation or a folder of images, resized to (height, width), u8 [n, H, W, 3].

    They are kept for the life of the process.

    Raises:
      UserError: nothing is there, it cannot be read, or it is too large for the memory.
    """
    from dvsnas_jax.infer.video import sources  # its packages need not be there where no video is read

    frames: list[np.ndarray] = []
    needed, free = size[0] * size[1] * 3, store.free_memory()
    for frame in sources.open_source(path):
        frames.append(image_files.resized(frame.image, size))
        if 2 * len(frames) * needed > free:  # once as a list, once as an array
            raise errors.UserError(
                f"{path}: its first {len(frames)} frames at {size[1]}x{size[0]} take {len(frames) * needed / 1e9:.1f} "
                "GB, more than half of the free memory; shorten the video, or extract frames into a folder"
            )
    return np.stack(frames)
