"""The text and the graph of a genotype."""

import itertools
import xml.etree.ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from dvsnas_jax.core import errors
from dvsnas_jax.space import cell_end
from dvsnas_jax.space import genotype as genotypes
from dvsnas_jax.space.drawing import draw, end, layout, pen

SPACE = genotypes.Space(inputs=("prev_state", "decoder", "logits", "stage1"), num_layers=4)
# layer0 = gate(prev_state, decoder), layer1 = warp(layer0, logits), layer2 = sum(layer0, layer0) and
# layer3 = max(layer1, decoder).
TOKENS = np.array([[0, 1, 4, 1, 2], [4, 2, 0, 9, 3], [4, 4, 11, 10, 0], [5, 1, 7, 8, 4]])


def _random(num_layers, num):
    space = genotypes.Space(inputs=genotypes.REFINE_INPUTS, num_layers=num_layers)
    return space, genotypes.random(space, np.random.default_rng(num_layers), num)


def test_text():
    assert draw.text(SPACE, TOKENS).splitlines() == [
        "layer0 = gate( sep_conv_3x3(prev_state), skip(decoder) )",
        "layer1 = warp( none(layer0), sep_conv_5x5_dil6(logits) )",
        "layer2 = sum( global_average_pool(layer0), max_pool_3x3(layer0) )",
        "layer3 = max( conv_3x3_dil12(layer1), sep_conv_3x3_dil3(decoder) )",
        "output = mean(layer2, layer3)",
        "logits = gate(output) * current logits + (1 - gate(output)) * (past logits, moved by offsets(output)) "
        "+ correction(output)",
    ]


@pytest.mark.parametrize(
    "whole, line",
    [
        (end.Whole(is_propagating=True), "past logits, moved by offsets(output) + correction(output)"),
        (end.Whole(cell_end.NONE), "share * current logits + (1 - share) * (past logits)"),
        (end.Whole(cell_end.NONE, is_propagating=True), "past logits"),
        (end.Whole(cell_end.CLASSIFIER), "classifier(output) + current logits"),
        (end.Whole(cell_end.CLASSIFIER, is_propagating=True), "classifier(output)"),
    ],
)
def test_text_of_the_end(whole, line):
    assert draw.text(SPACE, TOKENS, whole).splitlines()[-1] == f"logits = {line}"


def test_readable_names():
    names = {
        "gate": "gate",
        "sep_conv_3x3_dil3": "sep 3x3 dil 3",
        "conv_3x3_dil12": "conv 3x3 dil 12",
        "max_pool_3x3": "max pool 3x3",
    }
    names |= {"deform_conv_3x3": "deform conv 3x3", "local_attention": "attention", "correlation": "matching"}
    assert {name: draw.readable(name) for name in names} == names
    assert len({draw.readable(name) for name in genotypes.vocabulary("operations")}) == len(
        genotypes.vocabulary("operations")
    )


def test_columns_are_longest_paths():
    made = layout.make(SPACE, TOKENS)
    columns = {key: item.column for key, item in made.items.items() if not item.is_lane}
    inputs = {"prev_state": 0, "decoder": 0, "logits": 0}  # stage1 is taken by nobody and is left out
    assert columns == inputs | {"layer0": 1, "layer1": 2, "layer2": 2, "layer3": 3, "output": 4}
    lanes = {key for key, item in made.items.items() if item.is_lane}
    assert lanes == {"decoder@1", "decoder@2", "logits@1", "layer2@3"}


@pytest.mark.parametrize("num_layers", [1, 4, 7])
def test_layout_laws(num_layers):
    """Every edge of the genotype is a chain of segments to the next column; nothing in a column overlaps."""
    space, tokens = _random(num_layers, 20)
    for genotype in tokens:
        made = layout.make(space, genotype)
        for upper, lower in itertools.chain.from_iterable(map(itertools.pairwise, made.columns())):
            assert upper.y - lower.y >= (upper.height + lower.height) / 2 + layout.SPACE - 1e-9
        links = {}
        for segment in made.segments:
            assert made.items[segment.right].column == made.items[segment.left].column + 1
            links.setdefault((segment.right, segment.offset), []).append(segment.left)
        traced = []
        for (key, offset), sources in links.items():
            if not made.items[key].is_lane:
                traced += [(made.items[source].source, key, offset) for source in sources]
        wanted = [edge[:3] for edge in layout.edges(space, genotype)]
        assert sorted(traced) == sorted(wanted)


