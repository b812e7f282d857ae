"""The report of a generated run folder: figures, numbers, and what is missing or broken."""

import html
import html.parser
import io
import json
import pathlib
import re
import shlex
import shutil

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from dvsnas_jax import cli
from dvsnas_jax.core import config as config_lib
from dvsnas_jax.core import errors
from dvsnas_jax.evaluate import figures, score_tables, timing
from dvsnas_jax.report import frame_pictures, markup, run_files, search_parts
from dvsnas_jax.report import page as report
from dvsnas_jax.space import cell_end
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space.drawing import draw, end

INPUTS = ("prev_state", "prev_decoder", "decoder", "logits", "stage1", "image_diff")
SPACE = genotypes.Space(INPUTS, 4, genotypes.FIRST_OPERATIONS, genotypes.FIRST_AGGREGATIONS)  # of an older run
CLASSES = ["sky", "building", "road", "pavement", "tree", "car", 'pole <thin> & "tall"']
COLORS = np.array(
    [(128, 128, 128), (128, 0, 0), (128, 64, 128), (60, 40, 222), (128, 128, 0), (64, 0, 128), (192, 192, 128)],
    np.uint8,
)
NUM_STEPS = 40
TORN = '{"step": 40, "index": 20, "source": "ran'


def _score(miou, flicker, **more):
    iou = {name: max(0.0, miou + 0.06 * (3 - index)) for index, name in enumerate(CLASSES)}
    return {
        "miou": miou,
        "fwiou": miou + 0.2,
        "accuracy": miou + 0.3,
        "class_accuracy": miou + 0.1,
        "iou": iou,
        "vc": {"8": miou + 0.25, "16": None},
        "flicker": flicker,
        "flow_consistency": None,
        **more,
    }


def _candidates(rng):
    records = []
    for step in range(NUM_STEPS + 1):
        is_line = step == NUM_STEPS
        for index, tokens in enumerate(genotypes.random(SPACE, rng, 20 if is_line else 4)):
            reward = 0.45 + 0.1 * rng.standard_normal() * 0.3 + (0.05 if is_line else 0.2 * step / NUM_STEPS)
            record = {"step": step, "index": index, "source": "random" if is_line else "ppo", "status": "ok"}
            record |= {"genotype": tokens.tolist(), "hash": genotypes.digest(SPACE, tokens), "reward": reward}
            records.append(record | {"miou": reward, "fwiou": reward, "accuracy": reward})
    records[7] |= {"reward": None, "status": "diverged"}
    return records


