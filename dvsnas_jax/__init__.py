"""Neural architecture search of dynamic cells for video segmentation, in JAX."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvsnas_jax.deploy import load as load_lib

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str], *, key_interval: int | None = None, keep_in: str | os.PathLike[str] | None = None
) -> load_lib.Segmenter:
    """Opens a run folder or an exported one for the frames of a video, see `dvsnas_jax.deploy.load`."""
    from dvsnas_jax.deploy import load as load_lib

    return load_lib.load(path, key_interval=key_interval, keep_in=keep_in)
