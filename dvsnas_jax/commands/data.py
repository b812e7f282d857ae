"""The commands that look at a dataset."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common


def register(add: common.Add) -> None:
    """Adds the commands."""
    data = add("data", None, "look at a dataset", "preview --config=configs/smoke.py --output=preview.png")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=common.Parser)
    add = common.adder(actions, parent="data ")
    preview = add("preview", _preview, "draw frames and labels", "--config=configs/smoke.py --output=preview.png")
    common.add_config(preview, is_required=False)
    preview.add_argument("--output", metavar="FILE", required=True, help="picture, .png")


def _preview(arguments: argparse.Namespace) -> None:
    config = common.load_config(arguments)
    output = common.picture(arguments.output, (".png",))
    from dvsnas_jax.data import preview

    preview.save(config.data, output)
    print(f"written: {output}")
