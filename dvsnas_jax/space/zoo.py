"""The hand-designed methods as points of the cell space: a genotype by name, a mode and a key-frame rule each.

They run on the same static network and the same code as a searched cell. None has an optical-flow network: where the
original warps by flow, the member uses the aggregation `warp`, whose offsets are predicted from both of its inputs and
which adds the second one. Every input passes a learned 1x1 projection first: `skip` of an input is a linear map of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dvsnas_jax.core import errors
from dvsnas_jax.space import cell_end
from dvsnas_jax.space import genotype as genotype_lib

PREFIX = "zoo:"
ALL = "zoo"
REFINE, PROPAGATE = "refine", "propagate"


@dataclasses.dataclass(frozen=True)
class Member:
    """A hand-designed method.

    Attributes:
      name: after `zoo:`.
      mode: as `config.space.mode`.
      schedule: as `config.schedule.kind`; of no use in refine, where every frame passes the static network.
      genotype: by name, as the JSON of a genotype.
      source: authors, year, title, where to find it.
      idea: what the method does, in one sentence.
      differs: what differs here from the original.
      interval: as `config.schedule.interval`; None: the config's.
      end: as `config.space.end`; `none`: a baseline, of which nothing is trained.
    """

    name: str
    mode: str
    schedule: str
    genotype: Mapping[str, Any]
    source: str
    idea: str
    differs: str
    interval: int | None = None
    end: str = cell_end.HEADS

    @property
    def is_baseline(self) -> bool:
        """Whether nothing of it is trained."""
        return self.end == cell_end.NONE

    @property
    def title(self) -> str:
        """The name as words of commands take it, `zoo:NAME`."""
        return PREFIX + self.name


def get(name: str) -> Member:
    """The member of a name, with or without `zoo:`; `UserError` that names the nearest where there is none."""
    short = name.removeprefix(PREFIX)
    if short not in TABLE:
        close = difflib.get_close_matches(short.lower(), TABLE, n=1, cutoff=0.4)
        hint = f", did you mean '{PREFIX}{close[0]}'?" if close else ";"
        raise errors.UserError(f"{PREFIX}{short}: no such member of the zoo{hint} there are {', '.join(TABLE)}")
    return TABLE[short]


def suggestion(word: str) -> str:
    """`zoo:NAME` for a word that is the name of a member, but for the `zoo:` or for its case; else empty."""
    short = word.lower().removeprefix(PREFIX)
    return PREFIX + short if short in TABLE and word != PREFIX + short else ""


def read(word: str | os.PathLike[str], *, name: str) -> tuple[genotype_lib.Space, np.ndarray]:
    """The genotype i32 [L, 5] of `zoo:NAME` or of the path of a JSON, in its own space.

    Raises:
      UserError: the zoo has no such member, or there is no such file, or no genotype in it; begins with `name`.
    """
    text = os.fspath(word)
    if text.startswith(PREFIX):
        return genotype(get(text))
    hint = suggestion(text)
    if hint and not os.path.lexists(text):
        raise errors.UserError(f"{name}: {text} does not exist, did you mean {hint!r}?")
    return genotype_lib.read(text, name=name)


def of_mode(mode: str) -> tuple[Member, ...]:
    """All members of a mode, in the order of the table."""
    return tuple(member for member in TABLE.values() if member.mode == mode)


def genotype(member: Member, space: genotype_lib.Space | None = None) -> tuple[genotype_lib.Space, np.ndarray]:
    """The genotype i32 [L, 5] of a member, and its space.

    That is the given one (see `embed`), or that of just the member's own inputs and layers with the full vocabulary.
    """
    if space is None:
        return genotype_lib.from_dict(member.genotype, where=member.title)
    return space, embed(member.genotype, space, where=member.title)


def embed(data: Mapping[str, Any], space: genotype_lib.Space, *, where: str = "genotype") -> np.ndarray:
    """Expresses a genotype by name in a larger space, as exactly the same function.

    Missing layers are filled with `max` of the last layer with itself: max(x, x) = x without rounding, its gradient
    is that of x, and the last layer, always a loose end, is replaced by an equal one, so the mean stays as it is.

    Raises:
      UserError: the space has fewer layers, lacks a name, or lacks what the filling needs; begins with `where`.
    """
    layers = list(data["layers"])
    num_missing = space.num_layers - len(layers)
    if num_missing < 0:
        raise errors.UserError(
            f"{where}: has {len(layers)} layers, the space only {space.num_layers}; "
            f"set --config.space.num_layers={len(layers)}"
        )
    if num_missing and not ("skip" in space.operations and "max" in space.aggregations):
        raise errors.UserError(
            f"{where}: {num_missing} layers fewer than the space, and the space lacks the operation 'skip' or the "
            f"aggregation 'max' to fill them; set --config.space.num_layers={len(layers)}"
        )
    for _ in range(num_missing):
        last = f"layer{len(layers) - 1}"
        layers.append(_layer("max", ("skip", last), ("skip", last)))
    return genotype_lib.from_dict({**data, "layers": layers}, space, where=where)[1]


def require(member: Member, *, mode: str, schedule: str, end: str) -> None:
    """`UserError` with the words to add, unless a configuration runs the member as it is meant."""
    words = []
    if mode != member.mode:
        words.append(f"--config.space.mode={member.mode}")
    if member.mode == PROPAGATE and schedule != member.schedule:
        words.append(f"--config.schedule.kind={member.schedule}")
    if member.is_baseline != (end == cell_end.NONE):  # other members may have the end of older cells
        words.append(f"--config.space.end={member.end}")
    if words:
        raise errors.UserError(f"{member.title}: the config does not fit it; add {' '.join(words)}")


def describe(member: Member) -> str:
    """Source, idea, mode, schedule and differences as lines of text."""
    interval = "the config's" if member.interval is None else str(member.interval)
    rule = f", key frames: {member.schedule}, interval: {interval}" if member.mode == PROPAGATE else ""
    lines = (f"{member.title}: {member.source}", f"idea: {member.idea}", f"mode: {member.mode}{rule}")
    return "\n".join([*lines, f"differs: {member.differs}"])


def listing() -> str:
    """All members, a line each."""
    width = max(len(member.title) for member in TABLE.values())
    lines = []
    for member in TABLE.values():
        rule = member.schedule if member.mode == PROPAGATE else "-"
        lines.append(f"{member.title:{width}}  {member.mode:9}  {rule:8}  {member.idea}")
    return "\n".join(lines)


def _layer(aggregation: str, first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    """One layer by name, from an aggregation and two (operation, node)."""
    return {"in": [first[1], second[1]], "ops": [first[0], second[0]], "agg": aggregation}


def _genotype(*layers: dict[str, Any]) -> dict[str, Any]:
    """A genotype of these layers, on the inputs that they read."""
    nodes = dict.fromkeys(node for layer in layers for node in layer["in"])
    inputs = [node for node in nodes if not node.startswith("layer")]
    return {"version": genotype_lib.VERSION, "inputs": inputs, "layers": list(layers)}


_NOTHING = _genotype(_layer("max", ("none", "prev_logits"), ("none", "prev_logits")))
_MEMBERS = (
    Member(
        name="static",
        mode=REFINE,
        schedule="fixed",
        genotype=_genotype(_layer("max", ("skip", "decoder"), ("skip", "decoder"))),
        source="the static network frame by frame; no method of its own",
        idea="the decoder map of the frame passes unchanged, nothing is known of other frames",
        differs="Its end has the running average that all cells start from, and learns a gate, motions and a "
        "correction of each pixel from the decoder maps around it: a second look at the same frame, on the same budget "
        "as its neighbours. `compare` lists the static network itself, too.",
    ),
    Member(
        name="netwarp",
        mode=REFINE,
        schedule="fixed",
        genotype=_genotype(
            _layer("warp", ("skip", "prev_decoder"), ("skip", "decoder")),
            _layer("sum", ("skip", "layer0"), ("skip", "decoder")),
        ),
        source="Gadde, Jampani, Gehler 2017, Semantic Video CNNs through Representation Warping, arXiv 1708.03088",
        idea="the features of the frame before are warped and combined with the current ones by a weight per channel",
        differs="Offsets from both decoder maps in place of an optical flow transformed by a small network that also "
        "sees both images and their difference. `warp` adds the current map and `sum` weighs per channel, which spans "
        "the same combinations as the original's two weights. At one place, the decoder map, in place of several.",
    ),
    Member(
        name="grfp",
        mode=REFINE,
        schedule="fixed",
        genotype=_genotype(
            _layer("warp", ("skip", "prev_logits"), ("skip", "logits")),
            _layer("concat", ("skip", "layer0"), ("skip", "image_diff")),
            _layer("gate", ("skip", "layer1"), ("skip", "logits")),
        ),
        source="Nilsson, Sminchisescu 2018, Semantic Video Segmentation by Gated Recurrent Flow Propagation, "
        "arXiv 1612.08871",
        idea="the segmentation of the frame before is warped, judged by the difference of the images, and joined with "
        "the current one by a recurrent gate",
        differs="Offsets from both segmentations in place of an optical flow. The reset gate compares the current "
        "image with the warped one; here a 1x1 convolution sees the warped segmentation and the difference of the "
        "images as they are. The gate decides per pixel and channel of the projections, not per class. Its output "
        "corrects the static logits instead of replacing them.",
    ),
    Member(
        name="clockwork",
        mode=PROPAGATE,
        schedule="fixed",
        genotype=_genotype(
            _layer("sum", ("skip", "prev_decoder"), ("skip", "stage2")),
            _layer("sum", ("skip", "layer0"), ("skip", "stage1")),
        ),
        source="Shelhamer, Rakelly, Hoffman, Darrell 2016, Clockwork Convnets for Video Semantic Segmentation, "
        "arXiv 1608.03609",
        idea="deep features are kept from the key frame, shallow ones are refreshed, and both are added",
        differs="Two clock rates, and no pipelining of the stages. What is kept is the decoder map and what is added "
        "are projections weighted per channel, in place of the class scores of an FCN at each stage. The adaptive "
        "clock of the original is near to `--config.schedule.kind=adaptive`.",
    ),
    Member(
        name="dff",
        mode=PROPAGATE,
        schedule="fixed",
        genotype=_genotype(_layer("warp", ("skip", "prev_decoder"), ("sep_conv_5x5", "stage1"))),
        source="Zhu, Xiong, Dai, Yuan, Wei 2017, Deep Feature Flow for Video Recognition, arXiv 1611.07715",
        idea="the deep features of the key frame are warped to the current frame",
        differs="Offsets from the key frame's decoder map and the current frame's first stage in place of a flow "
        "network on both images. No scale map is multiplied; `warp` adds what it saw of the current frame, so shallow "
        "content of the current frame reaches the output, which it does not in the original.",
    ),
    Member(
        name="low_latency",
        mode=PROPAGATE,
        schedule="adaptive",
        genotype=_genotype(
            _layer("local_attention", ("skip", "prev_decoder"), ("sep_conv_3x3", "stage2")),
            _layer("concat", ("skip", "layer0"), ("sep_conv_3x3", "stage2")),
        ),
        source="Li, Shi, Lin 2018, Low-Latency Video Semantic Segmentation, arXiv 1804.00389",
        idea="the key frame's deep features are propagated by kernels that vary over the image, joined with shallow "
        "features, and key frames are chosen by a predicted deviation",
        differs="The varying kernels are attention weights of the current shallow features over a window of the key "
        "frame's features, in place of kernels that a network predicts from the shallow features of both frames, and "
        "`local_attention` adds the former. A key frame is waited for; the original hides its latency behind "
        "propagated frames.",
    ),
    Member(
        name="accel",
        mode=PROPAGATE,
        schedule="fixed",
        genotype=_genotype(
            _layer("warp", ("skip", "prev_state"), ("sep_conv_5x5", "stage1")),
            _layer("sum", ("sep_conv_3x3", "stage2"), ("sep_conv_3x3_dil3", "stage2")),
            _layer("sum", ("sep_conv_3x3", "layer1"), ("global_average_pool", "layer1")),
            _layer("concat", ("skip", "layer0"), ("skip", "layer2")),
        ),
        source="Jain, Wang, Gonzalez 2019, Accel: A Corrective Fusion Network for Efficient Semantic Segmentation on "
        "Video, arXiv 1807.06667",
        idea="a reference branch warps features from frame to frame, a cheap update branch sees the current frame, "
        "and a 1x1 convolution of both, stacked, corrects",
        differs="Offsets in place of a flow network. The update branch is two cell layers on the encoder's second "
        "stage in place of a segmentation network of its own. What is warped is the cell's fused state of the frame "
        "before, not the uncorrected reference features, and features are fused in place of class scores.",
    ),
    Member(
        name="dvsnet",
        mode=PROPAGATE,
        schedule="regions",
        genotype=_genotype(_layer("warp", ("skip", "prev_logits"), ("sep_conv_5x5", "stage1"))),
        source="Xu, Fu, Yang, Lee 2018, Dynamic Video Segmentation Network, arXiv 1804.00931",
        idea="each region takes the segmentation network or a warped segmentation, by its expected confidence",
        differs="Offsets from the segmentation that is carried on and the current frame's first stage in place of a "
        "flow network, and `warp` adds the latter. The expected confidence comes from the schedule's own predictor; "
        "regions are the cells of `config.schedule.grid`, whose deep stages see 16 pixels around them.",
    ),
    Member(
        name="ema",
        mode=REFINE,
        schedule="fixed",
        end=cell_end.NONE,
        genotype=_NOTHING,
        source="the exponential moving average of the static network's logits over time; nothing is trained",
        idea="what every refining cell starts from: a share of the current logits and the rest of the average so far",
        differs="The share is the one, of a few, with the best mIoU on meta-validation clips.",
    ),
    Member(
        name="hold",
        mode=PROPAGATE,
        schedule="fixed",
        end=cell_end.NONE,
        genotype=_NOTHING,
        source="the static network on key frames alone; nothing is trained",
        idea="what every propagating cell starts from: the key frame's logits are held until the next one",
        differs="Nothing is computed between key frames, not even the first stages of the encoder.",
    ),
    Member(
        name="match",
        mode=PROPAGATE,
        schedule="fixed",
        genotype=_genotype(
            _layer("correlation", ("skip", "prev_stage2"), ("skip", "stage2")),
            _layer("concat", ("skip", "prev_decoder"), ("sep_conv_5x5", "layer0")),
            _layer("concat", ("sep_conv_5x5", "layer1"), ("skip", "stage1")),
        ),
        source="ours; matching costs as in FlowNet, Dosovitskiy et al. 2015, arXiv 1504.06852",
        idea="each place is looked for in the second stage of the frame before, and where it was found says how the "
        "logits move",
        differs="From FlowNet all but the costs: no flow is estimated, there is no loss on motion, and three layers "
        "follow in place of a network.",
    ),
    Member(
        name="previous",
        mode=REFINE,
        schedule="fixed",
        genotype=_genotype(_layer("max", ("skip", "prev_logits"), ("skip", "prev_logits"))),
        source="the smallest cell with a memory, a control for searched cells",
        idea="nothing is read but the logits of the frame before",
        differs="It sees the current frame only through the end that all cells have.",
    ),
)
TABLE: dict[str, Member] = {member.name: member for member in _MEMBERS}
