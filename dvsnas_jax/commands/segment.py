"""The command that applies a trained cell to a video: segment."""

from __future__ import annotations

import argparse
import re

from dvsnas_jax.commands import common


def register(add: common.Add) -> None:
    """Adds the command."""
    segment = add(
        "segment",
        _segment,
        "segment a video: overlay video, masks, a summary",
        "drive.mp4 --workdir=runs/smoke --output=overlay.mp4 --summary=overlay.json",
    )
    segment.add_argument(
        "input", metavar="INPUT", help="video file, animation, folder of images, glob of images in quotes, or camera:0"
    )
    model = segment.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", metavar="DIR", help="run folder with a trained cell or static network")
    model.add_argument("--model", metavar="DIR", help="folder that `dvsnas export` wrote")
    _add_outputs(segment)
    segment.add_argument("--max-frames", metavar="N", type=int, help="read no more frames than this")
    segment.add_argument("--fps", metavar="RATE", type=float, help="frames per second of images (30)")
    segment.add_argument(
        "--resize", metavar="HxW", type=_size, help="bring frames to this size as they are read; outputs have it too"
    )
    segment.add_argument(
        "--key-interval", metavar="K", type=int, help="mode propagate: (longest) distance of key frames, as the run's"
    )
    segment.add_argument(
        "--reset-at-cuts", action="store_true", help="forget the frames before where another take begins"
    )
    common.add_compile_cache(segment)


def _add_outputs(segment: argparse.ArgumentParser) -> None:
    """What is written."""
    segment.add_argument("--output", metavar="FILE", help="overlay video, .mp4, .mov or .mkv")
    segment.add_argument("--alpha", metavar="A", type=float, default=0.5, help="weight of the overlay's colours (0.5)")
    segment.add_argument(
        "--side-by-side", action="store_true", help="overlay video: left the static network alone, right the cell"
    )
    segment.add_argument("--legend", action="store_true", help="overlay video: names of the classes that occur")
    segment.add_argument("--masks", metavar="DIR", help="write the labels of each frame as PNG")
    segment.add_argument(
        "--mask-format",
        choices=("ids", "colors"),
        default="ids",
        help="what the masks' pixels hold: the ids that masks of the data set have, or colours (ids)",
    )
    segment.add_argument(
        "--colors", dest="mask_format", action="store_const", const="colors", help="the same as --mask-format=colors"
    )
    segment.add_argument("--summary", metavar="FILE", help="write speed, latencies, flicker and cuts as JSON")
    segment.add_argument("--step-rate", action="store_true", help="measure the steps alone afterwards, for the summary")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"needs HEIGHTxWIDTH, for example 360x480, got {text!r}")
    return int(match[1]), int(match[2])


def _segment(arguments: argparse.Namespace) -> None:
    model = common.existing(arguments.workdir or arguments.model, "--workdir" if arguments.workdir else "--model")
    from dvsnas_jax.deploy import load, segment_outputs, segment_summary
    from dvsnas_jax.deploy import segment as segment_lib
    from dvsnas_jax.infer.video import video_in

    options = segment_outputs.Options(
        output=arguments.output,
        masks=arguments.masks,
        mask_format=arguments.mask_format,
        is_side_by_side=arguments.side_by_side,
        resize=arguments.resize,
        alpha=arguments.alpha,
        do_reset=arguments.reset_at_cuts,
        summary=arguments.summary,
        do_rate=arguments.step_rate,
        has_legend=arguments.legend,
    )
    options.check()
    source = video_in.open_source(arguments.input, max_frames=arguments.max_frames, rate=arguments.fps)
    options.refuse_overwriting(source)
    segmenter = load.load(model, key_interval=arguments.key_interval)
    summary = segment_lib.run(segmenter, source, options)
    print(segment_summary.text(summary))