def _scene(rng, num=5, height=48, width=64):
    rows, columns = np.mgrid[:height, :width]
    labels = np.stack([np.where(rows < 14, 0, np.where(columns < 16 + t, 1, 2)) for t in range(num)]).astype(np.uint8)
    for t in range(num):
        labels[t, 24:36, 30 + 3 * t : 44 + 3 * t] = 5
    frames = np.clip(COLORS[labels] + rng.normal(0, 25, (num, height, width, 1)), 0, 255).astype(np.uint8)
    noise = rng.random((num, height // 4, width // 4)).repeat(4, 1).repeat(4, 2)
    static = np.where(noise < 0.12, 4, labels).astype(np.uint8)
    cell = np.where(noise < 0.03, 4, labels).astype(np.uint8)
    labels[:, :2] = 255
    return {"frames": frames, "labels": labels, "static": static, "cell": cell, "colors": COLORS}


def _fill(path: pathlib.Path) -> list[dict]:
    """A realistic run folder; returns its candidates."""
    rng = np.random.default_rng(0)
    records = _candidates(rng)
    losses = {step: 2 * np.exp(-step / 60) + 0.05 * rng.random() for step in range(1, 200, 5)}
    metrics = [{"stage": "pretrain", "step": step, "loss": loss} for step, loss in losses.items()]
    metrics += [{"stage": "pretrain_val", "step": s, "miou": 0.2 + s / 1000} for s in (50, 100, 150, 200)]
    steps = range(1, NUM_STEPS)
    metrics += [{"stage": "search", "step": s, "loss": 0.7, "policy_entropy": 40 - 0.1 * s} for s in steps]
    config = {"seed": 0, "space": {"inputs": list(INPUTS), "num_layers": 4, "operations": [], "aggregations": []}}
    config |= {"data": {"name": "synthetic", "dir": "<b>&"}, "search": {"steps": NUM_STEPS}}
    evaluation = {"split": "val", "classes": CLASSES, "num_frames": 288, "commonest_class": _score(0.05, 0.0)}
    evaluation |= {"static": _score(0.4321, 0.0500, ms_per_frame=12.34), "static_clean": _score(0.5555, 0.0210)}
    evaluation |= {"cell": _score(0.4765, 0.0350, ms_per_frame=15.0)}
    confusion = (np.eye(len(CLASSES), dtype=int) * 80 + 2).tolist()
    confusion[3][5] = 41  # of pavement's 133 pixels, as car
    times = {"count": 3, "median": 15.0, "mean": 16.0, "p95": 19.5, "worst": 20.0, "samples": [13.0, 15.0, 20.0]}
    evaluation["cell"] |= {"confusion": confusion, "latency": {"all": times}}
    sequence = {"name": "street <0>", "num_frames": 24, "static": _score(0.41, 0.05), "cell": _score(0.45, 0.03)}
    evaluation["sequences"] = [sequence]
    best = max((r for r in records if r["source"] == "ppo" and r["reward"]), key=lambda r: r["reward"])
    files = {"config.json": config, "evaluation.json": evaluation}
    files["best_genotype.json"] = genotypes.to_dict(SPACE, best["genotype"]) | {"scores": {"reward": best["reward"]}}
    environment = {"versions": {"jax": "0.10.2"}, "devices": ["cpu:0 cpu"], "git_commit": "abc<123>"}
    later = environment | {"versions": {"jax": "0.10.3"}}
    files["environment.json"] = environment | {"command": "dvsnas search --workdir=runs/a", "resumed_with": [later]}
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    for name, lines in (("genotypes.jsonl", records), ("metrics.jsonl", metrics)):
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "figures").mkdir()
    np.savez_compressed(path / "figures" / "strip.npz", **_scene(rng))
    np.savez_compressed(path / "figures" / "clip.npz", **_scene(rng, num=8))
    return records


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder after one report, the paths it returned, its page and its candidates."""
    path = tmp_path_factory.mktemp("run_<1>")
    records = _fill(path)
    with (path / "genotypes.jsonl").open("a") as out:
        out.write(TORN)
    written = report.write(path)
    return path, written, (path / "report.html").read_text(), records


def test_figures_are_written_and_not_blank(run):
    path, written, _, _ = run
    names = ["strip.png", "classes.svg", "latency.svg", "cell.png", "cell.svg", "reward.svg", "entropy.svg"]
    names += [f"training_{index:02d}.svg" for index in range(3)]
    assert written == [*(str(path / "figures" / name) for name in names), str(path / "report.html")]
    for file in written:
        if file.endswith(".png"):
            image = matplotlib.image.imread(file)[..., :3]
            assert min(image.shape[:2]) > 200, file
            assert image.std() > 0.03, file
        elif file.endswith(".svg"):
            assert pathlib.Path(file).read_text().count("<path") > 5, file


def test_page_is_self_contained(run):
    _, _, page, _ = run
    sources = re.findall(r"(?:src|srcset)=\"([^\"]*)\"", page)
    assert len(sources) == page.count("<img") + 1 == 8  # six rows, the clip and its still
    assert all(source.startswith("data:image/webp;base64,UklGR") for source in sources)
    assert page.count("<svg") == 8 and len(page) < 3_000_000
    assert "://" not in page and "<script" not in page and "<link" not in page
    references = re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", page)
    names = re.findall(r"\sid=\"([^\"]+)\"", page)
    assert set(references) <= set(names) and len(set(names)) == len(names)
    assert 'name="viewport"' in page and "prefers-color-scheme:dark" in page


def test_figures_follow_the_colour_scheme(run):
    """No figure keeps a colour of its own that would be unreadable on a dark page."""
    _, _, page, _ = run
    figures_text = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--blue)" in figures_text and re.findall(r"#[0-9a-f]{6}\b", figures_text) == []


def test_headings_are_in_order_and_pictures_are_told(run):
    _, _, page, _ = run
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and set(levels[1:]) == {2}
    for tag in re.findall(r"<img[^>]*>", page):
        assert len(re.search(r'alt="([^"]*)"', tag)[1]) > 10
    for tag in re.findall(r"<svg[^>]*>", page):
        assert "role=img" in tag and len(re.search(r'aria-label="([^"]*)"', tag)[1]) > 10
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        assert "<th scope=row>" in table


def test_page_closes_every_tag(run):
    _, _, page, _ = run
    stack = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "wbr", "source"):
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag, self.getpos()

    Parser().feed(page)
    assert stack == []


def _table(page):
    """The result table: metric -> texts of its cells."""
    page = page[page.index("<h2>Result</h2>") :]
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return {re.search(r"<th scope=row>(.*?)</th>", row)[1]: re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows}


def test_table_has_the_numbers(run):
    _, _, page, _ = run
    table = _table(page)
    # static, cell, change, static_clean, commonest_class
    assert table["mIoU, %"] == ["43.2", "47.6", "+4.4 ✓", "55.5", "5.0"]
    assert table["VC8, %"] == ["68.2", "72.6", "+4.4 ✓", "80.5", "30.0"]
    assert table["flicker, %"] == ["5.00", "3.50", "−1.50 ✓", "2.10", "0.00"]
    assert table["ms per frame"] == ["12.3", "15.0", "+2.7 ✗", "–", "–"]
    assert "VC16, %" not in table and "consistency along true flow, %" not in table
    assert "<b>47.6 %</b>" in page and "<b>4.4 points above</b>" in page and "<b>0.70 times</b>" in page


def test_search_is_told_in_numbers(run):
    _, _, page, records = run
    line = [r["reward"] for r in records if r["source"] == "random"]
    late = [r["reward"] for r in records if r["source"] == "ppo" and r["step"] >= 0.75 * (NUM_STEPS - 1)]
    assert f"ppo: 159 candidates were scored; mean reward in the last quarter: {np.mean(late):.3f}." in page
    assert f"20 uniformly drawn genotypes, scored on the same final shared weights: {np.mean(line):.3f} ±" in page
    assert "1 without a valid score" in page


def test_what_gains_are_made_of_is_told():
    early, late = ({"step": step, "gain": 0.3, "followed": 0.2, "flicker": 0.1} for step in (0, 4))
    words = search_parts._gains([early, late | {"gain": -0.05, "followed": 0.11}])
    assert words.endswith("Last quarter, mean: gain -5.0 %, true changes followed 11.0 %, flicker 10.0 %.")


def test_a_random_line_with_weights_of_its_own_is_told(run, tmp_path):
    """The folder above is of an earlier version, which scored it with the weights of the search."""
    shutil.copytree(run[0], tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as out:
        out.write('{"stage": "random_line", "step": 25, "loss": 0.7}\n')
    words = " ".join(search_parts._sentences(run_files.Run(tmp_path / "run", "run", tmp_path)))
    assert "drawn genotypes, scored with shared weights that were trained as long on uniformly drawn ones: " in words


def test_cell_is_told_in_text(run):
    path, _, page, _ = run
    space, tokens = genotypes.read(path / "best_genotype.json")
    older = end.Whole(cell_end.CLASSIFIER)  # the config of this run is older than the key space.end
    assert html.escape(draw.text(space, tokens, older)) in page
    assert genotypes.digest(space, tokens) in (path / "figures" / "cell.svg").read_text()


def test_text_is_escaped(run):
    path, _, page, _ = run
    assert html.escape(path.resolve().name) in page and path.name not in page
    assert "abc&lt;123&gt;" in page and "abc<123>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "<th scope=row>versions.<wbr>jax</th><td>0.10.2</td>" in page


def test_provenance_tells_the_command_and_what_a_resume_changed(run):
    rows = dict(re.findall(r"<th scope=row>(.*?)</th><td>(.*?)</td>", run[2][run[2].index("<h2>Provenance") :]))
    assert rows["command"] == "dvsnas search --workdir=runs/a"
    resumed = {key: value for key, value in rows.items() if key.startswith("resumed")}
    assert resumed == {"resumed with versions.<wbr>jax": "0.10.3"}


@pytest.mark.parametrize(
    ("file", "heading"),
    [
        ("evaluation.json", "<h2>Result</h2>"),
        ("figures/strip.npz", "<h2>What it looks like</h2>"),
        ("best_genotype.json", "<h2>The cell</h2>"),
        ("genotypes.jsonl", "<h2>The search</h2>"),
        ("metrics.jsonl", "<h2>Training</h2>"),
        ("config.json", "<h2>Configuration</h2>"),
        ("environment.json", "<h2>Provenance</h2>"),
    ],
)
def test_only_the_part_of_a_file_is_there(run, tmp_path, file, heading):
    """A folder with one file only has that file's part and no other."""
    path, _, page, _ = run
    general = ("Summary", "Not in this report")
    headings = [f"<h2>{text}</h2>" for text in re.findall("<h2>(.*?)</h2>", page) if text not in general]
    assert heading in headings
    (tmp_path / "figures").mkdir()
    (tmp_path / file).write_bytes((path / file).read_bytes())
    report.write(tmp_path)
    alone = (tmp_path / "report.html").read_text()
    also = ["<h2>Class by class</h2>", "<h2>Sequence by sequence</h2>", "<h2>Time of a frame</h2>"]
    also = also if file == "evaluation.json" else []
    assert [text for text in headings if text in alone] == [heading, *also]


def test_a_worse_cell_is_reported_as_worse(tmp_path):
    evaluation = {"split": "val", "classes": CLASSES, "num_frames": 9, "static_clean": None, "commonest_class": None}
    evaluation |= {"static": _score(0.5, 0.02), "cell": _score(0.48, 0.03)}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b>2.0 points below</b>" in page and "<b>1.50 times</b>" in page
    assert _table(page)["mIoU, %"] == ["50.0", "48.0", "−2.0 ✗"]


def test_what_needs_no_training_stands_beside_the_cell(tmp_path):
    """And first of all where the cell does not beat it; ages of frames have a table of their own."""
    ages = {str(age): {"miou": 0.5 - age / 100, "num_frames": 3} for age in range(3)}
    cell = _score(0.48, 0.03, changes_followed=0.25, vspw_vc={"8": 0.951, "16": None}, by_age=ages)
    evaluation = {"split": "val", "size": "file", "classes": CLASSES, "num_frames": 9, "cell": cell, "ema": None}
    evaluation |= {"static": _score(0.5, 0.02, changes_followed=0.5, by_age=None)}
    evaluation["hold"] = _score(0.4912, 0.01, changes_followed=0.125, by_age={**ages, "2": {"miou": None}})
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    lead = "<p class=lead>The cell <b>does not beat hold, which needs no training: mIoU 48.00, hold 49.12</b>. "
    assert lead in page and "9 frames, at the size of the label files." in page
    table = _table(page)
    assert table["true changes followed, %"] == ["50.0", "25.0", "−25.0 ✗", "12.5"]
    assert table["VC8 by VSPW’s evaluator, %"] == ["–", "95.1", "–", "–"]
    assert "<th scope=col>frames since the key frame</th>" in page and "ages" not in page
    assert "<tr><th scope=row>dynamic cell</th><td>50.0</td><td>49.0</td><td>48.0</td></tr>" in page
    assert f"{score_tables.ROWS['hold']}</th><td>50.0</td><td>49.0</td><td>–</td>" in page
    evaluation["hold"]["miou"] = 0.4799
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    report.write(tmp_path)
    assert "does not beat" not in (tmp_path / "report.html").read_text()


def test_running_mean_over_steps():
    steps, means = figures.running_mean([0, 0, 1, 3], [1.0, 3.0, 5.0, 7.0], 2)
    np.testing.assert_array_equal(steps, [0, 1, 3])
    np.testing.assert_allclose(means, [2.0, 3.0, 6.0])


def test_running_mean_equals_a_plain_loop():
    rng = np.random.default_rng(3)
    steps, values = rng.integers(0, 30, 80), rng.normal(size=80)
    known, means = figures.running_mean(steps, values, 7)
    for index, step in enumerate(known):
        kept = np.isin(steps, known[max(0, index - 6) : index + 1])
        np.testing.assert_allclose(means[index], values[kept].mean(), err_msg=str(step))


def test_shares_of_choices():
    """First stretch all none/sum of the first input, the last half skip, half conv, of input 1 and an earlier layer."""
    space = genotypes.Space(("decoder", "logits"), 2, ("none", "skip", "conv_1x1"), ("sum", "gate"))
    rows = [[0, 0, 0, 0, 0]] * 3 + [[1, 2, 1, 2, 1]]
    records = [{"step": 3 - s, "genotype": [rows[3 - s]] * 2, "reward": 1.0} for s in range(4)]
    shares = figures.choices(records, space, 4)
    assert shares["bins"] == [0, 1, 2, 3]
    assert shares["inputs"] == {"decoder": [1, 1, 1, 0], "logits": [0, 0, 0, 0.5], "an earlier layer": [0, 0, 0, 0.5]}
    assert shares["operations"] == {"none": [1, 1, 1, 0], "skip": [0, 0, 0, 0.5], "conv_1x1": [0, 0, 0, 0.5]}
    assert shares["aggregations"] == {"sum": [1, 1, 1, 0], "gate": [0, 0, 0, 1]}
    assert figures.choices(records, space, 2)["bins"] == [1, 3]
    assert figures.choices(records[:1], space)["bins"] == [3]


def test_confusion_is_told_in_shares_and_words(run):
    _, _, page, _ = run
    assert "Most pixels are lost by pavement as car (31 % of it)" in page
    matrix = page[page.index("Dynamic cell: % of each true class") :]
    row = re.search(r"<th scope=row>pavement</th>(.*?)</tr>", matrix)[1]
    shown = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
    assert shown == ["2", "2", "2", "62", "2", "31", "2"]


def test_sequences_are_told(run):
    _, _, page, _ = run
    start = "<th scope=row>street &lt;0&gt;</th><td>24</td>"
    assert f"{start}<td>41.0</td><td>45.0</td><td>66.0</td><td>70.0</td><td>5.00</td><td>3.00</td>" in page


def test_errors_are_marked():
    frames = np.full((1, 2, 2, 3), 100, np.uint8)
    labels, found = np.array([[[0, 1], [255, 1]]], np.uint8), np.array([[[0, 0], [0, 1]]], np.uint8)
    marked = frame_pictures.marked_errors(frames, labels, found)[0]
    assert marked[0, 0].tolist() == marked[1, 1].tolist() == [155, 155, 155]
    assert marked[0, 1].tolist() == [185, 96, 25] and marked[1, 0].tolist() == [35, 35, 35]
    assert frame_pictures.wrong_share(labels, found) == pytest.approx(1 / 3)
    assert frame_pictures.wrong_share(np.full_like(labels, 255), found) is None


def test_the_clip_moves_and_fits():
    moving, still = frame_pictures.clip(_scene(np.random.default_rng(0), num=4))
    with Image.open(io.BytesIO(moving)) as image:
        assert image.n_frames == 4 and image.size == (640, 480)
        first = np.asarray(image.convert("RGB"), np.int64)
        image.seek(2)
        assert np.abs(np.asarray(image.convert("RGB"), np.int64) - first).mean() > 1
    with Image.open(io.BytesIO(still)) as image:
        assert getattr(image, "n_frames", 1) == 1 and image.size == (640, 480)
    assert len(moving) < 1_500_000


def test_a_large_clip_is_thinned_and_shortened(monkeypatch):
    scene = _scene(np.random.default_rng(0), num=6, height=80, width=960)
    monkeypatch.setattr(frame_pictures, "MAX_CLIP_BYTES", 9_000)
    moving, _ = frame_pictures.clip(scene)
    with Image.open(io.BytesIO(moving)) as image:
        assert image.size == (640, 52) and 1 <= image.n_frames < 6
    assert len(moving) <= 9_000


def _missing(page):
    """What the page lacks -> the command that makes it."""
    lines = re.findall(r"<li>([^<]*): <code>([^<]*)</code>", page[page.index("<h2>Not in this report") :])
    return {part: html.unescape(command) for part, command in lines}


def _parsed(command):
    """The words of a command as its parser takes them."""
    program, *words = shlex.split(command)
    assert program == "dvsnas"
    words, changes = cli.split_overrides(words)
    return cli._parser().parse_args(words), changes


def test_a_folder_says_what_makes_the_rest_in_commands_that_can_be_copied(tmp_path):
    path = tmp_path / "a run"
    path.mkdir()
    config = config_lib.to_json_dict(config_lib.load("configs/smoke.py", {"evaluate.split": "test"}))
    evaluation = {"split": "val", "classes": CLASSES, "num_frames": 9, "static": _score(0.5, 0.02)}
    evaluation["static"]["latency"] = {"all": {"count": 3, "median": 15.0}}
    space = genotypes.Space(tuple(config["space"]["inputs"]), 2, tuple(config["space"]["operations"]), ("sum", "gate"))
    best = genotypes.to_dict(space, genotypes.random(space, np.random.default_rng(0), 1)[0])
    for name, value in (("config", config), ("evaluation", evaluation), ("best_genotype", best)):
        (path / f"{name}.json").write_text(json.dumps(value))
    report.write(path)
    lines = _missing((path / "report.html").read_text())
    evaluate = f"dvsnas evaluate '--workdir={path}' --config.evaluate.split=val"
    assert {part: lines[part] for part in ("Frames", "The confusion matrices")} == dict.fromkeys(
        ("Frames", "The confusion matrices"), evaluate
    )
    # The smoke configuration takes no times: the command says to take some.
    histogram = "The histogram of the times of single frames"
    assert lines[histogram] == f"{evaluate} --config.evaluate.latency_frames=30"
    assert lines["An ablation"] == f"dvsnas ablate '--workdir={path}' --what=retrain"
    compare = f"dvsnas compare '--workdir={path}' '--genotypes=zoo,{path}/best_genotype.json'"
    assert lines["A comparison with hand-designed cells"] == compare
    for command in lines.values():
        arguments, changes = _parsed(command)
        assert arguments.workdir == str(path) and "CONFIG" not in command
        config_lib.changed(config_lib.from_json_dict(config, "config.json"), changes)
    # Trained from a file of another space, which `ablate` would refuse: it is not advised.
    best = genotypes.to_dict(SPACE, genotypes.random(SPACE, np.random.default_rng(0), 1)[0])
    (path / "best_genotype.json").write_text(json.dumps(best))
    report.write(path)
    page = (path / "report.html").read_text()
    assert "An ablation" not in _missing(page) and "<li>An ablation: the run’s space does not have" in page


def test_a_folder_that_cannot_run_a_command_says_why(tmp_path):
    evaluation = {"split": "val", "classes": CLASSES, "num_frames": 9, "static": _score(0.5, 0.02)}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert _missing(page) == {}
    assert "<li>Frames: the folder holds no config.json, which every command reads</li>" in page


def test_a_config_that_some_hand_designed_cells_do_not_fit_names_the_others(tmp_path):
    changes = {"space.mode": "propagate", "space.cut": "stage1", "space.inputs": "prev_state,stage1"}
    config = config_lib.to_json_dict(config_lib.load("configs/smoke.py", changes))
    (tmp_path / "config.json").write_text(json.dumps(config))
    environment = {"command": "dvsnas search --config=configs/smoke.py --workdir=runs/a"}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    report.write(tmp_path)
    lines = _missing((tmp_path / "report.html").read_text())
    names = re.search("--genotypes=(.*)", lines["A comparison with hand-designed cells"])[1].split(",")
    assert "zoo:dff" in names and not {"zoo", "zoo:clockwork"} & set(names)
    assert lines["Scores"] == environment["command"]  # not finished: the same command goes on with it
    assert "An ablation" not in lines  # there is nothing to take apart


def _timed(static, cell, **more):
    """An evaluation whose frames took these milliseconds, in turns."""

    def part(samples):
        row = {"count": len(samples), "median": float(np.median(samples)), "samples": list(samples)}
        return {"ms_per_frame": row["median"], "latency": {"all": {**row, **more}}}

    return {"static": _score(0.5, 0.02) | part(static), "cell": _score(0.5, 0.02) | part(cell), "split": "val",
            "classes": CLASSES, "num_frames": 9}  # fmt: skip


def _time_row(tmp_path, evaluation, mode="refine"):
    """Class and text of the change of the time of a frame."""
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "config.json").write_text(json.dumps({"space": {"mode": mode}}))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    row = re.search(r"<th scope=row>ms per frame</th>(.*?)</tr>", page)[1]
    return re.search(r"<td class=(\w+)>(.*?)</td>", row).groups()


