"""The embedded street clips: computed by `data.street`, with the 11 classes of CamVid."""

from __future__ import annotations

from dvsnas_jax.data.datasets import camvid, record


def _world(seed: int, split: str, height: int, width: int, degrade: float) -> record.World:
    from dvsnas_jax.data.street import synthetic  # the street knows the classes of this room

    return synthetic.Street(seed, split, height, width, degrade)


RECORD = record.Dataset(
    name="synthetic",
    order=0,
    title="Procedural street video with the 11 classes of CamVid",
    classes=lambda options: camvid.CLASSES,
    world=_world,
)
