"""Small datasets in the exact layouts of their owners: real names, tiny random images. For the tests.

Images are reproducible: the content of a file depends on its name alone.
"""

import pathlib
import zlib

import numpy as np
from PIL import Image

SIZE = (40, 30)
SEGNET = {
    "train": ["0001TP_006690", "0001TP_006720", "0006R0_f00930", "0006R0_f00960", "0006R0_f00990", "0016E5_07950"]
    + ["0016E5_08190"],
    "val": ["0016E5_07959", "0016E5_07961", "0016E5_07963", "0016E5_07965", "0016E5_07969"],
    "test": ["0001TP_008550", "0001TP_008580", "Seq05VD_f00000", "Seq05VD_f00030", "Seq05VD_f00060"],
}
"""Frames of each split, as in the real dataset."""
CITYSCAPES = {
    "train": {"aachen_000000": [19], "aachen_000001": [19], "hamburg_000000": [629, 803]},
    "val": {"frankfurt_000000": [294, 576], "munster_000173": [19]},
    "test": {"berlin_000000": [19]},
}
"""Sequences of each split and the numbers of their labelled frames; hamburg and frankfurt are long sequences."""


def rng(name):
    """The generator of a file."""
    return np.random.default_rng(zlib.crc32(str(name).encode()))


def frame(name, size=SIZE):
    """A frame u8 [H, W, 3]: noise on a gradient of its own."""
    width, height = size
    generator = rng(name)
    ramp = np.linspace(0, 150, width)[None, :, None] * generator.random(3) + generator.integers(0, 60)
    return (ramp + generator.integers(0, 40, (height, width, 3))).astype(np.uint8)


def blocks(name, values, size=SIZE):
    """Labels [H, W]: blocks of 5x5 pixels with values drawn from `values`."""
    width, height = size
    drawn = rng(f"{name} labels").choice(np.asarray(values), (-(-height // 5), -(-width // 5)))
    return np.repeat(np.repeat(drawn, 5, 0), 5, 1)[:height, :width]


def save(path, array):
    """Writes an image, its folders too."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def camvid_segnet(root, *, splits=("train", "val", "test"), size=SIZE, is_video=False):
    """CamVid in the SegNet layout.

    Args:
      root: folder, made if need be.
      splits: which to write.
      size: (width, height).
      is_video: write `frames/` too, see `camvid_video`.
    """
    root = pathlib.Path(root)
    for split in splits:
        for name in SEGNET[split]:
            save(root / split / f"{name}.png", frame(name, size))
            save(root / f"{split}annot" / f"{name}.png", blocks(name, range(12), size).astype(np.uint8))
    if is_video:
        camvid_video(root, size)
    return root


def camvid_video(root, size=SIZE):
    """Frames of the videos `frames/<sequence>/<number>.png`: 0016E5 7951..7970, 0006R0 950..992."""
    for sequence, numbers in (("0016E5", range(7951, 7971)), ("0006R0", range(950, 993))):
        for number in numbers:
            name = f"{sequence}_{'f' if sequence == '0006R0' else ''}{number:05d}"
            save(pathlib.Path(root) / "frames" / sequence / f"{number:05d}.png", frame(name, size))


def camvid_official(root, *, size=SIZE, is_video=False, lists=None):
    """CamVid in the official layout.

    Args:
      root: folder, made if need be.
      size: (width, height).
      is_video: write `frames/` too.
      lists: split -> names, written as `<split>.txt`.
    """
    from dvsnas_jax.data.datasets import camvid

    root = pathlib.Path(root)
    colors = np.array([color for _, color, _ in camvid.OFFICIAL], np.uint8)
    for name in sum(SEGNET.values(), []):
        save(root / "701_StillsRaw_full" / f"{name}.png", frame(name, size))
        save(root / "LabeledApproved_full" / f"{name}_L.png", colors[blocks(name, range(32), size)])
    for split, names in (lists or {}).items():
        (root / f"{split}.txt").write_text("".join(f"{name}.png\n" for name in names))
    if is_video:
        camvid_video(root, size)
    return root


def cityscapes(root, *, size=(32, 16), is_video=True, is_still=True):
    """Cityscapes: snippets of 30 frames with the 20th labelled, the stills of the labelled frames, gtFine.

    Args:
      root: folder, made if need be.
      size: (width, height).
      is_video: write leftImg8bit_sequence.
      is_still: write leftImg8bit.
    """
    root = pathlib.Path(root)
    for split, sequences in CITYSCAPES.items():
        for sequence, labelled in sequences.items():
            city = sequence.split("_")[0]
            for target in labelled:
                for number in range(target - 19, target + 11) if is_video else ():
                    name = f"{sequence}_{number:06d}"
                    path = root / "leftImg8bit_sequence" / split / city / f"{name}_leftImg8bit.png"
                    save(path, frame(name, size))
                name = f"{sequence}_{target:06d}"
                if is_still:
                    save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", frame(name, size))
                ids = range(34) if split != "test" else (1, 3)  # the test labels are dummies
                labels = blocks(name, ids, size).astype(np.uint8)
                ground = root / "gtFine" / split / city
                save(ground / f"{name}_gtFine_labelIds.png", labels)
                save(ground / f"{name}_gtFine_color.png", frame(name, size))
                (ground / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


def folder(root, *, size=SIZE, splits=("train", "val")):
    """A folder of one's own: `images/<split>/<sequence>/<number>.png`, `masks/...` of every second frame.

    The masks hold the ids 10, 20, 30 of three classes and 0 = ignored.
    """
    root = pathlib.Path(root)
    for split in splits:
        for sequence in (f"{split}_a", f"{split}_b"):
            for number in range(6):
                place = f"{split}/{sequence}/{number:04d}.png"
                save(root / "images" / place, frame(place, size))
                if number % 2:
                    save(root / "masks" / place, blocks(place, (10, 20, 30, 0), size).astype(np.uint8))
    return root
