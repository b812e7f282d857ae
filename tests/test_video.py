"""Videos in and out: their times, turn and colours are kept, and damage is told in one line."""

import fractions
import types
import wave

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files, output_files
from dvsnas_jax.data.street import synthetic
from dvsnas_jax.infer.video import cuts, decoding, hdr, sources, writing

RATE = fractions.Fraction(25)


def scene(number, height=48, width=64):
    """A frame that tells its number and which way is up: a bright square in the upper left corner, a bar that moves."""
    image = np.full((height, width, 3), (40, 90, 160), np.uint8)
    image[: height // 4, : width // 4] = (250, 240, 20)
    image[height // 2 :, 2 * number % width :][:, :6] = (220, 20, 30)
    return image


def write(path, images, *, times=None, codec="libx264", pix_fmt="yuv420p", options=None, rotation=None):
    """A video file of u8 [H, W, 3] images; times in frames of RATE."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options={"crf": "4", "bf": "0"} if codec == "libx264" else {})
        stream.height, stream.width = (int(size) for size in images[0].shape[:2])
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = 1 / RATE
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (times or range(len(images)))[index], 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def seconds(source):
    """Times of all frames."""
    return [frame.pts * source.time_base for frame in source]


def close(a, b, tolerance=12):
    """Whether two images are the same but for compression."""
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).mean() < tolerance


# --- in -------------------------------------------------------------------------------------------


def test_h264_gives_every_frame_in_order(tmp_path):
    images = [scene(index) for index in range(12)]
    source = sources.open_source(write(tmp_path / "a.mp4", images))
    assert (source.size, source.rate, source.num_frames) == ((48, 64), RATE, 12)
    frames = list(source)
    assert [frame.name for frame in frames[::11]] == ["000000", "000011"]
    assert all(close(frame.image, image) for frame, image in zip(frames, images, strict=True))
    assert not close(frames[0].image, images[11], 3)
    assert [frame.pts * source.time_base for frame in frames] == [index / RATE for index in range(12)]
    assert source.warnings == [] and list(source) == []


def test_no_more_frames_than_asked_for(tmp_path):
    path = write(tmp_path / "a.mp4", [scene(index) for index in range(12)])
    source = sources.open_source(path, max_frames=5)
    assert source.num_frames == 5 and len(list(source)) == 5 and source.warnings == []
    assert sources.open_source(path, max_frames=50).num_frames == 12
    with pytest.raises(errors.UserError, match="at least 1, got 0"):
        sources.open_source(path, max_frames=0)


def test_variable_frame_rate_keeps_its_times(tmp_path):
    times = [3, 4, 8, 9, 30, 31]
    source = sources.open_source(write(tmp_path / "a.mp4", [scene(index) for index in range(6)], times=times))
    assert seconds(source) == [(time - 3) / RATE for time in times]


@pytest.mark.parametrize("angle", [90, -90, 180])
def test_rotation_in_the_metadata(angle, tmp_path):
    upright = scene(0)
    stored = np.rot90(upright, -angle // 90)  # turned back when it is played
    source = sources.open_source(write(tmp_path / "a.mp4", [np.ascontiguousarray(stored)] * 3, rotation=angle))
    assert source.size == (48, 64)
    (first, *_) = source
    assert close(first.image, upright) and first.image.flags.c_contiguous


def test_odd_sizes_and_grey(tmp_path):
    odd = write(tmp_path / "odd.mp4", [scene(0, 35, 51)] * 2, pix_fmt="yuv444p")
    assert sources.open_source(odd).size == (35, 51)
    grey = write(tmp_path / "grey.mkv", [scene(index) for index in range(3)], codec="ffv1", pix_fmt="gray")
    (frame, *_) = sources.open_source(grey)
    assert frame.image.shape == (48, 64, 3) and np.ptp(frame.image, axis=2).max() == 0
    assert abs(int(frame.image[2, 2, 0]) - 222) < 8  # the yellow's brightness


def test_one_frame_and_none(tmp_path):
    assert len(list(sources.open_source(write(tmp_path / "one.mp4", [scene(0)])))) == 1
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(errors.UserError, match=r"none\.mp4: holds no (frame|video)"):
        sources.open_source(str(path))


@pytest.mark.parametrize("share", [0.35, 0.7])
def test_a_truncated_file_is_read_as_far_as_it_goes(share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), np.uint8)
    path = tmp_path / "cut.mp4"
    write(path, list(noise), options={"movflags": "faststart"})  # the index comes first
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    source = sources.open_source(str(path))
    count = len(list(source))
    assert abs(count - 60 * share) < 8
    (line,) = source.warnings
    assert line.startswith(f"{path}: damaged (") and line.endswith(f"{count} of 60 frames could be read")


def test_a_truncated_file_without_its_index_is_refused(tmp_path):
    path = tmp_path / "cut.mp4"
    write(path, [scene(index) for index in range(30)])
    data = path.read_bytes()
    for end, why in ((-400, "End of file"), (len(data) // 2, "Invalid data")):
        path.write_bytes(data[:end])
        with pytest.raises(errors.UserError, match=rf"cut\.mp4: no video that can be read \({why}"):
            sources.open_source(str(path))


def test_damage_in_the_middle_is_told(tmp_path):
    path = tmp_path / "bad.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)
    write(path, list(noise))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 20000] = bytes(20000)
    path.write_bytes(data)
    source = sources.open_source(str(path))
    count = len(list(source))
    assert 5 < count < 40 and f"{count} of 40 frames could be read" in source.warnings[0]


def test_what_is_no_video(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("frame 1\nframe 2\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 1, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(800))
    for name, message in (
        ("text.mp4", r"text\.mp4: no video that can be read \(Invalid data found"),
        ("empty.mp4", r"empty\.mp4: the file is empty"),
        ("nope.mp4", r"nope\.mp4: no such file"),
        ("folder", r"folder: the folder holds no image \(\.png"),
        ("*.png", r"no file matches this pattern"),
        ("*.mp4", r"\.mp4: no image .* give a pattern of images alone"),
        ("sound.wav", r"sound\.wav: holds no video"),
    ):
        with pytest.raises(errors.UserError, match=message) as caught:
            sources.open_source(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def _tagged(path, values, *, matrix=2, color_range=0, transfer=2, primaries=2, deep=False):
    """A lossless video of one colour: Y, U, V and what the file says of them."""
    kind = "yuv420p10le" if deep else "yuv420p"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, kind
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc = matrix, color_range, transfer
        context.color_primaries = primaries
        for pts in range(2):
            frame = av.VideoFrame(64, 48, kind)
            for plane, value in zip(frame.planes, values, strict=True):
                plane.update(np.full(plane.buffer_size // (1 + deep), value, "<u2" if deep else "u1").tobytes())
            frame.colorspace, frame.color_range, frame.pts, frame.time_base = matrix, color_range, pts, 1 / RATE
            frame.color_trc, frame.color_primaries = transfer, primaries
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def _yuv(rgb, red, blue, *, is_full, scale=1):
    """Y, U, V of RGB in 0..1, by the shares of red and blue in the luma of a standard."""
    r, g, b = rgb
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))
    if is_full:
        return [round(scale * value) for value in (255 * y, 255 * u + 128, 255 * v + 128)]
    return [round(scale * value) for value in (219 * y + 16, 224 * u + 128, 224 * v + 128)]


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "shares"),
    [(1, (0.2126, 0.0722)), (5, (0.299, 0.114)), (6, (0.299, 0.114)), (9, (0.2627, 0.0593)), (2, (0.299, 0.114))],
)
def test_matrix_and_range_of_colours(matrix, shares, is_full, tmp_path):
    values = _yuv((200 / 255, 60 / 255, 30 / 255), *shares, is_full=is_full)
    deep = _yuv((200 / 255, 60 / 255, 30 / 255), *shares, is_full=is_full, scale=4)
    tags = {"matrix": matrix, "color_range": 2 if is_full else 1}
    for path in (_tagged(tmp_path / "a.mkv", values, **tags), _tagged(tmp_path / "b.mkv", deep, **tags, deep=True)):
        source = sources.open_source(path)
        (first, *_) = source
        assert np.abs(first.image.astype(int) - (200, 60, 30)).max() <= 2 and source.warnings == []


@pytest.mark.parametrize(("matrix", "name"), [(8, "YCgCo"), (14, "ICtCp"), (11, "those of matrix 11 of ITU-T H.273")])
def test_colours_that_cannot_be_read_are_refused_by_name(matrix, name, tmp_path):
    path = _tagged(tmp_path / "a.mkv", (100, 110, 120), matrix=matrix, color_range=1)
    with pytest.raises(errors.UserError, match=rf"a\.mkv: its colours are {name}.*; convert it to BT\.709 first"):
        sources.open_source(path)


def _pq(nits):
    power = (np.asarray(nits) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


@pytest.mark.parametrize(
    ("transfer", "code", "gray"),
    [
        (16, _pq(0.0), 0),
        (16, _pq(5.0), 43),  # sRGB of 5 / 203
        (16, _pq(50.0), 136),
        (16, _pq(100.0), 185),
        (16, _pq(1000.0), 255),
        (16, _pq(4000.0), 255),
        (18, 0.5, 137),  # 50.7 cd/m2 on a display of 1000
        (18, 1.0, 255),
    ],
)
def test_hdr_is_brought_to_the_range_of_ordinary_video(transfer, code, gray, tmp_path):
    values = _yuv((code,) * 3, 0.2627, 0.0593, is_full=False, scale=4)
    path = _tagged(tmp_path / "a.mkv", values, matrix=9, color_range=1, transfer=transfer, primaries=9, deep=True)
    source = sources.open_source(path)
    frames = list(source)
    assert len(frames) == 2 and np.abs(frames[1].image.astype(int) - gray).max() <= (8 if gray == 255 else 3)
    (line,) = source.warnings
    assert line == f"{path}: HDR ({'PQ' if transfer == 16 else 'HLG'}) is brought to the range of ordinary video, " + (
        "highlights are compressed"
    )


def test_hdr_highlights_stay_apart_and_colours_lie_in_the_small_gamut():
    whites = [hdr.ordinary(np.full((1, 3), _pq(nits)), 16, 9)[0, 0] * 255 for nits in (100, 152, 203, 400, 700, 1000)]
    steps = [(b - a).min() for a, b in zip(whites, whites[1:], strict=False)]
    assert min(steps[:3]) > 5 and min(steps) > 0.3 and 235 < whites[2].min() < 245
    red = np.array([[1.0, 0, 0]]) @ np.linalg.inv(hdr._BT2020_TO_BT709).T  # pure red of the small gamut
    found = hdr.ordinary(_pq(np.maximum(red, 0) * 100), 16, 9)[0] * 255
    assert abs(found[0] - 185) < 2 and found[1:].max() < 12
    same = hdr.ordinary(_pq(np.array([[100.0, 0, 0]])), 16, 1)[0] * 255
    assert abs(same[0] - 185) < 2 and same[1:].max() < 1


@pytest.mark.parametrize("angle", [0, 90, -90])
def test_a_mirrored_video_is_turned_and_mirrored(angle, tmp_path):
    """As front cameras of phones write it."""
    path = tmp_path / "a.mp4"
    upright = scene(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "4"})
        stored = np.ascontiguousarray(np.rot90(upright[:, ::-1], -angle // 90))
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "yuv420p"
        stream.set_display_rotation(angle, hflip=True)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode(None))
    (frame,) = sources.open_source(str(path))
    assert close(frame.image, upright)


def test_pixels_that_are_not_square_stay_so_when_the_picture_is_turned(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(16, 15)
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(0), format="rgb24")))
        container.mux(stream.encode(None))
    source = sources.open_source(str(path))
    assert source.size == (64, 48) and source.aspect == fractions.Fraction(15, 16)


def test_interlaced_video_is_deinterlaced(tmp_path):
    """A white bar moves between the two fields of a frame: without care, every other row shows it elsewhere."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        options = {"crf": "4", "bf": "0", "x264opts": "tff=1", "flags": "+ildct+ilme"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        for index in range(6):
            image = np.zeros((48, 64, 3), np.uint8)
            image[::2, 8 * index : 8 * index + 4] = image[1::2, 8 * index + 4 : 8 * index + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    source = sources.open_source(str(path))
    frames = list(source)
    assert [float(frame.pts * source.time_base * RATE) for frame in frames] == [0, 1, 2, 3, 4, 5]
    rows = frames[3].image[8:40, :, 0].astype(int)
    assert rows.max() > 200 and np.abs(rows[1:] - rows[:-1]).max() < 128


def test_covers_sound_and_subtitles_are_not_the_video(tmp_path):
    images = [scene(index) for index in range(3)]
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=44100), container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        for each in (cover, stream, sound):
            container.mux(each.encode(None))
    source = sources.open_source(str(path))
    assert source.size == (48, 64) and len(list(source)) == 3 and source.warnings == []


def test_the_main_stream_is_no_cover_and_the_one_marked_as_default():
    cover, thumbnails, plain, marked = (types.SimpleNamespace(disposition=value) for value in (0x401, 0x800, 0, 1))

    def chosen(*streams):
        return decoding.main_stream(types.SimpleNamespace(streams=types.SimpleNamespace(video=streams)))

    assert chosen(cover, thumbnails, plain, marked) is marked
    assert chosen(cover, plain) is plain and chosen(cover, thumbnails) is None and chosen() is None


# --- names and kinds of files ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b.mp4", "Straße 東京.mp4", "100%d [1].mp4", "12:30.mp4", "a*b?.mp4", "#a'\"b.mp4"])
def test_any_name_of_a_file_is_read_and_written(name, tmp_path):
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "plain.mp4", [scene(0)] * 2)
    (tmp_path / "in" / "plain.mp4").rename(tmp_path / "in" / name)
    assert len(list(sources.open_source(str(tmp_path / "in" / name)))) == 2 and path
    writer = writing.VideoWriter(tmp_path / name, (48, 64), rate=RATE, time_base=1 / RATE)
    writer.write(scene(0), 0)
    writer.close()
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == [name]
    folder = tmp_path / f"{name} frames"
    folder.mkdir()
    Image.fromarray(scene(0)).save(folder / "0.png")
    for given in (folder, folder / "*.png", folder / "0.png"):
        (frame,) = sources.open_source(str(given))
        np.testing.assert_array_equal(frame.image, scene(0))


@pytest.mark.parametrize(
    "names",
    [
        ["f1", "f9", "f10", "f100"],
        ["1403636579.763550", "1403636579.763551", "1403636580.000001"],
        ["0.1", "0.15", "0.2", "1.0", "1.25", "10.5"],  # as Python prints seconds
        ["v1.8", "v1.9", "v1.10", "v1.11"],  # a counter
        ["frame.1", "frame.2", "frame.10"],
        ["1.2.9", "1.2.10", "1.10.1"],
        ["a 2", "a 10", "b 1"],
    ],
)
def test_names_are_read_in_the_order_of_their_numbers(names, tmp_path):
    for name in sorted(names, key=hash):
        Image.fromarray(scene(0)).save(tmp_path / f"{name}.jpg")
    source = sources.open_source(str(tmp_path))
    assert [frame.name for frame in source] == names and source.warnings == []


def test_frames_and_masks_under_one_name_are_told(tmp_path):
    for number in range(3):
        Image.fromarray(scene(number)).save(tmp_path / f"{number}.jpg")
        Image.fromarray(scene(number)).save(tmp_path / f"{number}.png")
    source = sources.open_source(str(tmp_path))
    assert source.warnings == [
        f"{tmp_path}: names repeat: 6 images have 3 names (0.jpg, 0.png), all are read as frames, masks too; "
        f"give a pattern of the frames alone, as '{tmp_path}/*.jpg'"
    ]
    assert [frame.name for frame in source] == [f"{index:06d}" for index in range(6)]
    advised = sources.open_source(f"{tmp_path}/*.jpg")
    assert [frame.name for frame in advised] == ["0", "1", "2"] and advised.warnings == []


@pytest.mark.parametrize(("kind", "suffix"), [("GIF", "gif"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")])
def test_animations_are_videos_with_their_own_times(kind, suffix, tmp_path):
    images = [scene(index) for index in range(4)]
    durations = [40, 100, 0 if kind == "GIF" else 20, 40]
    options = {} if kind == "TIFF" else {"duration": durations, **({"lossless": True} if kind == "WEBP" else {})}
    pictures = [Image.fromarray(image) for image in images]
    path = tmp_path / f"a.{suffix}"
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], **options)
    source = sources.open_source(str(path))
    assert source.num_frames == 4 and source.size == (48, 64)
    frames = list(source)
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(frame.image.astype(int) - image).max() <= (8 if kind == "GIF" else 0)
    if kind == "TIFF":
        assert [frame.pts * source.time_base * 30 for frame in frames] == [0, 1, 2, 3]
        assert [frame.name for frame in sources.open_source(str(path), rate=10, max_frames=2)] == ["000000", "000001"]
    else:
        third = 240 if kind == "GIF" else 160  # 0: 100 ms, as browsers do
        assert [round(frame.pts * source.time_base * 1000) for frame in frames] == [0, 40, 140, third]
        with pytest.raises(errors.UserError, match="an animation has times of its own"):
            sources.open_source(str(path), rate=10)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    if kind in ("GIF", "PNG"):
        cut = sources.open_source(str(path))
        assert 1 <= len(list(cut)) < 4


def test_a_gif_among_frames_is_no_frame_and_an_animation_among_them_is_refused(tmp_path):
    pictures = [Image.fromarray(scene(index)) for index in range(3)]
    pictures[0].save(tmp_path / "preview.gif", save_all=True, append_images=pictures[1:])
    pictures[0].save(tmp_path / "0.png")
    assert [frame.name for frame in sources.open_source(str(tmp_path))] == ["0"]
    pictures[0].save(tmp_path / "1.png", save_all=True, append_images=pictures[1:])
    with pytest.raises(errors.UserError, match=r"1\.png: holds 3 pictures"):
        list(sources.open_source(str(tmp_path)))


def test_a_link_that_leads_nowhere_is_no_frame_less(tmp_path):
    Image.fromarray(scene(0)).save(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to("nowhere.png")
    (tmp_path / "2.png").mkdir()
    with pytest.raises(errors.UserError, match=r"1\.png: not a readable image \(No such file"):
        list(sources.open_source(str(tmp_path)))


def test_a_folder_of_something_else_says_what_is_there(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(
        errors.UserError, match=r"the folder holds no image \(.*\); there is IMG_1\.HEIC: give the file"
    ):
        sources.open_source(str(tmp_path))


def test_cameras():
    with pytest.raises(errors.UserError, match=r"camera:77: no such camera \(/dev/video77, there is .*give"):
        sources.open_source("camera:77")
    with pytest.raises(errors.UserError, match="camera:front: a camera needs a number"):
        sources.open_source("camera:front")


def test_folders_and_globs_go_by_number(tmp_path):
    for number in (10, 9, 100, 1):
        Image.fromarray(scene(number)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    for name in (str(tmp_path), str(tmp_path / "f*.png")):
        source = sources.open_source(name, rate=12.5)
        assert (source.num_frames, source.rate, source.size) == (4, fractions.Fraction(25, 2), (48, 64))
        frames = list(source)
        assert [frame.name for frame in frames] == ["f1", "f9", "f10", "f100"]
        np.testing.assert_array_equal(frames[2].image, scene(10))
        assert frames[3].pts * source.time_base == fractions.Fraction(6, 25)
    assert [frame.name for frame in sources.open_source(str(tmp_path / "f9.png"))] == ["f9"]
    (tmp_path / "f9.png").write_bytes(b"no image")
    with pytest.raises(errors.UserError, match=r"f9\.png: not a readable image"):
        list(sources.open_source(str(tmp_path)))


# --- out ------------------------------------------------------------------------------------------


def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "o.mp4"
    images = [scene(index, 35, 51) for index in range(8)]
    base = fractions.Fraction(1, 600)
    writer = writing.VideoWriter(path, (35, 51), rate=RATE, time_base=base)
    times = [0, 20, 30, 100, 101, 300, 500, 507]
    for image, pts in zip(images, times, strict=True):
        writer.write(image, pts)
    writer.close()
    writer.close()
    assert writer.size == (36, 52)
    source = sources.open_source(str(path))
    assert source.size == (36, 52)
    frames = list(source)
    assert [frame.pts * source.time_base for frame in frames] == [time * base for time in times]
    for frame, image in zip(frames, images, strict=True):
        assert close(frame.image[:35, :51], image, 9)
        assert np.abs(frame.image[0, 2].astype(int) - (250, 240, 20)).max() < 16  # the colours are tagged
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_outputs_that_cannot_be(tmp_path):
    with pytest.raises(errors.UserError, match=r"o\.avi must end in \.mp4 or \.mov or \.mkv"):
        output_files.check_file(tmp_path / "o.avi", suffixes=writing.SUFFIXES)
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.UserError, match=r"--output: cannot write .*file/o\.mp4: .*file is no folder"):
        output_files.check_file(tmp_path / "file" / "o.mp4", suffixes=writing.SUFFIXES)
    (tmp_path / "o.mp4").mkdir()
    with pytest.raises(errors.UserError, match=r"o\.mp4 is a folder"):
        output_files.check_file(tmp_path / "o.mp4", suffixes=writing.SUFFIXES)
    with pytest.raises(errors.UserError, match=r"--output: cannot write .*o\.mp4"):
        writing.VideoWriter(tmp_path / "o.mp4", (8, 8), rate=RATE, time_base=1 / RATE).write(scene(0, 8, 8), 0)


def test_overlay_and_masks(tmp_path):
    colors = np.array([(0, 0, 0), (255, 255, 255), (10, 20, 30)], np.uint8)
    labels = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    image = np.full((2, 3, 3), (100, 200, 255), np.uint8)
    found = writing.Palette(colors, 0.25).overlay(image, labels).astype(int)
    assert np.abs(found[0, 0] - (75, 150, 191.25)).max() <= 1
    assert np.abs(found[0, 1] - (138.75, 213.75, 255)).max() <= 1
    assert np.abs(found[1, 0] - (77.5, 155, 198.75)).max() <= 1
    palette = writing.Palette(colors, 0.5)
    np.testing.assert_array_equal(writing.Palette(colors, 0.0).overlay(image, labels), image)
    np.testing.assert_array_equal(writing.Palette(colors, 1.0).overlay(image, labels), palette.table[labels])
    writing.write_mask(tmp_path, "ids", labels, np.arange(256, dtype=np.uint8))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "ids.png")), labels)
    writing.write_mask(tmp_path, "colors", labels, palette.table)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "colors.png"))[0], colors)


