"""The command `segment`: the labels of the Python API, what it writes and counts, how it ends when it is stopped."""

import json
import os
import pathlib
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
from dvsnas_jax.core import errors
from dvsnas_jax.data import synthetic
from dvsnas_jax.run import segment, segment_outputs, segment_summary, video, video_out

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
    size = {"height": HEIGHT, "width": WIDTH, "with_flow": False}
    for index in range(2):
        clip = synthetic.clip(seed=3, split="val", index=index, num_frames=7, **size).clean
        for number, image in enumerate(clip):
            Image.fromarray(image).save(path / f"{7 * index + number}.png")
    return path


def _run(*words):
    assert cli.main(["segment", *map(str, words)]) == 0


def _segment(segmenter, source, **options):
    """The command with a segmenter that is loaded."""
    return segment.run(segmenter, video.open_source(str(source)), segment_outputs.Options(**options))


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
    palette = video_out.Palette(segmenter.colors, 0.5)
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
    frames = list(video.open_source(path, max_frames=4))
    labels = _labels(segmenter, [segment.resize_image(frame.image, (HEIGHT, WIDTH)) for frame in frames])
    expected = segmenter.colors[video_out.resize_labels(labels[3], (45, 91))]
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


def test_flicker_and_latencies_are_counted():
    tally = segment_summary.Tally("propagate")
    rows = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    for index, row in enumerate(rows):
        share = (1.0, 0.0, 0.25, 0.0, 0.0)[index]
        tally.add(np.array([row], np.uint8), is_cut=False, key_share=share, seconds=0.001 * (index + 1))
    found = tally.result()
    assert found["flicker"] == 2 / 12  # frame 1: the second pixel; frame 2: the second pixel
    assert found["key_share"] == 0.25
    latency = {kind: (row["count"], row["median"]) for kind, row in found["latency_ms"].items()}
    assert latency == {"key": (1, 1.0), "cell": (3, pytest.approx(4)), "regions": (1, 3.0)}
    tally.add(np.array([[0, 0, 0, 1]], np.uint8), is_cut=True, key_share=1.0, seconds=0.1)
    assert tally.result()["flicker"] == 2 / 12 and tally.result()["cuts"] == [5]
    assert segment_summary.Tally("refine").result()["flicker"] is None


def _start(words):
    command = [sys.executable, "-c", PROGRAM, "segment", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_for(path, process, seconds=90):
    limit = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < limit, process.stderr.read()
        time.sleep(0.02)


def _long_video(path, num_frames, height=64, width=96):
    clip = synthetic.clip(seed=0, split="val", index=0, num_frames=24, height=height, width=width, with_flow=False)
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
