"""The text and the graph of a genotype."""

import itertools
import xml.etree.ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from dvsnas_jax.core import errors
from dvsnas_jax.space import draw
from dvsnas_jax.space import genotype as genotypes

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
    ]


def test_readable_names():
    names = {"sep_conv_3x3_dil3": "sep 3x3 dil 3", "conv_3x3_dil12": "conv 3x3 dil 12", "max_pool_3x3": "max pool 3x3"}
    names |= {"deform_conv_3x3": "deform conv 3x3", "local_attention": "attention", "gate": "gate"}
    assert {name: draw.readable(name) for name in names} == names
    assert len({draw.readable(name) for name in genotypes.vocabulary("operations")}) == len(
        genotypes.vocabulary("operations")
    )


def test_columns_are_longest_paths():
    layout = draw._layout(SPACE, TOKENS)
    columns = {key: item.column for key, item in layout.items.items() if not item.is_lane}
    inputs = {"prev_state": 0, "decoder": 0, "logits": 0}  # stage1 is taken by nobody and is left out
    assert columns == inputs | {"layer0": 1, "layer1": 2, "layer2": 2, "layer3": 3, "output": 4}
    lanes = {key for key, item in layout.items.items() if item.is_lane}
    assert lanes == {"decoder@1", "decoder@2", "logits@1", "layer2@3"}


@pytest.mark.parametrize("num_layers", [1, 4, 7])
def test_layout_laws(num_layers):
    """Every edge of the genotype is a chain of segments to the next column; nothing in a column overlaps."""
    space, tokens = _random(num_layers, 20)
    for genotype in tokens:
        layout = draw._layout(space, genotype)
        for upper, lower in itertools.chain.from_iterable(map(itertools.pairwise, layout.columns())):
            assert upper.y - lower.y >= (upper.height + lower.height) / 2 + draw._SPACE - 1e-9
        links = {}
        for segment in layout.segments:
            assert layout.items[segment.right].column == layout.items[segment.left].column + 1
            links.setdefault((segment.right, segment.offset), []).append(segment.left)
        traced = []
        for (key, offset), sources in links.items():
            if not layout.items[key].is_lane:
                traced += [(layout.items[source].source, key, offset) for source in sources]
        wanted = [edge[:3] for edge in draw._edges(space, genotype)]
        assert sorted(traced) == sorted(wanted)


def test_order_has_no_needless_crossings():
    """Two separate chains can be drawn without a crossing, whatever the order of the inputs."""
    space = genotypes.Space(inputs=("prev_state", "decoder", "logits", "stage1"), num_layers=4)
    tokens = np.array([[0, 2, 1, 1, 0], [1, 3, 1, 1, 0], [0, 4, 1, 1, 0], [1, 5, 1, 1, 0]])
    assert draw._num_crossings(draw._layout(space, tokens)) < 1


def test_svg_holds_every_label_and_is_reproducible(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw.render(SPACE, TOKENS, tmp_path / name, title="a <title>")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    nodes = xml.etree.ElementTree.parse(tmp_path / "a.svg").iter()
    texts = [node.text.strip() for node in nodes if node.tag.endswith("}text")]
    operations = [draw.readable(SPACE.operations[index]) for index in TOKENS[:, 2:4].ravel()]
    for label in ("prev_state", "decoder", "logits", "output", "mean of 2 layers", "a <title>", *operations):
        assert texts.count(label) == max(1, operations.count(label)), label
    assert sorted(text for text in texts if text in SPACE.aggregations) == ["gate", "max", "sum", "warp"]
    assert "stage1" not in texts


@pytest.mark.parametrize("num_layers", [1, 4, 7])
def test_labels_do_not_touch(tmp_path, num_layers):
    """The extents of all texts, as rendered, are apart from each other and inside the picture."""
    space, tokens = _random(num_layers, 3)
    for genotype in tokens:
        figure = draw._draw(space, genotype, draw._layout(space, genotype), "title")
        figure.savefig(tmp_path / "x.png")
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert all(not a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        low, high = np.min([box.min for box in boxes], axis=0), np.max([box.max for box in boxes], axis=0)
        assert (low >= 0).all() and (high <= figure.bbox.max).all()


def test_png_shows_the_colours_of_its_inputs(tmp_path):
    """A cell without history has nothing in the colour of history."""
    present = {}
    for name, source in (("history", 0), ("current", 1)):
        tokens = np.array([[source, source, 1, 1, 0]])
        draw.render(genotypes.Space(("prev_state", "decoder"), 1), tokens, tmp_path / f"{name}.png")
        image = matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3]
        colors = np.array([matplotlib.colors.to_rgb(c) for c in (draw.HISTORY_COLOR, draw.CURRENT_COLOR)])
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