def test_labels_are_resized_to_the_nearest():
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(image_files.resized_nearest(labels, (2, 3)), [[1, 2, 2], [3, 4, 4]])
    assert image_files.resized_nearest(labels, (2, 2)) is labels
    np.testing.assert_array_equal(image_files.resized_nearest(labels, (4, 4)), labels.repeat(2, 0).repeat(2, 1))


# --- cuts -----------------------------------------------------------------------------------------


def _takes(*parts):
    images = [image for part in parts for image in part]
    marked = list(cuts.mark(images, lambda image: image))
    assert len(marked) == len(images) and all(a is b for (a, _), b in zip(marked, images, strict=True))
    return [index for index, (_, is_cut) in enumerate(marked) if is_cut]


def test_cuts_are_found_and_motion_is_none():
    street = synthetic.Street(0, "val", 48, 64)
    a, b, c = (street.clip(index, 8, with_flow=False).clean for index in range(3))
    assert _takes(a) == [] and _takes(a, b, c) == [8, 16]
    assert _takes(a, b[:1]) == [8], "a cut at the last frame"
    assert _takes(a[::4]) == [], "four times as fast"
    pan = [np.roll(a[0], 3 * shift, axis=1) for shift in range(8)]
    assert _takes(pan) == []


def test_a_spoilt_frame_and_other_light_are_no_cut():
    street = synthetic.Street(0, "val", 48, 64)
    a, b = (street.clip(index, 9, with_flow=False).clean for index in range(2))
    spoilt = a.copy()
    spoilt[4] = np.random.default_rng(0).integers(0, 255, a[4].shape, np.uint8)
    assert _takes(spoilt, b) == [9]
    darker = a.copy()
    darker[5:] = darker[5:] // 2 + 10
    assert _takes(darker) == []
    assert _takes([np.zeros_like(a[0])] * 4) == []
    assert list(cuts.mark([], lambda image: image)) == []


def test_a_folder_of_the_name_of_a_frame_is_no_frame(tmp_path):
    for number in range(2):
        Image.fromarray(scene(number)).save(tmp_path / f"f{number}.png")
    (tmp_path / "f2.png").mkdir()
    for name in (str(tmp_path), str(tmp_path / "*.png")):
        assert [frame.name for frame in sources.open_source(name)] == ["f0", "f1"]
    (tmp_path / "only.png").mkdir()
    with pytest.raises(errors.UserError, match="no file matches this pattern; give another one"):
        sources.open_source(str(tmp_path / "only*"))


@pytest.mark.parametrize("rate", [0.001, 1000])
def test_the_slowest_and_the_fastest_rate_are_written(tmp_path, rate):
    Image.fromarray(scene(0, 16, 16)).save(tmp_path / "f.png")
    source = sources.open_source(str(tmp_path), rate=rate)
    writer = writing.VideoWriter(tmp_path / "o.mp4", (16, 16), rate=source.rate, time_base=source.time_base)
    for number in range(3):
        writer.write(scene(0, 16, 16), number)
    writer.close()
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert [round(frame.time * rate) for frame in container.decode(video=0)] == [0, 1, 2]