def test_order_has_no_needless_crossings():
    """Two separate chains can be drawn without a crossing, whatever the order of the inputs."""
    space = genotypes.Space(inputs=("prev_state", "decoder", "logits", "stage1"), num_layers=4)
    tokens = np.array([[0, 2, 1, 1, 0], [1, 3, 1, 1, 0], [0, 4, 1, 1, 0], [1, 5, 1, 1, 0]])
    assert layout.num_crossings(layout.make(space, tokens)) < 1


def test_svg_holds_every_label_and_is_reproducible(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw.render(SPACE, TOKENS, tmp_path / name, title="a <title>")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    nodes = xml.etree.ElementTree.parse(tmp_path / "a.svg").iter()
    texts = [node.text.strip() for node in nodes if node.tag.endswith("}text")]
    operations = [draw.readable(SPACE.operations[index]) for index in TOKENS[:, 2:4].ravel()]
    of_end = ("current logits", "past logits", "offsets", "correction", "move", "mix", "add", "new logits")
    for label in ("prev_state", "decoder", "logits", "output", *of_end, "mean of 2 layers", "a <title>", *operations):
        assert texts.count(label) == max(1, operations.count(label)), label
    assert sorted(text for text in texts if text in SPACE.aggregations) == ["gate", "gate", "max", "sum", "warp"]
    assert "stage1" not in texts


ENDS = [end.Whole(kind, is_propagating=mode) for kind in cell_end.ENDS for mode in (False, True)]


@pytest.mark.parametrize("num_layers", [1, 4, 7])
def test_labels_do_not_touch(tmp_path, num_layers):
    """The extents of all texts, as rendered, are apart from each other and inside the picture, whatever the end is."""
    space, tokens = _random(num_layers, 3)
    names = [*space.inputs, *(f"layer{layer}" for layer in range(num_layers)), *cell_end.PARTS, end.PAST]
    worth = {name: "+10.25 ± 10.40" for name in names}
    for genotype, whole in zip(tokens, ENDS[3:] if num_layers == 4 else ENDS[:3], strict=True):
        figure = draw.figure(space, genotype, "title", whole._replace(worth=worth))
        figure.savefig(tmp_path / "x.png")
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert all(not a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        low, high = np.min([box.min for box in boxes], axis=0), np.max([box.max for box in boxes], axis=0)
        assert (low >= 0).all() and (high <= figure.bbox.max).all()


def test_png_shows_the_colours_of_its_inputs(tmp_path):
    """A cell without history has nothing in the colour of history."""
    present, whole = {}, end.Whole(cell_end.CLASSIFIER, is_propagating=True)  # an end that reads nothing else
    for name, source in (("history", 0), ("current", 1)):
        tokens = np.array([[source, source, 1, 1, 0]])
        draw.render(genotypes.Space(("prev_state", "decoder"), 1), tokens, tmp_path / f"{name}.png", whole=whole)
        image = matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3]
        colors = np.array([matplotlib.colors.to_rgb(c) for c in (pen.HISTORY_COLOR, pen.CURRENT_COLOR)])
        present[name] = [bool((np.abs(image - color).max(-1) < 0.01).sum() > 100) for color in colors]
    assert present == {"history": [True, False], "current": [False, True]}


@pytest.mark.parametrize("name", ["cell.pdf", "cell"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(errors.UserError, match=r"use \.svg or \.png"):
        draw.render(SPACE, TOKENS, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_wrong_genotype():
    with pytest.raises(errors.UserError, match="layer 0, field in_a"):
        draw.text(SPACE, np.array([[9, 1, 4, 1, 2], [4, 2, 0, 9, 3], [4, 4, 11, 10, 0], [5, 1, 7, 8, 4]]))
