"""Videos in and out: their times, turn and colours are kept, and damage is told in one line."""

import fractions
import wave

import av
import numpy as np
import pytest
from PIL import Image

from dvsnas_jax.core import errors
from dvsnas_jax.data import synthetic
from dvsnas_jax.run import cuts, video, video_out

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
    source = video.open_source(write(tmp_path / "a.mp4", images))
    assert (source.size, source.rate, source.num_frames) == ((48, 64), RATE, 12)
    frames = list(source)
    assert [frame.name for frame in frames[::11]] == ["000000", "000011"]
    assert all(close(frame.image, image) for frame, image in zip(frames, images, strict=True))
    assert not close(frames[0].image, images[11], 3)
    assert [frame.pts * source.time_base for frame in frames] == [index / RATE for index in range(12)]
    assert source.warnings == [] and list(source) == []


def test_no_more_frames_than_asked_for(tmp_path):
    path = write(tmp_path / "a.mp4", [scene(index) for index in range(12)])
    source = video.open_source(path, max_frames=5)
    assert source.num_frames == 5 and len(list(source)) == 5 and source.warnings == []
    assert video.open_source(path, max_frames=50).num_frames == 12
    with pytest.raises(errors.UserError, match="at least 1, got 0"):
        video.open_source(path, max_frames=0)


def test_variable_frame_rate_keeps_its_times(tmp_path):
    times = [3, 4, 8, 9, 30, 31]
    source = video.open_source(write(tmp_path / "a.mp4", [scene(index) for index in range(6)], times=times))
    assert seconds(source) == [(time - 3) / RATE for time in times]


@pytest.mark.parametrize("angle", [90, -90, 180])
def test_rotation_in_the_metadata(angle, tmp_path):
    upright = scene(0)
    stored = np.rot90(upright, -angle // 90)  # turned back when it is played
    source = video.open_source(write(tmp_path / "a.mp4", [np.ascontiguousarray(stored)] * 3, rotation=angle))
    assert source.size == (48, 64)
    (first, *_) = source
    assert close(first.image, upright) and first.image.flags.c_contiguous


def test_odd_sizes_and_grey(tmp_path):
    odd = write(tmp_path / "odd.mp4", [scene(0, 35, 51)] * 2, pix_fmt="yuv444p")
    assert video.open_source(odd).size == (35, 51)
    grey = write(tmp_path / "grey.mkv", [scene(index) for index in range(3)], codec="ffv1", pix_fmt="gray")
    (frame, *_) = video.open_source(grey)
    assert frame.image.shape == (48, 64, 3) and np.ptp(frame.image, axis=2).max() == 0
    assert abs(int(frame.image[2, 2, 0]) - 222) < 8  # the yellow's brightness


def test_one_frame_and_none(tmp_path):
    assert len(list(video.open_source(write(tmp_path / "one.mp4", [scene(0)])))) == 1
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(errors.UserError, match=r"none\.mp4: holds no (frame|video)"):
        video.open_source(str(path))


@pytest.mark.parametrize("share", [0.35, 0.7])
def test_a_truncated_file_is_read_as_far_as_it_goes(share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), np.uint8)
    path = tmp_path / "cut.mp4"
    write(path, list(noise), options={"movflags": "faststart"})  # the index comes first
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    source = video.open_source(str(path))
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
            video.open_source(str(path))


