"""The command that applies a trained cell to a video: segment."""

from __future__ import annotations

import argparse
import dataclasses
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
    text = "bring frames to this size as they are read; outputs have it too"
    segment.add_argument("--resize", metavar="HxW", type=_size, help=text)
    text = "mode propagate: (longest) distance of key frames, as the run's"
    segment.add_argument("--key-interval", metavar="K", type=int, help=text)
    text = "forget the frames before where another take begins"
    segment.add_argument("--reset-at-cuts", dest="do_reset", action="store_true", help=text)
    common.add_compile_cache(segment)


def _add_outputs(segment: argparse.ArgumentParser) -> None:
    """What is written; the names of the arguments are those of `segment_outputs.Options`."""

    def flag(name: str, dest: str, text: str) -> None:
        segment.add_argument(name, dest=dest, action="store_true", help=text)

    segment.add_argument("--output", metavar="FILE", help="overlay video, .mp4, .mov or .mkv")
    segment.add_argument("--alpha", metavar="A", type=float, default=0.5, help="weight of the overlay's colours (0.5)")
    flag("--side-by-side", "is_side_by_side", "overlay video: left the static network alone, right the cell")
    flag("--legend", "has_legend", "overlay video: names of the classes that occur")
    segment.add_argument("--masks", metavar="DIR", help="write the labels of each frame as PNG")
    text = "what the masks' pixels hold: the ids that masks of the data set have, or colours (ids)"
    segment.add_argument("--mask-format", choices=("ids", "colors"), default="ids", help=text)
    text = "the same as --mask-format=colors"
    segment.add_argument("--colors", dest="mask_format", action="store_const", const="colors", help=text)
    segment.add_argument("--summary", metavar="FILE", help="write speed, latencies, flicker and cuts as JSON")
    flag("--step-rate", "do_rate", "measure the steps alone afterwards, for the summary")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"needs HEIGHTxWIDTH, for example 360x480, got {text!r}")
    return int(match[1]), int(match[2])


def _segment(arguments: argparse.Namespace) -> None:
    model = common.existing(arguments.workdir or arguments.model, "--workdir" if arguments.workdir else "--model")
    from dvsnas_jax.deploy import load, segment_outputs, segment_summary
    from dvsnas_jax.deploy import segment as segment_lib
    from dvsnas_jax.infer.video import sources

    names = [field.name for field in dataclasses.fields(segment_outputs.Options)]
    options = segment_outputs.Options(**{name: getattr(arguments, name) for name in names})
    options.check()
    source = sources.open_source(arguments.input, max_frames=arguments.max_frames, rate=arguments.fps)
    options.refuse_overwriting(source)
    segmenter = load.load(model, key_interval=arguments.key_interval, keep_in=common.programs_folder())
    print(segment_summary.text(segment_lib.run(segmenter, source, options)))