def test_a_time_within_the_noise_has_no_mark(tmp_path):
    rng = np.random.default_rng(0)
    static = 5.1 + rng.normal(0, 0.4, 30)
    kind, text = _time_row(tmp_path, _timed(static, static - 0.1 + rng.normal(0, 0.4, 30)))
    assert kind == "same" and "±" in text and "✓" not in text and "✗" not in text
    # The same difference, far above the noise: slower, and, where key frames save time, faster.
    assert _time_row(tmp_path, _timed(static, static + 0.5))[0] == "bad"
    kind, text = _time_row(tmp_path, _timed(static, static - 0.5), "propagate")
    assert kind == "good" and text.startswith("−0.5 ±") and text.endswith("✓")
    # A cell in mode refine holds the network: whatever it seems to save is noise.
    assert _time_row(tmp_path, _timed(static, static - 0.5)) == ("same", "−0.5 ± 0.5")


def test_older_evaluations_have_an_assumed_noise(tmp_path):
    evaluation = _timed([5.0], [4.7])
    for name in ("static", "cell"):
        del evaluation[name]["latency"]
    assert _time_row(tmp_path, evaluation, "propagate") == ("same", "−0.3")
    evaluation["cell"]["ms_per_frame"] = 3.0
    assert _time_row(tmp_path, evaluation, "propagate") == ("good", "−2.0 ✓")


