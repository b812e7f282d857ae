"""The command `segment`: the labels of the Python API, what it writes and counts, how it ends when it is stopped."""

import fractions
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import test_video
import trained
from PIL import Image

import dvsnas_jax
from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import image_files, workdir
from dvsnas_jax.data.datasets import camvid_table, folder_layout, written_ids
from dvsnas_jax.data.loading import decode
from dvsnas_jax.data.street import synthetic
from dvsnas_jax.deploy import segment, segment_outputs, segment_summary
from dvsnas_jax.infer.video import legend, sources, writing

ROOT = pathlib.Path(__file__).parents[1]
HEIGHT, WIDTH = trained.SIZE
# An import of TensorFlow raises.
PROGRAM = (
    "import sys\nsys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
    "from dvsnas_jax import cli\nsys.exit(cli.main(sys.argv[1:]))\n"
)


@pytest.fixture(scope="module")
def runs():
    """Run folders of refine mode and of a fixed schedule with key frames every 4 frames."""
    return {kind: trained.evaluated(kind).path for kind in ("refine", "fixed")}


@pytest.fixture(scope="module")
def segmenters(runs):
    """The Python API of each run folder."""
    return {kind: dvsnas_jax.load(path) for kind, path in runs.items()}


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    """A folder with two takes of seven frames, at the network's size."""
    path = tmp_path_factory.mktemp("takes")
    for index in range(2):
        clip = synthetic.Street(3, "val", HEIGHT, WIDTH).clip(index, 7, with_flow=False).clean
        for number, image in enumerate(clip):
            Image.fromarray(image).save(path / f"{7 * index + number}.png")
    return path


def _run(*words):
    assert cli.main(["segment", *map(str, words)]) == 0


def _segment(segmenter, source, **options):
    """The command with a segmenter that is loaded."""
    return segment.run(segmenter, sources.open_source(str(source)), segment_outputs.Options(**options))


def _read(path):
    return np.asarray(Image.open(path))


def _labels(segmenter, images):
    state, found = segmenter.init(), []
    for image in images:
        state, labels = segmenter.step(state, image)
        found.append(np.asarray(labels))
    return np.stack(found)


