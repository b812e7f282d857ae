"""The commands that look at a dataset."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common
from dvsnas_jax.core import errors


def register(add: common.Add) -> None:
    """Adds the commands."""
    data = add("data", None, "look at a dataset", "preview --config=configs/smoke.py --output=preview.png")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=common.Parser)
    add = common.adder(actions, parent="data ")
    preview = add("preview", _preview, "draw frames and labels", "--config=configs/smoke.py --output=preview.png")
    common.add_config(preview, is_required=False)
    preview.add_argument(
        "--output", metavar="FILE", required=True,
        help="a sheet of frames and labels: .png; a video under its labels: .gif, .webp, .apng",
    )  # fmt: skip
    preview.add_argument("--animate", action="store_true", help="a video also where the ending is .png")
    preview.add_argument("--split", choices=("train", "val", "test"), default="val", help="default: val")
    preview.add_argument("--video", type=int, metavar="N", help="number of the video to animate; default: the longest")
    preview.add_argument("--frames", type=int, metavar="N", help="at most so many; default: 5 in a sheet, 60 animated")
    check = add("check", _check, "read every file of a dataset and list what is wrong", "/data/camvid")
    check.add_argument("dir", metavar="DIR", help="dataset folder")
    check.add_argument(
        "--layout", choices=("auto", "camvid", "cityscapes", "folder"), default="auto",
        help="what the folder should be; default: whatever it looks like",
    )  # fmt: skip
    text = "files read at once; default: as many as cores"
    check.add_argument("--workers", type=int, default=0, metavar="N", help=text)
    common.add_config(check, is_required=False)
    check.epilog = f"{check.epilog}\nwith --config, also whether a search of that config finds labels where it measures"
    prepare = add(
        "prepare", _prepare, "write the clips of a dataset as TFDS records, to read with config.data.prepared",
        "--config=configs/camvid_small.py --config.data.dir=/data/camvid --output=/data/prepared",
    )  # fmt: skip
    common.add_config(prepare, is_required=True)
    prepare.add_argument("--output", metavar="DIR", required=True, help="folder for <dataset>_clips/<version>")
    prepare.add_argument("--splits", metavar="A,B", default="", help="default: all that have labels")
    prepare.add_argument("--height", type=int, default=0, metavar="N", help="of the frames; default: files unchanged")
    prepare.add_argument("--width", type=int, default=0, metavar="N", help="likewise")
    text = "files written at once; default: one a core"
    prepare.add_argument("--workers", type=int, default=0, metavar="N", help=text)


def _preview(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    output = common.picture(arguments.output, (".png", ".apng", ".gif", ".webp"))
    from dvsnas_jax.data import preview

    if arguments.animate or not output.lower().endswith(".png"):
        options = {"number": arguments.video, "num_frames": 60 if arguments.frames is None else arguments.frames}
        preview.save_animation(config.data, output, split=arguments.split, **options)
    elif arguments.video is not None:
        raise errors.UserError("--video: chooses the video to animate; add --animate, or end --output in .gif")
    else:
        num_frames = 5 if arguments.frames is None else arguments.frames
        preview.save(config.data, output, split=arguments.split, num_frames=num_frames)
    print(f"written: {output}")


def _check(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    if arguments.workers < 0:
        raise errors.UserError(f"--workers: must be at least 0, got {arguments.workers}")
    from dvsnas_jax.data import check
    from dvsnas_jax.data.datasets import layouts

    report = check.run(arguments.dir, arguments.layout, layouts.options(config.data), workers=arguments.workers)
    for problem in report.problems:
        print(problem)
    if report.problems:
        raise errors.UserError(
            f"{arguments.dir}: {len(report.problems)} problems (listed above); correct them and check again"
        )
    print(check.text(report))
    if arguments.config and config.data.name == report.layout.split("_")[0]:
        from dvsnas_jax.train import require_labels

        config.data.dir = arguments.dir
        require_labels.check(config, is_rewarded=True, is_evaluated=True, do_note=False)


def _prepare(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    if arguments.workers < 0:
        raise errors.UserError(f"--workers: must be at least 0, got {arguments.workers}")
    splits = tuple(filter(None, arguments.splits.split(",")))
    from dvsnas_jax.data.prepared import prepare

    size = {"height": arguments.height, "width": arguments.width}
    result = prepare.run(config.data, arguments.output, splits=splits, num_workers=arguments.workers, **size)
    counts = ", ".join(f"{split} {count}" for split, count in result.counts.items())
    state = "prepared" if result.is_new else "already prepared, nothing to do"
    print(f"{state}: {result.path}, {counts} clips, {prepare.size_text(result.num_bytes)}")
    if result.left_out:
        print(f"left out, without labels: {', '.join(result.left_out)}")