def test_damage_in_the_middle_is_told(tmp_path):
    path = tmp_path / "bad.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)
    write(path, list(noise))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 20000] = bytes(20000)
    path.write_bytes(data)
    source = video.open_source(str(path))
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
            video.open_source(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_cameras():
    with pytest.raises(errors.UserError, match=r"camera:77: no such camera \(/dev/video77\); there is"):
        video.open_source("camera:77")
    with pytest.raises(errors.UserError, match="camera:front: a camera has a number"):
        video.open_source("camera:front")


def test_folders_and_globs_go_by_number(tmp_path):
    for number in (10, 9, 100, 1):
        Image.fromarray(scene(number)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    for name in (str(tmp_path), str(tmp_path / "f*.png")):
        source = video.open_source(name, rate=12.5)
        assert (source.num_frames, source.rate, source.size) == (4, fractions.Fraction(25, 2), (48, 64))
        frames = list(source)
        assert [frame.name for frame in frames] == ["f1", "f9", "f10", "f100"]
        np.testing.assert_array_equal(frames[2].image, scene(10))
        assert frames[3].pts * source.time_base == fractions.Fraction(6, 25)
    assert [frame.name for frame in video.open_source(str(tmp_path / "f9.png"))] == ["f9"]
    (tmp_path / "f9.png").write_bytes(b"no image")
    with pytest.raises(errors.UserError, match=r"f9\.png: not a readable image"):
        list(video.open_source(str(tmp_path)))


# --- out ------------------------------------------------------------------------------------------


def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "o.mp4"
    images = [scene(index, 35, 51) for index in range(8)]
    base = fractions.Fraction(1, 600)
    writer = video_out.VideoWriter(path, (35, 51), rate=RATE, time_base=base)
    times = [0, 20, 30, 100, 101, 300, 500, 507]
    for image, pts in zip(images, times, strict=True):
        writer.write(image, pts)
    writer.close()
    writer.close()
    assert writer.size == (36, 52)
    source = video.open_source(str(path))
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
        video_out.check_output(str(tmp_path / "o.avi"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.UserError, match="--output: cannot make the folder"):
        video_out.make_folder(tmp_path / "file" / "new", "--output")
    (tmp_path / "o.mp4").mkdir()
    with pytest.raises(errors.UserError, match=r"o\.mp4 is a folder"):
        video_out.check_output(str(tmp_path / "o.mp4"))
    with pytest.raises(errors.UserError, match=r"--output: cannot write .*o\.mp4"):
        video_out.VideoWriter(tmp_path / "o.mp4", (8, 8), rate=RATE, time_base=1 / RATE).write(scene(0, 8, 8), 0)


def test_overlay_and_masks(tmp_path):
    colors = np.array([(0, 0, 0), (255, 255, 255), (10, 20, 30)], np.uint8)
    labels = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    image = np.full((2, 3, 3), (100, 200, 255), np.uint8)
    found = video_out.Palette(colors, 0.25).overlay(image, labels).astype(int)
    assert np.abs(found[0, 0] - (75, 150, 191.25)).max() <= 1
    assert np.abs(found[0, 1] - (138.75, 213.75, 255)).max() <= 1
    assert np.abs(found[1, 0] - (77.5, 155, 198.75)).max() <= 1
    palette = video_out.Palette(colors, 0.5)
    np.testing.assert_array_equal(video_out.Palette(colors, 0.0).overlay(image, labels), image)
    np.testing.assert_array_equal(video_out.Palette(colors, 1.0).overlay(image, labels), palette.table[labels])
    video_out.write_mask(tmp_path, "ids", labels, np.arange(256, dtype=np.uint8))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "ids.png")), labels)
    video_out.write_mask(tmp_path, "colors", labels, palette.table)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "colors.png"))[0], colors)


def test_labels_are_resized_to_the_nearest():
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(video_out.resize_labels(labels, (2, 3)), [[1, 2, 2], [3, 4, 4]])
    assert video_out.resize_labels(labels, (2, 2)) is labels
    np.testing.assert_array_equal(video_out.resize_labels(labels, (4, 4)), labels.repeat(2, 0).repeat(2, 1))


# --- cuts -----------------------------------------------------------------------------------------


def _takes(*parts):
    images = [image for part in parts for image in part]
    marked = list(cuts.mark(images, lambda image: image))
    assert len(marked) == len(images) and all(a is b for (a, _), b in zip(marked, images, strict=True))
    return [index for index, (_, is_cut) in enumerate(marked) if is_cut]


def test_cuts_are_found_and_motion_is_none():
    size = {"height": 48, "width": 64, "with_flow": False}
    a, b, c = (synthetic.clip(seed=0, split="val", index=index, num_frames=8, **size).clean for index in range(3))
    assert _takes(a) == [] and _takes(a, b, c) == [8, 16]
    assert _takes(a, b[:1]) == [8], "a cut at the last frame"
    assert _takes(a[::4]) == [], "four times as fast"
    pan = [np.roll(a[0], 3 * shift, axis=1) for shift in range(8)]
    assert _takes(pan) == []


def test_a_spoilt_frame_and_other_light_are_no_cut():
    size = {"height": 48, "width": 64, "with_flow": False}
    a, b = (synthetic.clip(seed=0, split="val", index=index, num_frames=9, **size).clean for index in range(2))
    spoilt = a.copy()
    spoilt[4] = np.random.default_rng(0).integers(0, 255, a[4].shape, np.uint8)
    assert _takes(spoilt, b) == [9]
    darker = a.copy()
    darker[5:] = darker[5:] // 2 + 10
    assert _takes(darker) == []
    assert _takes([np.zeros_like(a[0])] * 4) == []
    assert list(cuts.mark([], lambda image: image)) == []