def _decoded(path):
    with av.open(str(path)) as container:
        return [(frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", ["refine", "fixed"])
def test_masks_overlay_and_summary_are_those_of_the_python_api(kind, runs, segmenters, takes, tmp_path, capsys):
    out = tmp_path / "new" / "out.mp4"
    words = [takes, f"--workdir={runs[kind]}", f"--output={out}", f"--masks={tmp_path}/m", "--fps=10"]
    _run(*words, f"--summary={tmp_path}/s.json", "--side-by-side", "--step-rate")
    segmenter = segmenters[kind]
    images = [_read(takes / f"{number}.png") for number in range(14)]
    expected = _labels(segmenter, images)
    found = np.stack([_read(tmp_path / "m" / f"{number}.png") for number in range(14)])
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 2

    shown = _decoded(out)
    palette = writing.Palette(segmenter.colors, 0.5)
    assert [round(float(seconds) * 10, 3) for seconds, _ in shown] == list(range(14))
    for number in (0, 13):
        static = palette.overlay(images[number], np.asarray(segmenter.static_step(images[number])))
        both = np.concatenate([static, palette.overlay(images[number], expected[number])], axis=1)
        assert test_video.close(shown[number][1], both, 6)

    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["frames"] == 14 and summary["cuts"] == [7] and summary["warnings"] == []
    assert summary["input_size"] == summary["computed_size"] == [HEIGHT, WIDTH]
    assert summary["output_size"] == [HEIGHT, 2 * WIDTH] and summary["stopped_by"] is None
    counts = {name: row["count"] for name, row in summary["latency_ms"].items()}
    assert counts == ({"all": 14} if kind == "refine" else {"key": 4, "cell": 10})
    assert summary["key_share"] == pytest.approx(1 if kind == "refine" else 4 / 14)
    for row in summary["latency_ms"].values():
        assert 0 < row["median"] <= row["p90"] <= row["p95"] <= row["p99"] <= row["worst"] < 1e3 * summary["seconds"]
    assert summary["fps"] == pytest.approx(14 / summary["seconds"]) and summary["steps_per_second"] > 0
    triples = [(take[t - 2], take[t - 1], take[t]) for take in (expected[:7], expected[7:]) for t in range(2, 7)]
    changed = np.mean([(before == now) & (middle != now) for before, middle, now in triples])
    assert summary["flicker"] == pytest.approx(changed)
    text = capsys.readouterr().out
    assert "14 frames," in text and "cuts at 7\n" in text and f"written: {out}" in text


def test_a_cut_resets_where_it_is_asked_for(runs, segmenters, takes, tmp_path):
    _run(takes, f"--workdir={runs['refine']}", f"--masks={tmp_path}", "--reset-at-cuts")
    images = [_read(takes / f"{number}.png") for number in range(14)]
    fresh = _labels(segmenters["refine"], images[7:])
    np.testing.assert_array_equal([_read(tmp_path / f"{number}.png") for number in range(7, 14)], fresh)
    assert (_labels(segmenters["refine"], images)[7] != fresh[0]).any()


def test_other_sizes_times_and_intervals(runs, tmp_path, capsys):
    times = [0, 1, 5, 6, 9]
    path = test_video.write(tmp_path / "in.mp4", [test_video.scene(t, 46, 94) for t in range(5)], times=times)
    words = [path, f"--workdir={runs['fixed']}", f"--output={tmp_path}/o.mp4", "--key-interval=2", "--max-frames=4"]
    _run(*words, "--resize=45x91", f"--masks={tmp_path}/m", "--mask-format=colors", f"--summary={tmp_path}/s.json")
    shown = _decoded(tmp_path / "o.mp4")
    assert [seconds for seconds, _ in shown] == [t / test_video.RATE for t in times[:4]]
    assert shown[0][1].shape == (46, 92, 3)
    assert "45x91 padded to 46x92, since H.264 needs even sizes" in capsys.readouterr().err
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["output_size"] == [46, 92] and summary["key_share"] == 0.5 and summary["frames"] == 4
    segmenter = dvsnas_jax.load(runs["fixed"], key_interval=2)
    frames = list(sources.open_source(path, max_frames=4))
    labels = _labels(segmenter, [image_files.resized(frame.image, (HEIGHT, WIDTH)) for frame in frames])
    expected = segmenter.colors[image_files.resized_nearest(labels[3], (45, 91))]
    np.testing.assert_array_equal(_read(tmp_path / "m" / "000003.png"), expected)


def test_latencies_are_those_of_the_steps_where_writing_is_slower(segmenters, takes, tmp_path):
    summary = _segment(segmenters["refine"], takes, output=f"{tmp_path}/o.mp4", resize=(1200, 1600))
    assert summary["latency_ms"]["all"]["median"] < 0.5 * 1e3 / summary["fps"]


def test_a_damaged_video_is_segmented_as_far_as_it_goes(segmenters, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    path = tmp_path / "cut.mp4"
    test_video.write(path, list(noise), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _segment(segmenters["refine"], path, output=f"{tmp_path}/o.mp4")
    count = len(_decoded(tmp_path / "o.mp4"))
    assert 5 < count < 15
    assert f"dvsnas: warning: {path}: damaged (" in (text := capsys.readouterr().err)
    assert f"{count} of 20 frames could be read" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nope.mp4 --workdir={refine} --output=o.mp4", "nope.mp4: no such file or folder"),
        ("text.mp4 --workdir={refine} --output=o.mp4", "text.mp4: no video that can be read"),
        ("camera:99 --workdir={refine} --output=o.mp4", "camera:99: no such camera"),
        ("{takes} --workdir={refine}", "nothing would be written"),
        ("{takes} --workdir={refine} --output=o.avi", "o.avi must end in .mp4"),
        ("{takes} --workdir={refine} --side-by-side --masks=m", "--side-by-side: is a kind of video"),
        ("{takes} --workdir={refine} --masks={takes}", "is the folder of the input"),
        ("one.mp4 --workdir={refine} --output=one.mp4", "one.mp4 is the input"),
        ("one.mp4 --workdir={refine} --output=o.mp4 --fps=5", "one.mp4: a video file has a frame rate of its own"),
        ("{takes} --workdir={refine} --output=o.mp4 --key-interval=3", "mode refine has no key frames"),
        ("{takes} --workdir={fixed} --output=o.mp4 --key-interval=0", "must be at least 1"),
        ("{takes} --workdir={refine} --output=o.mp4 --resize=3", "needs HEIGHTxWIDTH"),
        ("{takes} --workdir={refine} --output=o.mp4 --resize=0x9", "--resize: must be at least 1x1"),
        ("{takes} --workdir={refine} --output=o.mp4 --alpha=2", "--alpha: must lie between 0 and 1"),
        ("{takes} --workdir={refine} --output=o.mp4 --max-frames=0", "must be at least 1, got 0"),
        ("{takes} --workdir={takes} --output=o.mp4", "holds no run"),
        ("{takes} --workdir=nope --output=o.mp4", "--workdir: nope does not exist"),
        ("{takes} --output=o.mp4", "one of the arguments --workdir --model is required"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(words, message, runs, takes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("text.mp4").write_text("no video\n" * 50)
    test_video.write("one.mp4", [test_video.scene(0)])
    assert cli.main(["segment", *words.format(takes=takes, **runs).split()]) == errors.EXIT_USER
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("dvsnas: error: ")
    assert not pathlib.Path("o.mp4").exists()


# --- what people have -----------------------------------------------------------------------------


def test_segment_says_what_it_scales_and_what_the_network_knows(segmenters, takes, tmp_path, capsys):
    """Once, on stderr and in the summary."""
    path = test_video.write(tmp_path / "in.mp4", [test_video.scene(0, 80, 60)] * 2)
    summary = _segment(segmenters["refine"], path, masks=f"{tmp_path}/m", summary=f"{tmp_path}/s.json")
    scaled = (
        f"frames of 60x80 are scaled to {WIDTH}x{HEIGHT} for the network, its labels to 60x80; width to height changes "
        "from 0.75 to 2.06: what it sees is distorted"
    )
    known = f"the network was trained on synthetic at {WIDTH}x{HEIGHT}, 11 classes: sky, building, pole, road, "
    err = capsys.readouterr().err
    assert err.count(f"dvsnas: {scaled}\n") == 1 and err.count(f"dvsnas: {known}") == 1
    assert summary["about"][0] == scaled and json.loads((tmp_path / "s.json").read_text())["about"][1].startswith(known)
    assert summary["trained_on"] == "synthetic" and summary["classes"][:2] == ["sky", "building"]
    assert _segment(segmenters["refine"], takes, summary=f"{tmp_path}/s.json", resize=(17, 35))["about"][0] == (
        f"frames of {WIDTH}x{HEIGHT} are segmented at that size"
    )


def test_pixels_that_are_not_square_count_for_the_shape(segmenters):
    source = sources.Source.__new__(sources.Source)
    source.size, source.aspect = (34, 35), fractions.Fraction(2)
    (line, _) = segment_summary.about(segmenters["refine"], source, None)
    assert line == "frames of 35x34 are scaled to 70x34 for the network, its labels to 35x34"


def _copied(run, path, **data):
    """The run folder of another data set with as many classes."""
    shutil.copytree(run, path)
    config = json.loads((path / "config.json").read_text())
    folder = data.pop("folder", {})
    config["data"].update(data)
    config["data"]["folder"].update(folder)
    (path / "config.json").write_text(json.dumps(config))
    return path


NAMES = tuple("abcdefghijk")
IDS = {
    "camvid": None,
    "no ids": (),
    "8 bits": tuple(str(4 + 25 * i) for i in range(11)),
    "16 bits": tuple(str(1000 * i + 7) for i in range(11)),
    "not in order": ("10", "0", "9", "1", "8", "2", "7", "3", "6", "4", "5"),
}


def _data(name):
    """The section data of a data set, and how its labels are read."""
    data = config_lib.defaults().data
    if IDS[name] is None:
        data.name = "camvid"
        return data, camvid_table.segnet_code()
    data.update({"name": "folder", "dir": "d"})
    data.folder.update({"classes": NAMES, "masks": "m/{number}.png", "ids": IDS[name]})
    return data, folder_layout.code(folder_layout.options(data.folder))


@pytest.mark.parametrize("name", IDS)
def test_ids_that_are_written_are_labels_of_the_same_config(name, tmp_path):
    data, code = _data(name)
    ids = written_ids.of(data)
    assert ids.tolist() == ([int(each) for each in IDS[name]] if IDS[name] else list(range(11)))
    labels = np.arange(11, dtype=np.uint8).reshape(1, 11)
    writing.write_mask(tmp_path, "m", labels, written_ids.table(ids))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "m.png", code), labels)
    assert np.asarray(Image.open(tmp_path / "m.png")).tolist() == [ids.tolist()]


def test_cityscapes_gets_its_own_ids():
    data = config_lib.defaults().data
    data.name = "cityscapes"
    assert written_ids.of(data).tolist()[:4] == [7, 8, 11, 12] and len(written_ids.of(data)) == 19


def test_masks_hold_the_ids_that_the_config_reads(runs, segmenters, takes, tmp_path):
    folder = {"classes": NAMES, "masks": "m/{number}.png", "ids": IDS["16 bits"]}
    segmenter = dvsnas_jax.load(_copied(runs["refine"], tmp_path / "run", name="folder", dir="x/d", folder=folder))
    assert segmenter.trained_on == "folder d"
    _segment(segmenter, takes, masks=f"{tmp_path}/m")
    code = _data("16 bits")[1]
    expected = _labels(segmenters["refine"], [_read(takes / f"{number}.png") for number in range(14)])
    for number in range(14):  # as labels of the same configuration
        np.testing.assert_array_equal(decode.read_label(tmp_path / "m" / f"{number}.png", code), expected[number])


def test_masks_in_colours_are_those_that_the_config_reads(runs, segmenters, takes, tmp_path):
    colors = [f"#{40 + i:02x}{200 - i:02x}{i * 20:02x}" for i in range(11)]
    folder = {"classes": NAMES, "colors": colors, "labels": "colors", "masks": "m/{number}.png", "ignore": ()}
    run = _copied(runs["refine"], tmp_path / "run", name="folder", dir="d", folder=folder)
    _run(takes, f"--workdir={run}", f"--masks={tmp_path}/m", "--colors", "--max-frames=3")
    section = workdir.Workdir(run).config().data.folder
    code = folder_layout.code(folder_layout.options(section))
    expected = _labels(segmenters["refine"], [_read(takes / f"{number}.png") for number in range(3)])
    for number in range(3):
        np.testing.assert_array_equal(decode.read_label(tmp_path / "m" / f"{number}.png", code), expected[number])


def test_official_camvid_reads_the_colours_that_are_written():
    pixels = camvid_table.TABLE.colors[None]
    code = camvid_table.official_code()
    assert code.decode(pixels, "x").tolist() == [list(range(11))]


def test_the_legend_names_the_classes_that_occur(segmenters, takes, tmp_path):
    """Its swatches have the colours of the classes of the video so far, and of no others."""
    colors = np.array([(10 + 20 * i, 255 - 20 * i, 37) for i in range(4)], np.uint8)
    drawn = legend.Legend(("alpha", "beta", "gamma", "delta"), colors)

    def shown(image):
        return [tuple(color) in set(map(tuple, image.reshape(-1, 3).tolist())) for color in colors.tolist()]

    frame = np.full((120, 200, 3), 128, np.uint8)
    labels = np.full((120, 200), 2, np.uint8)
    first = drawn.draw(frame, labels)
    assert shown(first) == [False, False, True, False] and (first[:95] == 128).all() and (frame == 128).all()
    labels[0, 0] = 1
    second = drawn.draw(frame, labels)
    assert shown(second) == [False, True, True, False]
    np.testing.assert_array_equal(second[-16:, :40], first[-16:, :40])  # what is there does not move
    assert shown(drawn.draw(frame, np.full((120, 200), 2, np.uint8))) == [False, True, True, False]
    for height, width in ((8, 8), (20, 30), (40, 64)):
        small = legend.Legend([f"a rather long name {i}" for i in range(4)], colors)
        assert small.draw(np.zeros((height, width, 3), np.uint8), np.arange(4, dtype=np.uint8)).shape == (
            height,
            width,
            3,
        )
    words = {"output": f"{tmp_path}/o.mp4", "resize": (240, 320), "has_legend": True}
    _segment(segmenters["refine"], takes, **words)
    found = _decoded(tmp_path / "o.mp4")[5][1]
    _segment(segmenters["refine"], takes, **{**words, "has_legend": False})
    plain = _decoded(tmp_path / "o.mp4")[5][1]
    assert np.abs(found[:150].astype(int) - plain[:150]).mean() < 3
    corner = found[-14:, :12].astype(int)
    assert np.abs(corner - plain[-14:, :12]).mean() > 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{takes} --workdir={refine} --legend --masks=m", "--legend: is drawn into the video, give --output as well"),
        ("{takes} --workdir={refine} --masks=m --summary={takes}", "is a folder; give the name of a file"),
        ("film.gif --workdir={refine} --masks=m --fps=5", "film.gif: an animation has times of its own"),
        ("cover.mp4 --workdir={refine} --masks=m", "cover.mp4: no video that can be read"),
        ("nope.mp4 --workdir={refine} --masks=m", "nope.mp4: no such file or folder"),
        ("{takes} --workdir={takes} --masks=m --output=new/o.mp4", "holds no run"),
    ],
)
def test_nothing_is_made_before_all_is_checked(words, message, runs, takes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures = [Image.fromarray(test_video.scene(index)) for index in range(2)]
    pictures[0].save("film.gif", save_all=True, append_images=pictures[1:])
    pathlib.Path("cover.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["segment", *words.format(takes=takes, **runs).split()]) == errors.EXIT_USER
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def _tree(path):
    return {str(each): each.stat().st_mtime_ns for each in sorted(path.rglob("*"))}


def test_nothing_is_written_beside_the_input_and_new_folders_are_made(segmenters, tmp_path, monkeypatch):
    folder = tmp_path / "read only [50%] é"
    folder.mkdir()
    for index, size in enumerate(((30, 40), (30, 40), (60, 40))):
        Image.fromarray(test_video.scene(index, *size)).save(folder / f"{index}.5.jpg")
    folder.chmod(0o555)
    before = _tree(folder)
    out = tmp_path / "a" / "b [x] %d"
    summary = _segment(
        segmenters["refine"], folder, masks=f"{out}/m", output=f"{out}/v/o.mp4", summary=f"{out}/s/s.json"
    )
    assert _tree(folder) == before
    assert sorted(path.name for path in (out / "m").iterdir()) == ["0.5.png", "1.5.png", "2.5.png"]
    assert {_read(path).shape for path in (out / "m").iterdir()} == {(30, 40)}
    assert summary["warnings"] == [f"{folder}: frame 2.5 is 60x40, the first one was 30x40; such frames were resized"]
    assert len(_decoded(out / "v" / "o.mp4")) == 3 and (out / "s" / "s.json").exists()


@pytest.mark.slow
def test_a_4k_phone_video(segmenters, tmp_path):
    """Stands upright, of variable rate, HLG with ten bits: right size, times and labels."""
    path, times = tmp_path / "IMG 4711 (1).mov", [0, 2, 3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx265", rate=30, options={"preset": "ultrafast", "x265-params": "log-level=none"}
        )
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, 18, 9
        context.time_base = fractions.Fraction(1, 30)
        stream.set_display_rotation(-90)
        for pts in times:
            image = np.zeros((2160, 3840, 3), np.uint8)
            image[:1080] = 128
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p10le", dst_colorspace=9)
            frame.pts, frame.time_base = pts, fractions.Fraction(1, 30)
            frame.color_trc, frame.color_primaries = 18, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = sources.open_source(str(path))
    assert source.size == (3840, 2160)
    first = next(iter(source)).image
    assert np.abs(first[2000, 1900].astype(int) - 137).max() < 8  # half of HLG
    assert first[2000, 100].max() < 4  # what is below in the file stands on the left
    summary = _segment(segmenters["refine"], path, masks=f"{tmp_path}/m", output=f"{tmp_path}/o.mp4", has_legend=True)
    assert summary["frames"] == 3 and summary["output_size"] == [3840, 2160] and "HDR (HLG)" in summary["warnings"][0]
    assert [round(float(seconds) * 30) for seconds, _ in _decoded(tmp_path / "o.mp4")] == times
    assert _read(tmp_path / "m" / "000002.png").shape == (3840, 2160)


# --- counting and stopping ------------------------------------------------------------------------


def test_flicker_and_latencies_are_counted():
    tally = segment_summary.Tally("propagate")
    rows = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    for index, row in enumerate(rows):
        share = (1.0, 0.0, 0.25, 0.0, 0.0)[index]
        tally.add(np.array([row], np.uint8), is_cut=False, key_share=share, seconds=0.001 * (index + 1))
    found = tally.result(seconds=2.0, startup_seconds=1.0)
    assert found["flicker"] == 2 / 12  # frame 1: the second pixel; frame 2: the second pixel
    assert found["key_share"] == 0.25
    latency = {kind: (row["count"], row["median"]) for kind, row in found["latency_ms"].items()}
    assert latency == {"key": (1, 1.0), "cell": (3, pytest.approx(4)), "regions": (1, 3.0)}
    tally.add(np.array([[0, 0, 0, 1]], np.uint8), is_cut=True, key_share=1.0, seconds=0.1)
    found = tally.result(seconds=2.0, startup_seconds=1.0)
    assert found["flicker"] == 2 / 12 and found["cuts"] == [5] and found["fps"] == 3
    assert segment_summary.Tally("refine").result(seconds=2.0, startup_seconds=1.0)["flicker"] is None


def _start(words):
    command = [sys.executable, "-c", PROGRAM, "segment", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_for(path, process, seconds=90):
    limit = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < limit, process.stderr.read()
        time.sleep(0.02)


def _long_video(path, num_frames, height=64, width=96):
    clip = synthetic.Street(0, "val", height, width).clip(0, 24, with_flow=False)
    there_and_back = [*clip.clean, *clip.clean[-2:0:-1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(num_frames):
            image = there_and_back[index % len(there_and_back)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_signal_leaves_a_playable_file_and_tensorflow_is_not_needed(runs, tmp_path):
    path = _long_video(tmp_path / "long.mp4", 3000)
    words = [path, f"--workdir={runs['refine']}", f"--output={tmp_path}/o.mp4", f"--masks={tmp_path}/m"]
    process = _start([*words, f"--summary={tmp_path}/s.json"])
    _wait_for(tmp_path / "m" / "000040.png", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == errors.EXIT_STOPPED, err
    summary = json.loads((tmp_path / "s.json").read_text())
    count = summary["frames"]
    assert 40 < count < 3000 and summary["stopped_by"] == "SIGINT"
    assert f"stopped (SIGINT after {count} frames), what was done is kept; the same command starts anew" in err
    assert len(_decoded(tmp_path / "o.mp4")) == count


@pytest.mark.slow
def test_memory_does_not_grow_over_ten_thousand_frames(runs, tmp_path):
    path = _long_video(tmp_path / "long.mp4", 10_000)
    words = [path, f"--workdir={runs['fixed']}", f"--output={tmp_path}/o.mp4", f"--masks={tmp_path}/m"]
    process = _start([*words, "--reset-at-cuts"])
    page, done, resident = os.sysconf("SC_PAGE_SIZE"), 0, []
    while process.poll() is None:
        while (tmp_path / "m" / f"{done:06d}.png").exists():
            done += 1
        try:
            pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (FileNotFoundError, IndexError, ProcessLookupError):
            break
        resident.append((done, pages * page / 2**20))
        time.sleep(0.05)
    assert process.wait() == 0, process.stderr.read()
    assert len(_decoded_count(tmp_path / "o.mp4")) == 10_000
    base = next(megabytes for number, megabytes in resident if number >= 500)
    later = [megabytes for number, megabytes in resident if number >= 500]
    print(f"resident after 500 frames {base:.1f} MB, then {min(later):.1f} to {max(later):.1f} MB")
    assert len(later) > 50 and resident[-1][0] > 9_000
    assert max(later) <= 1.05 * base


def _decoded_count(path):
    with av.open(str(path)) as container:
        return [packet.pts for packet in container.demux(video=0) if packet.size]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refine", "fixed"])
def test_the_whole_is_nearly_as_fast_as_the_steps_alone(kind, tmp_path, monkeypatch):
    """At 360x480, MobileNetV2 and RefineNet; on an otherwise idle machine."""
    make = trained.make_config

    def real(kind):
        config = make(kind)
        config.compile_effort = "full"
        config.data.update({"height": 360, "width": 480, "val_frames": 3})
        config.net.update({"encoder": "mobilenet_v2", "width": 1.0, "decoder_channels": 256})
        config.space.channels = 24
        return config

    monkeypatch.setattr(trained, "make_config", real)
    run = trained.write(tmp_path / "run", kind)
    path = _long_video(tmp_path / "in.mp4", 60, 360, 480)
    segmenter, ratios = dvsnas_jax.load(run), []
    for _ in range(5):
        summary = _segment(segmenter, path, output=f"{tmp_path}/o.mp4", do_rate=True)
        print(f"{kind}: {summary['fps']:.2f} frames/s, steps alone {summary['steps_per_second']:.2f}")
        ratios.append(summary["fps"] / summary["steps_per_second"])
    assert np.median(ratios) >= 0.85