def test_the_noise_of_a_difference_is_that_of_pairs():
    """Both slow down together for half of the frames: each varies by much, their difference by nothing."""
    static = [5.0] * 15 + [9.0] * 15
    found = timing.change(*(_timed(static, [time + 0.5 for time in static])[name] for name in ("static", "cell")))
    assert found == (pytest.approx(0.5), pytest.approx(0.0), True) and found.is_clear
    assert timing.sentence(found, 7.0).endswith("with the cell 0.5 ± 0.0 ms more than the 7.0 ms of the network alone")
    kinds = {"key": {"count": 2, "samples": [6.0, 10.0], "frames": [0, 5]}}
    kinds["cell"] = {"count": 8, "samples": [2.0] * 4 + [4.0] * 4, "frames": [1, 2, 3, 4, 6, 7, 8, 9]}
    static = _timed([5.0] * 5 + [9.0] * 5, [1.0])["static"]
    found = timing.change(static, {"ms_per_frame": 4.0, "latency": kinds})
    assert found.difference == -3.0 and 0.1 < found.noise < 3 and found.is_measured
    assert timing.change(static, {}) is None and timing.change({}, {"ms_per_frame": 1.0}) is None


def test_the_terminals_tables_of_a_static_network_alone_and_of_times():
    static = _score(0.5, 0.02) | {"confusion": [[3, 1], [0, 4]]}
    static |= {"iou": {"road": 0.75, "sky": 0.8}, "class_accuracies": {"road": 0.75, "sky": 1.0}}
    result = {"split": "val", "num_frames": 9, "classes": ["road", "sky"], "static": static, "cell": None}
    result["sequences"] = [{"name": "a", "num_frames": 9, "static": static}]
    assert [line[:14] for line in score_tables.summary(result).splitlines()[2:]] == ["static network"]
    head, road, _ = score_tables.classes(result).splitlines()
    assert head.split() == ["class", "pixels", "static", "IoU", "static", "acc."]
    assert road.split() == ["road", "50.0", "75.0", "75.0"] and len(head) == len(road)
    assert score_tables.sequences(result).splitlines()[1].startswith("a static  ")
    timed = _timed([5.0] * 9, [5.4] * 9)
    result["static"] |= timed["static"]
    last = score_tables.summary({**result, "cell": timed["cell"]}).splitlines()[-1]
    assert last.endswith("timed in turns: with the cell 0.4 ± 0.0 ms more than the 5.0 ms of the network alone")
    less = _timed([5.0] * 9, [4.9] * 9)["cell"]
    last = score_tables.summary({**result, "cell": less}).splitlines()[-1]
    assert last.endswith("with the cell no difference beyond the noise of ± 0.1 ms")


