"""The commands for the weights of static networks."""

from __future__ import annotations

import argparse

from dvsnas_jax.commands import common
from dvsnas_jax.core.files import json_text


def register(add: common.Add) -> None:
    """Adds the commands."""
    example = "import resnet50.pth --net=resnet50 --output=weights/resnet50"
    weights = add("weights", None, "import weights of static networks from PyTorch", example)
    actions = weights.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=common.Parser)
    add = common.adder(actions, parent="weights ")
    load = add(
        "import", _import, "make a folder for config.net.weights of a PyTorch state dict; nothing in it is run",
        "resnet50.pth --net=resnet50 --output=weights/resnet50",
    )  # fmt: skip
    load.add_argument("file", metavar="FILE", help=".safetensors, or .pth of torch.save(model.state_dict(), FILE)")
    load.add_argument(
        "--net", metavar="NET", required=True,
        help="net.encoder of a classifier's file (the encoder is taken), or refinenet_ and that of the authors' "
        "light-weight RefineNet: resnet50, refinenet_resnet50; a wrong one lists all",
    )  # fmt: skip
    load.add_argument("--output", metavar="DIR", required=True, help="folder to write")
    load.add_argument("--width", type=float, default=1.0, help="multiplier of the encoder's channels, default 1.0")
    load.add_argument("--classes", type=int, metavar="K", help="classes of the network; default: as in the file")
    load.add_argument("--partial", action="store_true", help="take what fits, whatever is missing or left over")
    show = add("inspect", _inspect, "list the tensors of a PyTorch file and the networks it fits", "resnet50.pth")
    show.add_argument("file", metavar="FILE", help=".safetensors or .pth")
    show.add_argument("--json", action="store_true", help="as JSON")


def _import(arguments: argparse.Namespace) -> None:
    common.existing(arguments.file, "FILE")
    from dvsnas_jax.nets.weights import torch_import

    report = torch_import.import_file(
        arguments.file, arguments.net, arguments.output, width=arguments.width, num_classes=arguments.classes,
        is_partial=arguments.partial,
    )  # fmt: skip
    print(f"used: {len(report.used)} tensors")
    shapes = [f"{name} {list(has)}, needed {list(need)}" for name, (has, need) in report.other_shape.items()]
    kinds = {"missing": report.missing, "left over": report.left_over, "of another shape": shapes}
    for kind, names in {"known and of no use": report.unused, **kinds}.items():
        print(f"{kind}: {len(names)}")
        for name in names if kind in kinds else ():
            print(f"  {name}")
    print(f"written: {arguments.output}")
    settings = torch_import.sources(arguments.width)[arguments.net].settings
    flags = {**settings, "weights": arguments.output}
    print("use it: " + " ".join(f"--config.net.{key}={value}" for key, value in flags.items()))


def _inspect(arguments: argparse.Namespace) -> None:
    common.existing(arguments.file, "FILE")
    from dvsnas_jax.nets.weights import torch_import

    found = torch_import.inspect(arguments.file)
    if arguments.json:
        print(json_text.dumps(found))
        return
    for name, (shape, dtype) in found["tensors"].items():
        print(f"{name}  {shape}  {dtype}")
    print(f"{found['kind']}, {len(found['tensors'])} tensors, {found['parameters']} parameters")
    print(f"not finite: {', '.join(found['non_finite']) or 'none'}")
    print(f"fits --net: {', '.join(found['fits']) or 'none'}")
