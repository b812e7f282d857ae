"""CamVid's classes: the usual 11, and the 32 official ones with the grouping in common use.

The grouping is that of SegNet's training (Badrinarayanan, Kendall, Cipolla 2017), row by row as
MathWorks' CamVid example writes it down (`camvidPixelLabelIDs`). Names and colours of the 32 are
those of the dataset's `label_colors.txt`. What the 11 classes leave out is ignored: only Void.
"""

from __future__ import annotations

import numpy as np

from dvsnas_jax.core import types
from dvsnas_jax.data.datasets import frames

_CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

TABLE = types.ClassTable(
    names=tuple(name for name, _ in _CLASSES),
    colors=np.array([color for _, color in _CLASSES], np.uint8),
)
"""The 11 classes, in the order and colours of the SegNet tutorial data."""

OFFICIAL = (
    ("Animal", (64, 128, 64), "pedestrian"),
    ("Archway", (192, 0, 128), "building"),
    ("Bicyclist", (0, 128, 192), "bicyclist"),
    ("Bridge", (0, 128, 64), "building"),
    ("Building", (128, 0, 0), "building"),
    ("Car", (64, 0, 128), "car"),
    ("CartLuggagePram", (64, 0, 192), "pedestrian"),
    ("Child", (192, 128, 64), "pedestrian"),
    ("Column_Pole", (192, 192, 128), "pole"),
    ("Fence", (64, 64, 128), "fence"),
    ("LaneMkgsDriv", (128, 0, 192), "road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "road"),
    ("Misc_Text", (128, 128, 64), "sign"),
    ("MotorcycleScooter", (192, 0, 192), "bicyclist"),
    ("OtherMoving", (128, 64, 64), "car"),
    ("ParkingBlock", (64, 192, 128), "pavement"),
    ("Pedestrian", (64, 64, 0), "pedestrian"),
    ("Road", (128, 64, 128), "road"),
    ("RoadShoulder", (128, 128, 192), "pavement"),
    ("Sidewalk", (0, 0, 192), "pavement"),
    ("SignSymbol", (192, 128, 128), "sign"),
    ("Sky", (128, 128, 128), "sky"),
    ("SUVPickupTruck", (64, 128, 192), "car"),
    ("TrafficCone", (0, 0, 64), "pole"),
    ("TrafficLight", (0, 64, 64), "sign"),
    ("Train", (192, 64, 128), "car"),
    ("Tree", (128, 128, 0), "tree"),
    ("Truck_Bus", (192, 128, 192), "car"),
    ("Tunnel", (64, 0, 64), "building"),
    ("VegetationMisc", (192, 192, 0), "tree"),
    ("Void", (0, 0, 0), None),
    ("Wall", (64, 192, 0), "building"),
)
"""(official name, RGB, one of the 11 or None = ignored), all 32."""


def official_code() -> frames.LabelCode:
    """How the colours of `LabeledApproved_full` become the 11 train ids; and those of `TABLE`, which are written."""
    train = {name: i for i, name in enumerate(TABLE.names)}
    own = [(color, train[name]) for name, color in _CLASSES]
    return frames.color_code(
        [*own, *((color, types.IGNORE if group is None else train[group]) for _, color, group in OFFICIAL)]
    )


def segnet_code() -> frames.LabelCode:
    """How the ids of the SegNet layout become train ids: 0..10 are themselves, 11 is void."""
    return frames.id_code([*((i, i) for i in range(TABLE.num_classes)), (TABLE.num_classes, types.IGNORE)])