def test_masked_operations_are_named(run, tmp_path):
    for file in ("config.json", "genotypes.jsonl"):
        (tmp_path / file).write_bytes((run[0] / file).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["controller"] = {"masked_operations": ["none", "sep_conv_3x3"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    row = {"layer": 0, "field": "op_a", "now": "none", "none": None, "skip": 0.01, "others": 0.002, "best": 0.01}
    row |= {"best_name": "skip", "count": 3, "diverged": 0}
    content = {"what": "replace", "reward": 0.3, "tokens": [row], "left_out": ["sep_conv_3x3"]}
    (tmp_path / "ablation_replace.json").write_text(json.dumps(content))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Masked, so never drawn (controller.masked_operations): none, sep 3x3." in page
    assert "<th scope=row>sep 3x3 (masked)</th>" in page and "<th scope=row>skip</th>" in page
    assert f"uniform: {100 / (len(SPACE.operations) - 2):.0f}" in page
    assert "<th scope=row>layer 0, operation a: none, masked</th>" in page
    assert "scored as in the search; the cell itself: 30.00" in page
    assert "Masked in the search (controller.masked_operations): none, sep 3x3." in page
    assert "Never trained with shared weights, so that nothing is replaced by it: sep 3x3." in page
    # `ablate --genotype` takes another cell apart than the one that the page is about.
    other, best = (genotypes.to_dict(SPACE, rows) for rows in genotypes.random(SPACE, np.random.default_rng(0), 2))
    for name, value in (("best_genotype", best), ("ablation_replace", {**content, "genotype": other})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    report.write(tmp_path)
    digest = genotypes.digest(*genotypes.from_dict(other))
    assert f"not of this run’s cell but of {digest}, itself: 30.00" in (tmp_path / "report.html").read_text()


def test_a_static_network_alone_has_its_report(run, tmp_path):
    """An evaluation, and frames, without a cell."""
    evaluation = json.loads((run[0] / "evaluation.json").read_text())
    evaluation["cell"] = None
    for row in evaluation["sequences"]:
        del row["cell"]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "figures").mkdir()
    for name in ("strip", "clip"):
        with np.load(run[0] / "figures" / f"{name}.npz") as data:
            arrays = {key: data[key] for key in data.files if key != "cell"}
        np.savez_compressed(tmp_path / "figures" / f"{name}.npz", **arrays)
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<dt>mIoU of the network</dt><dd>43.2 %" in page and "with the cell" not in page
    assert "<th scope=row>street &lt;0&gt;</th><td>24</td><td>41.0</td><td>66.0</td><td>5.00</td>" in page
    assert page.count("<img") == 5 and _table(page)["mIoU, %"] == ["43.2", "55.5", "5.0"]


def test_ablation_and_comparison_are_shown(tmp_path):
    row = {"layer": 0, "field": "op_a", "now": "skip", "none": -0.0123, "skip": None, "others": 0.002, "best": 0.004}
    row |= {"best_name": "conv_1x1", "count": 3, "diverged": 0}
    (tmp_path / "ablation_replace.json").write_text(json.dumps({"what": "replace", "reward": 0.3, "tokens": [row]}))
    search = {"without": None, "best": 0.3, "mean_last_quarter": 0.25, "num_diverged": 0}
    searches = [search, {**search, "without": "none", "best_change": 0.0101, "mean_last_quarter_change": -0.02}]
    (tmp_path / "ablation_leave_one_out.json").write_text(json.dumps({"searches": searches}))

    def entry(name, miou, ms):
        numbers = {"miou": miou, "fwiou": miou, "vc_8": miou, "flicker": 0.02, "parameters": 4e5, "macs": 2e7, "ms": ms}
        found = {key: {"mean": value, "std": None, "values": [value]} for key, value in numbers.items()}
        return {"name": name, "source": "", "num_seeds": 1, "num_ok": 1, "time_ratio": None, **found}

    rows = [entry("static network", 0.35, 5.0), entry("zoo:dff", 0.34, 3.0)]
    result = {"mode": "refine", "split": "val", "num_frames": 8, "train_steps": 5, "vc_frames": [8], "rows": rows}
    (tmp_path / "compare.json").write_text(json.dumps(result))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    start = "<th scope=row>layer 0, operation a: skip</th>"
    assert f"{start}<td>−1.23</td><td>–</td><td>+0.20</td><td>+0.40 (conv 1x1)</td><td>3</td>" in page
    assert "<th scope=row>without none</th><td>30.00 (+1.01)</td><td>25.00 (−2.00)</td>" in page
    assert "<h2>Comparison with other cells</h2>" in page
    assert "<th scope=row>zoo:dff</th><td>1</td><td>34.0</td>" in page


def test_several_runs_are_set_side_by_side(run, tmp_path):
    path, other = tmp_path / "run <1>", tmp_path / "other"
    for folder in (path, other):
        folder.mkdir()
        for file in ("config.json", "evaluation.json", "genotypes.jsonl"):
            (folder / file).write_bytes((run[0] / file).read_bytes())
    config = json.loads((other / "config.json").read_text())
    config["search"]["steps"], config["seed"] = 41, 7
    (other / "config.json").write_text(json.dumps(config))
    before = sorted(path.rglob("*"))
    written = report.write(path, other, output=tmp_path / "both.html")
    assert written == [str(tmp_path / "both.html")] and sorted(path.rglob("*")) == before
    page = (tmp_path / "both.html").read_text()
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == ["Side by side", html.escape(path.resolve().name), "other"]
    assert [int(level) for level in re.findall(r"<h(\d)", page)][:3] == [1, 2, 2]
    differing = page[page.index("Keys of the configuration that differ</caption>") :].split("</table>")[0]
    assert re.findall(r"<th scope=row>(.*?)</th><td>(.*?)</td><td>(.*?)</td>", differing) == [
        ("seed", "0", "7"), ("search.steps", str(NUM_STEPS), "41"),
    ]  # fmt: skip
    assert "<td>43.2</td><td>47.6</td><td>43.2</td><td>47.6</td>" in page
    names = re.findall(r"\sid=\"([^\"]+)\"", page)
    assert len(set(names)) == len(names)


def test_a_folder_given_twice_is_refused(run):
    with pytest.raises(errors.UserError, match="given twice"):
        report.write(run[0], run[0] / ".")


def test_an_unwritable_page_is_told(run, tmp_path):
    with pytest.raises(errors.UserError, match="cannot write .*; choose another --output"):
        report.write(run[0], output=tmp_path / "no" / "page.html")


def test_differences_of_configs():
    configs = [{"a": 1, "b": {"c": [1, 2], "d": None}}, {"a": 1, "b": {"c": [1, 3]}, "e": 5}]
    found = run_files.differences(configs)
    assert found == [("b.c", ["1, 2", "1, 3"]), ("e", ["–", "5"])]


def test_numbers():
    assert [markup.number(value, 1, is_signed=True) for value in (1.25, -0.01, -3.0, None)] == [
        "+1.2", "0.0", "−3.0", "–",
    ]  # fmt: skip


def test_a_random_search_is_not_its_own_line():
    records = [{"source": "random", "step": step, "reward": 0.1 * step} for step in range(5)]
    records += [{"source": "random", "step": 1, "reward": value} for value in (None, float("nan"))]
    records += [{"source": "random", "step": 1, "reward": 0.0, "status": "diverged"}]
    # One that was stopped early counts, as it did for the strategy.
    records += [{"source": "random", "step": 2, "reward": 0.1, "status": "stopped"}]
    searched, drawn = figures.split_sources(records, 3)
    assert [record["step"] for record in searched] == [0, 1, 2, 2]
    assert [record["step"] for record in drawn] == [3, 4]
    assert [len(part) for part in figures.split_sources(records)] == [0, 6]


def test_a_step_logged_twice_counts_as_logged_last():
    lines = [{"stage": "a", "step": step, "loss": loss} for step, loss in ((1, 5.0), (2, 6.0), (2, 4.0))]
    lines += [{"stage": "a", "step": 3, "loss": float("nan")}, {"stage": "b", "step": 1, "loss": 1.0}]
    found = figures.curves(lines)
    assert list(found) == [("a", "loss")]
    np.testing.assert_array_equal(found["a", "loss"], ([1, 2], [5.0, 4.0]))


def test_strip_shows_the_colours_of_the_labels(tmp_path):
    """The share of a class colour in the picture grows with the share of the class in the maps."""
    scene = _scene(np.random.default_rng(0), num=2)
    frame_pictures.strip(scene, CLASSES, tmp_path / "s.png", {})
    image = (matplotlib.image.imread(tmp_path / "s.png")[..., :3] * 255).round().astype(int)
    areas = [(image == COLORS[index]).all(-1).mean() for index in range(7)]
    shares = [np.mean([scene[key] == index for key in ("labels", "static", "cell")]) for index in range(7)]
    present = [index for index in range(7) if shares[index] > 0.05]
    assert present == [0, 1, 2, 4, 5]
    found, wanted = (np.array(values)[present] / np.sum(values) for values in (areas, shares))
    np.testing.assert_allclose(found, wanted, atol=0.03)
    assert areas[3] == areas[6] == 0


@pytest.mark.parametrize("make_fn", [lambda path: path / "missing", lambda path: path])
def test_a_folder_that_is_no_run(tmp_path, make_fn):
    with pytest.raises(errors.UserError, match="is not the folder of a run"):
        report.write(make_fn(tmp_path))


@pytest.mark.parametrize(
    ("file", "text"), [("evaluation.json", "{"), ("config.json", "[]"), ("figures/strip.npz", "x")]
)
def test_a_broken_file_is_named(tmp_path, file, text):
    (tmp_path / "figures").mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(errors.UserError, match=file.split("/")[-1]) as caught:
        report.write(tmp_path)
    assert "\n" not in str(caught.value)


def test_report_changes_nothing_else(run):
    path, _, _, records = run
    lines = "".join(json.dumps(record) + "\n" for record in records)
    assert (path / "genotypes.jsonl").read_text() == lines + TORN
