"""What files say of their pixels (orientation, bit depth, palette, alpha, several pictures) counts for every reader."""

import io
import struct
import zlib

import numpy as np
import pytest
import trees
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files
from dvsnas_jax.data import preview
from dvsnas_jax.data.datasets import frames, layouts
from dvsnas_jax.data.loading import decode, encoded_frames, store, whole_videos
from dvsnas_jax.data.prepared import encoded, prepare
from dvsnas_jax.evaluate import submission
from dvsnas_jax.infer.video import sources

FOLDER = {
    "frames": "images/{split}/{sequence}/{number}.*",
    "masks": "masks/{split}/{sequence}/{number}.*",
    "classes": tuple("abcd"),
}
CODE = frames.id_code((i, i) for i in range(4))


def turned(pixels, orientation):
    """What is stored, where `pixels` is what is meant: the inverse of the turn that EXIF asks for."""
    quarters, is_mirrored = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (1, 1), 6: (1, 0), 7: (3, 1), 8: (3, 0)}[
        orientation
    ]
    stored = np.rot90(pixels, quarters)
    return np.ascontiguousarray(stored[:, ::-1] if orientation in (2, 4) else stored[::-1] if is_mirrored else stored)


def encode(pixels, kind, orientation=1, **options):
    """An image file with an orientation."""
    image, buffer = Image.fromarray(turned(pixels, orientation)), io.BytesIO()
    if orientation != 1:
        exif = image.getexif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(samples, depth, kind):
    """A PNG file by hand: samples [H, W, channels] of so many bits, of a kind of colour that Pillow may not write."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def make_data(root, height, width, **changes):
    """The section of a folder whose frames may have any suffix."""
    data = config_lib.defaults().data
    data.update({"name": "folder", "dir": str(root), "height": height, "width": width, "num_frames": 1, "flip": False})
    data.update({"crop_height": height, "crop_width": width, "jitter": 0.0, **changes})
    data.folder.update(FOLDER)
    return data


def write_tree(root, images, masks):
    """Frames and masks, as bytes by their suffix."""
    for folder, contents in (("images", images), ("masks", masks)):
        (root / folder / "val" / "v").mkdir(parents=True)
        for number, (suffix, content) in enumerate(contents):
            (root / folder / "val" / "v" / f"{number:02d}.{suffix}").write_bytes(content)


def by_both_loaders(data, loaders=("numpy", "tf")):
    """Frames and labels of the only video, by loader."""
    found = []
    for loader in loaders:
        data.loader = loader
        (video,) = whole_videos.open_split(data, "val")
        found.append((video.frames, video.labels))
    return found


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_all_eight_orientations_are_read_upright(kind, tmp_path):
    pixels = trees.frame("a", (16, 12))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    for orientation in range(1, 9):
        content = encode(pixels, kind, orientation, **options)
        found = image_files.read_image(tmp_path / "x", content)
        assert found.shape == pixels.shape and image_files.size(content) == (16, 12)
        assert np.abs(found.astype(int) - pixels).max() <= (6 if kind == "JPEG" else 0), orientation
        if kind == "PNG":
            label = encode(trees.blocks("a", range(4), (16, 12)).astype(np.uint8), kind, orientation)
            np.testing.assert_array_equal(
                decode.read_label(tmp_path / "x", CODE, label), trees.blocks("a", range(4), (16, 12))
            )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_orientation_behind_the_pixels_and_in_xmp_counts_and_a_broken_one_does_not(tmp_path):
    pixels = trees.frame("a", (16, 12))
    content = encode(pixels, "PNG", 6)
    at = content.index(b"eXIf") - 4
    length = struct.unpack(">I", content[at : at + 4])[0] + 12
    chunk, rest = content[at : at + length], content[:at] + content[at + length :]
    behind = rest[:-12] + chunk + rest[-12:]
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = io.BytesIO()
    Image.fromarray(turned(pixels, 6)).save(text, "JPEG", quality=100, subsampling=0, xmp=xmp)
    for found in (behind, text.getvalue()):
        assert image_files.size(found) == (16, 12) and not image_files.is_common(found)
        assert np.abs(image_files.read_image(tmp_path / "x", found).astype(int) - pixels).max() <= 6
    broken = io.BytesIO()
    Image.fromarray(pixels).save(broken, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert image_files.read_image(tmp_path / "x", broken.getvalue()).shape == pixels.shape
    for orientation in (0, 9, 77):
        odd = Image.fromarray(pixels).getexif()
        odd[0x0112] = orientation
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", exif=odd)
        np.testing.assert_array_equal(image_files.read_image(tmp_path / "x", buffer.getvalue()), pixels)


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """Frames of 24x16 pixels that lie on their side in their files, masks that stand, and what is meant."""
    root = tmp_path_factory.mktemp("phone")
    pixels = [trees.frame(f"p{i}", (16, 24)) for i in range(6)]
    labels = [trees.blocks(f"p{i}", range(4), (16, 24)).astype(np.uint8) for i in range(6)]
    kinds = [("png", 6), ("webp", 8), ("tif", 5), ("png", 7), ("png", 3), ("tiff", 1)]
    names = {"png": "PNG", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF"}
    write_tree(
        root,
        [
            (suffix, encode(image, names[suffix], turn, **({"lossless": True} if suffix == "webp" else {})))
            for image, (suffix, turn) in zip(pixels, kinds, strict=True)
        ],
        [("png", encode(label, "PNG", turn)) for label, turn in zip(labels, (1, 1, 1, 6, 8, 1), strict=True)],
    )
    return root, np.stack(pixels), np.stack(labels)


def test_both_loaders_turn_frames_and_labels(phone):
    root, pixels, labels = phone
    for images, found in by_both_loaders(make_data(root, 24, 16)):
        np.testing.assert_array_equal(images, pixels)
        np.testing.assert_array_equal(found, labels)


def test_check_preview_prepared_data_and_predictions_are_upright(phone, tmp_path, capsys):
    root, pixels, labels = phone
    words = [f"--config.data.folder.{key}={value}" for key, value in {**FOLDER, "classes": "a,b,c,d"}.items()]
    assert cli.main(["data", "check", str(root), "--layout=folder", *words]) == 0
    assert "16x24 (6)" in capsys.readouterr().out
    data = make_data(root, 24, 16)
    sheet = preview.render(data, split="val", num_clips=1, num_frames=6)
    np.testing.assert_array_equal(sheet[:24, :16], pixels[0])
    for size, folder in (({}, "whole"), ({"height": 12, "width": 8}, "half")):
        prepare.run(data, tmp_path / folder, splits=("val",), **size)
        data.prepared = str(tmp_path / folder)
        if folder == "whole":
            found = store.load(data, "val")
            np.testing.assert_array_equal(found.frames, pixels)
            np.testing.assert_array_equal(found.labels, labels)
            paths = submission.write(lambda v: (None, np.zeros(v.shape[:3], np.uint8)), data, "val", tmp_path / "p")
            assert {Image.open(path).size for path in paths} == {(16, 24)}
    half = store.read(encoded_frames.open_media(data, "val"), range(6), (12, 8), what="x")
    np.testing.assert_array_equal(half.labels, labels[:, 1::2, 1::2])
    expected = Image.fromarray(pixels[3]).resize((8, 12), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(half.frames[3], np.asarray(expected))
    data.prepared = ""
    paths = submission.write(lambda v: (None, np.zeros(v.shape[:3], np.uint8)), data, "val", tmp_path / "results")
    assert {Image.open(path).size for path in paths} == {(16, 24)} and len(paths) == 6


def test_labels_that_lie_where_the_frame_is_turned_are_told_why(tmp_path):
    pixels = trees.frame("a", (16, 24))
    (tmp_path / "a.jpg").write_bytes(encode(pixels, "JPEG", 6))
    trees.save(tmp_path / "a.png", np.zeros((16, 24), np.uint8))
    frame = frames.Frame("a", 0, tmp_path / "a.jpg", tmp_path / "a.png")
    for read in (lambda: decode.load(frame, CODE, (24, 16)), lambda: encoded.pair(frame)):
        with pytest.raises(errors.UserError, match=r"24x16 pixels, but its frame a\.jpg has 16x24; .*EXIF orientation"):
            read()


def test_segment_reads_photos_upright(phone):
    root, pixels, _ = phone
    source = sources.open_source(str(root / "images" / "val" / "v"))
    assert source.size == (24, 16)
    np.testing.assert_array_equal([frame.image for frame in source], pixels)


# --- kinds of pixels ------------------------------------------------------------------------------


def _kinds():
    """Name, suffix, bytes, and the pixels u8 [12, 16, 3] that are meant."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(trees.frame("k", (16, 12)))
    whole = np.asarray(image)
    grey = np.asarray(image.convert("L"))
    deep = rng.integers(0, 65536, (12, 16, 4))

    def saved(picture, kind="PNG", **options):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    def three(values):
        return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)

    palette = image.quantize(20)
    mapped = np.asarray(palette.convert("RGB"))
    alpha = np.dstack([whole, rng.integers(0, 255, (12, 16), np.uint8)])
    yield "palette", "png", saved(palette), mapped
    yield "palette with a transparent colour", "png", saved(palette, transparency=3), mapped
    yield "palette with alpha", "png", saved(palette, transparency=bytes(range(0, 200, 10))), mapped
    yield "alpha", "png", saved(Image.fromarray(alpha)), whole
    yield "alpha of WebP", "webp", saved(Image.fromarray(alpha), "WEBP", lossless=True, exact=True), whole
    yield "a transparent colour", "png", saved(image, transparency=tuple(whole[0, 0].tolist())), whole
    yield "gamma", "png", _with_gamma(saved(image)), whole
    yield "interlaced", "png", saved(image, interlace=1), whole
    yield "grey", "png", saved(image.convert("L")), three(grey)
    content = saved(image.convert("L"), "JPEG")
    yield "grey JPEG", "jpg", content, three(np.asarray(Image.open(io.BytesIO(content))))
    for depth in (1, 2, 4):
        samples = rng.integers(0, 1 << depth, (12, 16, 1))
        yield f"{depth} bits", "png", png(samples, depth, 0), three(samples[..., 0] * 255 // ((1 << depth) - 1))
    yield "16 bits of grey", "png", png(deep[..., :1], 16, 0), three(deep[..., 0] >> 8)
    yield "16 bits of grey and alpha", "png", png(deep[..., :2], 16, 4), three(deep[..., 0] >> 8)
    yield "16 bits of colour", "png", png(deep[..., :3], 16, 2), (deep[..., :3] >> 8).astype(np.uint8)
    yield "16 bits of colour and alpha", "png", png(deep, 16, 6), (deep[..., :3] >> 8).astype(np.uint8)
    tiff = saved(Image.fromarray(deep[..., 0].astype(np.uint16)), "TIFF")
    yield "16 bits of grey in TIFF", "tif", tiff, three(deep[..., 0] >> 8)
    ink = 255 - np.dstack([whole, np.full((12, 16), 255, np.uint8)])  # no black
    yield "CMYK", "tiff", saved(Image.fromarray(ink, "CMYK"), "TIFF"), whole
    yield "BMP", "bmp", saved(image, "BMP"), whole
    yield "BMP with a palette", "bmp", saved(palette, "BMP"), mapped
    yield "GIF", "gif", saved(palette, "GIF"), mapped
    for number, options in enumerate(({"subsampling": 2}, {"subsampling": 0, "progressive": True})):
        content = saved(image, "JPEG", **options)
        yield f"JPEG {number}", "jpg", content, np.asarray(Image.open(io.BytesIO(content)))
    content = saved(image, "MPO", save_all=True, append_images=[palette.convert("RGB")])  # a phone's, with a preview
    yield "MPO", "jpg", content, np.asarray(Image.open(io.BytesIO(content)))
    content = saved(image.convert("CMYK"), "JPEG", quality=100)
    yield "CMYK JPEG", "jpg", content, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _with_gamma(content):
    chunk = b"gAMA" + struct.pack(">I", 100000)
    return content[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


KINDS = list(_kinds())


def test_every_kind_of_pixels_is_read_alike_by_both_loaders(tmp_path, recwarn):
    labels = trees.blocks("k", range(4), (16, 12)).astype(np.uint8)
    masks = [("png", encode(labels, "PNG"))] * len(KINDS)
    write_tree(tmp_path, [(suffix, content) for _, suffix, content, _ in KINDS], masks)
    ours, theirs = by_both_loaders(make_data(tmp_path, 12, 16))
    for number, (name, _, _, expected) in enumerate(KINDS):
        np.testing.assert_array_equal(ours[0][number], expected, err_msg=name)
        np.testing.assert_array_equal(theirs[0][number], expected, err_msg=f"{name}, tf")
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert not [w for w in recwarn if "transparency" in str(w.message).lower()]


def test_masks_of_other_depths_hold_the_same_ids(tmp_path):
    labels = trees.blocks("k", range(4), (16, 12)).astype(np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette([7 * i % 256 for i in range(768)])
    contents = [("png", encode(labels, "PNG", turn)) for turn in (1, 6)]
    for picture, kind, options in (
        (Image.fromarray(labels.astype(np.uint16)), "png", {}),
        (palette, "png", {"transparency": 0}),
        (Image.fromarray(labels), "tif", {}),
        (palette, "bmp", {}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, {"tif": "TIFF"}.get(kind, kind.upper()), **options)
        contents.append((kind, buffer.getvalue()))
    write_tree(tmp_path, [("png", encode(trees.frame("k", (16, 12)), "PNG"))] * len(contents), contents)
    for _, found in by_both_loaders(make_data(tmp_path, 12, 16)):
        np.testing.assert_array_equal(found, np.broadcast_to(labels, found.shape))


def _animation(kind):
    buffer = io.BytesIO()
    pictures = [Image.fromarray(trees.frame(f"m{i}", (16, 12))) for i in range(3)]
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=40)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif")])
def test_an_animation_is_no_frame(kind, suffix, tmp_path, capsys):
    write_tree(tmp_path, [(suffix, _animation(kind))], [("png", encode(np.zeros((12, 16), np.uint8), "PNG"))])
    said = rf"00\.{suffix}: holds 3 pictures \(an animated or paged {kind}\), a frame is one"
    for loader in ("numpy", "tf"):
        with pytest.raises(errors.UserError, match=said):
            by_both_loaders(make_data(tmp_path, 12, 16), (loader,))
    with pytest.raises(errors.UserError, match=said):
        encoded.pair(layouts.find(make_data(tmp_path, 12, 16), "val").frames[0])


def test_pixels_without_eight_bits_are_refused_by_name(tmp_path):
    for values in (np.linspace(0, 1, 192).reshape(12, 16).astype(np.float32), np.full((12, 16), 70000, np.int32)):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "TIFF")
        with pytest.raises(errors.UserError, match=r"x\.tif: its pixels (are floats|have 32 bits); save it"):
            image_files.read_image(tmp_path / "x.tif", buffer.getvalue())
