"""The embedded street clips: computed by `data.street`, with the 11 classes of CamVid."""

from __future__ import annotations

from typing import Any

from dvsnas_jax.core import types
from dvsnas_jax.data.datasets import camvid, record


def _render(**options: Any) -> types.Sequence:
    from dvsnas_jax.data.street import synthetic  # the street knows the classes of this room

    return synthetic.clip(**options)


RECORD = record.Dataset(
    name="synthetic",
    order=0,
    title="Procedural street video with the 11 classes of CamVid",
    classes=lambda options: camvid.CLASSES,
    render=_render,
)
