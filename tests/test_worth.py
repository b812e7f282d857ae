"""What parts of a trained cell are worth, by ablation as data; the cell without what it does not need; section why."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_ablate
import trained as folders

from dvsnas_jax import cli
from dvsnas_jax.core import errors
from dvsnas_jax.core.files import workdir
from dvsnas_jax.report import page, why_parts
from dvsnas_jax.search import simplify, worth
from dvsnas_jax.space import canonical, cell_end
from dvsnas_jax.space import cell as cell_lib
from dvsnas_jax.space import genotype as genotype_lib
from dvsnas_jax.studies import compare, why
from dvsnas_jax.train import clip_scores, features, winners

CONFIG = test_ablate.make_config()
CONFIG.space.channels = CONFIG.net.decoder_channels
SETTINGS = features.settings_of(CONFIG)
NAMED = {
    "version": 1,
    "inputs": ["prev_state", "decoder", "logits"],
    "layers": [
        {"in": ["prev_state", "logits"], "ops": ["conv_1x1", "skip"], "agg": "sum"},  # read by none alone: dead
        {"in": ["layer0", "decoder"], "ops": ["none", "skip"], "agg": "warp"},  # passes the decoder map on
        {"in": ["layer1", "logits"], "ops": ["skip", "conv_1x1"], "agg": "sum"},  # b counts next to nothing
    ],
}


def with_statistics(tree):
    """Weights whose normalisations have running statistics, mean 0 and variance 1."""
    if not isinstance(tree, dict):
        return tree
    more = {"mean": tree["bias"] * 0, "var": tree["scale"] * 0 + 1} if "scale" in tree else {}
    return {key: with_statistics(value) for key, value in tree.items()} | more


def make_trained(head: float = 20.0) -> worth.Trained:
    """A cell that is right as its correction is the decoder map, whose strongest channel is the label."""
    space, genotype = genotype_lib.from_dict(NAMED)
    params = with_statistics(jax.jit(cell_lib.make(space, genotype, SETTINGS).init)(jax.random.key(0)))
    eye, ports = jnp.eye(SETTINGS.channels)[None, None], params["ports"]
    ports["inputs"]["decoder"]["kernel"] = ports["output"]["kernel"] = eye
    ports["head"]["kernel"] = head * eye[..., : SETTINGS.num_classes]
    last = params["layers"]["layer2"]["agg"]
    last["weight_a"], last["weight_b"] = jnp.ones_like(last["weight_a"]), jnp.full_like(last["weight_b"], 1e-5)
    return worth.Trained(space, genotype, params)


@pytest.fixture(scope="module")
def store():
    return test_ablate.make_store(5, 2)


@pytest.fixture(scope="module")
def bench(store):
    return worth.Bench(CONFIG, make_trained(), store)


def assert_counts(found: clip_scores.ClipScores, unroll_fn, store, params=None) -> None:
    """What was counted clip by clip adds up to what a static graph counts."""
    count_fn = clip_scores.make_count(unroll_fn)
    clips = np.arange(store.num_clips, dtype=np.int32)[None]
    expected = count_fn(params or {}, store, clips)
    assert found.counts.shape[0] == store.num_clips and found.counts.sum() > 0
    np.testing.assert_array_equal(found.counts.sum(axis=0), expected.counts[0])
    np.testing.assert_array_equal(found.flicker.sum(axis=0), expected.flicker[0])


def test_variants_count_what_static_graphs_count(bench, store):
    whole = make_trained()
    cell = cell_lib.make(whole.space, whole.genotype, SETTINGS)
    assert_counts(bench.count(bench.genotype), cell.unroll, store, whole.params)
    inputs = whole.params["ports"]["inputs"]
    without = {**inputs, "decoder": {**inputs["decoder"], "kernel": inputs["decoder"]["kernel"] * 0}}  # its mean is 0
    params = {**whole.params, "ports": {**whole.params["ports"], "inputs": without}}
    found = {(each.kind, each.name, each.how): each for each in worth.variants(bench)}
    blind = found[worth.INPUT, "decoder", "held at its mean"]
    assert_counts(bench.count(blind.genotype, blind.params), cell.unroll, store, params)
    last = found[worth.LAYER, "layer2", worth.SOURCE_B]  # the projected logits in place of the decoder map
    small, tokens, layers = canonical.simplified(bench.space, last.genotype)
    assert small.inputs == ("logits",) and small.num_layers == 1
    other = cell_lib.make(small, tokens, SETTINGS)
    carried = cell_lib.carry_params(small, tokens, layers, whole.params)
    assert_counts(bench.count(last.genotype, last.params), other.unroll, store, carried)


def test_without_what_was_learned_it_is_the_running_average_and_without_history_the_present(bench, store):
    found = {each.name: each for each in worth.variants(bench)}
    share = float(jax.nn.sigmoid(bench.params["ports"]["share"]))

    def average(_, frames):
        logits = [frames.logits[0]]
        for current in frames.logits[1:]:
            logits.append(share * current + (1 - share) * logits[-1])
        return jnp.stack(logits)

    rest = found["all that was learned"]
    assert_counts(bench.count(rest.genotype, rest.params), average, store)
    assert_counts(bench.count_network(lambda x: x), lambda _, frames: frames.logits, store)
    present = found["all history"]
    own = {**present.params, "ports": cell_end.without(present.params["ports"], "correction")}
    assert_counts(bench.count(present.genotype, own), lambda _, frames: frames.logits, store)


def test_worth_and_noise_are_those_of_the_jackknife():
    rng = np.random.default_rng(0)

    def draw() -> clip_scores.ClipScores:
        pairs = rng.integers(1, 9, (4, 2)) + [0, 9], rng.integers(1, 9, (4, 3)) + [0, 9, 0]
        return clip_scores.ClipScores(rng.integers(1, 30, (4, 3, 3)), *pairs, np.ones(4, bool))

    whole, part, base = draw(), draw(), draw()
    found = worth.compare(whole, part, clip_scores.Rule())

    def miou(counts):
        total = counts.sum(axis=0).astype(float)
        return np.mean([total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(3)])

    left_out = [miou(np.delete(whole.counts, i, 0)) - miou(np.delete(part.counts, i, 0)) for i in range(4)]
    assert found["worth"]["miou"] == pytest.approx(miou(whole.counts) - miou(part.counts))
    assert found["noise"]["miou"] == pytest.approx(np.sqrt(3 / 4 * np.sum((left_out - np.mean(left_out)) ** 2)))
    flickers = [each.flicker.sum(axis=0)[0] / each.flicker.sum(axis=0)[1] for each in (whole, part)]
    assert found["worth"]["flicker"] == pytest.approx(flickers[1] - flickers[0])  # less is better
    # The gain is over the baseline on the same clips: with one clip left out, over that without it.
    gained = worth.compare(whole, part, clip_scores.Rule(), base)

    def rewards(chosen):
        own, other, beside = (jax.tree.map(lambda x: x[chosen].sum(0)[None], each) for each in (whole, part, base))
        rule = clip_scores.Rule(base=clip_scores.accuracy(clip_scores.shares(beside)))
        return np.subtract(*(clip_scores.reward(clip_scores.shares(each), rule) for each in (own, other)))

    left_out = [rewards(np.delete(np.arange(4), i)) for i in range(4)]
    assert gained["worth"]["reward"] == pytest.approx(rewards(np.arange(4)))
    assert gained["noise"]["reward"] == pytest.approx(np.sqrt(3 / 4 * np.sum((left_out - np.mean(left_out)) ** 2)))
    one = jax.tree.map(lambda x: x[:1], whole)
    assert worth.compare(one, one, clip_scores.Rule())["noise"]["miou"] is None


def test_what_is_dead_and_what_is_worth_nothing_is_removed_and_weights_are_kept(store):
    whole = make_trained()
    found, record = simplify.run(CONFIG, whole, store, is_measured=False)
    assert (found.space.inputs, found.space.num_layers) == (("decoder", "logits"), 1)
    assert record["dead"] == {"logits": pytest.approx(0, abs=1e-4), "labels": 0, "total": 5 * 2 * 16}
    assert record["noise"] is None and record["after"]["parameters"] < record["before"]["parameters"]
    layer = found.params["layers"]["layer0"]
    np.testing.assert_array_equal(layer["b"]["kernel"], whole.params["layers"]["layer2"]["b"]["kernel"])

    less, record = simplify.run(CONFIG, whole, store, is_measured=True)
    skip = {"in": ["decoder", "decoder"], "ops": ["skip", "skip"], "agg": "max"}
    assert genotype_lib.to_dict(less.space, less.genotype)["layers"] == [skip]  # the decoder map is all that counts
    assert list(less.params["ports"]["inputs"]) == ["decoder"]
    assert not worth.is_worth_something(record["noise"]) and record["noise"]["whole"]["miou"] > 0.4
    gap = worth.difference(CONFIG, whole, less, store)
    assert gap.labels == 0 and 0 < gap.logits < 0.1
    with pytest.raises(errors.UserError, match="1 held-out clips say nothing of noise"):
        simplify.run(CONFIG, whole, test_ablate.make_store(1), is_measured=True)


def test_a_cell_whose_heads_read_nothing_is_its_baseline(store):
    found, record = simplify.run(CONFIG, make_trained(head=0.0), store, is_measured=False)
    assert genotype_lib.to_dict(found.space, found.genotype)["layers"][0]["ops"] == ["none", "none"]
    assert found.space.num_layers == 1 and record["dead"]["logits"] == 0.0


def test_what_is_trained_has_no_dead_parts_unless_it_is_to_stay(store):
    space, genotype = genotype_lib.from_dict(NAMED)
    assert simplify.genotype_of(CONFIG, space, genotype)[0].num_layers == 1
    config = CONFIG.copy_and_resolve_references()
    config.derive.simplify = simplify.OFF
    assert simplify.genotype_of(config, space, genotype)[1] is genotype


# --- a run folder -------------------------------------------------------------------------------------------------


def test_the_commands_say_what_parts_are_worth_and_put_the_simplified_cell_in_place(tmp_path, capsys):
    path = folders.write(tmp_path / "run", "refine")
    assert cli.main(["ablate", f"--workdir={path}", "--what=worth"]) == 0
    content = json.loads((path / "ablation_worth.json").read_text())
    names = [row["name"] for row in content["parts"]]
    expected = ["prev_state", "decoder", "stage1", "layer0", "layer1", "offsets", "gate", "correction", "past logits"]
    assert names[:3] == sorted(names[:3], key=list(content["genotype"]["inputs"]).index)
    assert set(expected) < set(names) and content["num_clips"] == 1
    page.write(path)
    text = (path / "report.html").read_text()
    assert '<section id="why">' in text and "input prev_state" in text
    capsys.readouterr()
    assert cli.main(["show", str(path / "best_genotype.json")]) == 0
    assert "| input prev_state | held at its mean |" in capsys.readouterr().out

    folder = workdir.Workdir(path)
    config = folder.config()
    _, params, space, genotype = winners.load(config, folder)
    for name in ("head", "motion"):  # the end reads nothing any more
        params["ports"][name]["kernel"] = jnp.zeros_like(params["ports"][name]["kernel"])
    winners.save(folder, space, genotype, params)
    assert cli.main(["simplify", f"--workdir={path}"]) == 0
    assert "labels differ in 0 of" in capsys.readouterr().out
    best = json.loads((path / "best_genotype.json").read_text())
    assert [layer["ops"] for layer in best["layers"]] == [["none", "none"]]
    assert best["found"]["layers"] == genotype_lib.to_dict(space, genotype)["layers"] and best["made_by"] == "train"
    cell, carried, *_ = winners.load(config, folder)
    assert cell.inputs == () and not carried["ports"]["head"]["kernel"].any()
    assert cli.main(["simplify", f"--workdir={path}"]) == 0
    assert "nothing to remove: 1 layers" in capsys.readouterr().out
    assert cli.main(["ablate", f"--workdir={path}", "--what=worth", "--limit=2"]) == 2


def test_drawn_cells_are_distinct_and_trained_beside_the_hand_designed_ones(tmp_path, monkeypatch):
    config = test_ablate.make_config()
    config.why.update({"worth": False, "num_random": 3, "hand_designed": ("zoo:previous",), "num_seeds": 2})
    asked = []
    monkeypatch.setattr(compare, "run", lambda config, folder, names, num_seeds: asked.append((names, num_seeds)))
    folder = workdir.Workdir(tmp_path)
    why.run(config, folder)
    assert not asked, "there is no cell to set beside them"
    folder.write_json("best_genotype.json", NAMED)
    for _ in range(2):
        why.run(config, folder)
    assert asked[0] == asked[1] and asked[0][1] == 2
    *drawn, last = asked[0][0]
    assert last == "zoo:previous" and len(drawn) == 3
    assert len({canonical.of(*genotype_lib.read(path)) for path in drawn}) == 3
    config.why.update({"num_random": 0, "hand_designed": ()})
    why.run(config, folder)
    assert len(asked) == 2


def test_rivals_are_the_drawn_cells_together_and_the_best_hand_designed_first():
    def row(name, miou, source=""):
        return {"name": name, "names": [name], "source": source, "num_ok": 1, "miou": {"mean": miou}}

    rows = [row("static network", 0.2), row("a/why/random_0.json", 0.3), row("zoo:grfp", 0.35, "a paper")]
    rows += [row("zoo:netwarp", 0.4, "another"), row("a/why/random_1.json", 0.5), row("mine.json", 0.9)]
    found = why.rivals({"rows": rows, "vc_frames": [8]})
    assert [(rival.name, rival.num, rival.scores["miou"]) for rival in found] == [
        (why.RANDOM, 2, [0.3, 0.5]), ("zoo:netwarp", 1, [0.4]), ("zoo:grfp", 1, [0.35])
    ]  # fmt: skip
    scores = {"cell": {"miou": 0.45}, "static": {"miou": 0.2}, "ema": {"miou": 0.25}}
    told = types.SimpleNamespace(scores=lambda: scores, compare={"rows": rows}, evaluation={"split": "val"})
    page_part = why_parts._rivals(told)
    assert re.findall(r"<th scope=row>([^<]+)</th><td>([^<]+)</td>", page_part) == [
        ("dynamic cell", "45.0"), ("static network", "20.0"), ("ema: running average", "25.0"),
        ("2 drawn uniformly", "40.0 ± 14.1 (30.0 to 50.0)"), ("zoo:netwarp, the best hand-designed", "40.0"),
        ("zoo:grfp", "35.0"),
    ]  # fmt: skip
    assert "1 of 2 uniformly drawn cells have at least the mIoU of the cell that was found." in page_part


def test_a_stage_and_that_of_the_frame_before_stand_in_for_each_other():
    """They have one projection: to hold one at its mean would hold the other as well."""
    space = genotype_lib.Space(("prev_stage1", "stage1", "prev_stage2"), 1, ("skip",), ("sum", "correlation"))
    params = {"ports": {"inputs": {name: {"norm": {"scale": jnp.ones(2)}} for name in ("stage1", "stage2")}}}

    def scales(params):
        return {name: float(own["norm"]["scale"].sum()) for name, own in params["ports"]["inputs"].items()}

    both = np.array([[0, 1, 0, 0, 1]], np.int32)
    for name, left in (("prev_stage1", 1), ("stage1", 0)):
        how, rows, changed = worth.without_inputs(space, both, params, [name])
        assert how == "the same stage of the other frame in its place"
        np.testing.assert_array_equal(rows, [[left, left, 0, 0, 1]])
        assert scales(changed) == {"stage1": 2, "stage2": 2}
    how, rows, changed = worth.without_inputs(space, np.array([[2, 2, 0, 0, 0]], np.int32), params, ["prev_stage2"])
    assert how == "held at its mean" and scales(changed) == {"stage1": 2, "stage2": 0}
    np.testing.assert_array_equal(rows, [[2, 2, 0, 0, 0]])
