"""What `dvsnas bench accelerator` found, as a page of tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WHAT = {
    "device": "the device and its peaks",
    "kernels": "variants of the kernels",
    "search": "a step of the supernet, an iteration of a search",
    "net_float32": "MobileNetV2 and RefineNet, float32",
    "net_bfloat16": "the same, bfloat16",
    "net_resnet50": "ResNet-50 and RefineNet, bfloat16",
    "export": "exported programs",
    "programs": "programs as handed to CUDA",
}


def markdown(known: Mapping[str, Any], order: Sequence[str]) -> str:
    """The page of all parts that are done, and what is missing; `known` is what the JSON file holds."""
    parts, lines = known["parts"], ["# Accelerator check", "", *_head(known), ""]
    rows = [[name, _WHAT[name], _state(known, name), _seconds(parts, name)] for name in order]
    lines += _table(("part", "what", "state", "s"), rows)
    notes = dict.fromkeys(note for name in order if name in parts for note in parts[name]["notes"])
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    for title, makes, names in _SECTIONS:
        found = [(parts[name], name) for name in names if name in parts]
        if found:
            lines += ["", f"## {title}", "", *makes(found)]
    return "\n".join([*lines, ""])


def _head(known: Mapping[str, Any]) -> list[str]:
    """Devices and commits: more than one of each where the file came about on several."""
    parts = known["parts"].values()
    devices = dict.fromkeys(f"{part['backend']} ({part['device']})" for part in parts)
    commits = dict.fromkeys(str(part["git_commit"])[:9] for part in parts if part["git_commit"])
    return [
        f"{', '.join(devices) or 'nothing measured'}; {known['sizes']} sizes; commit {', '.join(commits) or 'unknown'}"
    ]


def _state(known: Mapping[str, Any], name: str) -> str:
    if name in known["parts"]:
        return "done"
    return str(known["missing"].get(name, {"line": "not asked for"})["line"]).replace("|", "/")


def _seconds(parts: Mapping[str, Any], name: str) -> str:
    return f"{parts[name]['seconds']:.0f}" if name in parts else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


_Found = list[tuple[Mapping[str, Any], str]]


def _device(found: _Found) -> list[str]:
    result = found[0][0]["result"]
    versions = ", ".join(f"{name} {version}" for name, version in result["environment"]["versions"].items())
    rows = [
        *(
            [f"matrix product, {dtype}", f"{peak / 1e3:.3g} TFLOP/s"]
            for dtype, peak in result["matrix_peak_gflops"].items()
        ),
        ["copy, read and written", f"{result['copy_gb_per_s']:.3g} GB/s"],
        ["memory", _gigabytes(result["memory_bytes"])],
        ["versions", versions],
    ]
    return _table(("what", "figure"), rows)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count else "not told"


def _kernels(found: _Found) -> list[str]:
    rows = []
    for row in found[0][0]["result"]["kernels"]:
        times = [f"{name} {part['forward']:.3g} / {part['gradient']:.3g}" for name, part in row["variants"].items()]
        shape = f"{'x'.join(map(str, row['shape']))} {row['dtype']}"
        equal = f"{row['difference']:.1g}" + ("" if row["is_equal"] else ", **differs**")
        rows.append([row["kernel"], shape, *times, row["fastest"], equal])
    head = ("kernel", "of", "the accelerator's, ms forward / with gradient", "the other", "faster", "difference")
    return _table(head, rows)


def _search(found: _Found) -> list[str]:
    result = found[0][0]["result"]
    size, phases, shares = result["sizes"], result["phases"], result["shares"]
    rows = []
    for name, seconds in phases.items():
        share = f"{100 * shares[name]:.1f} %" if name in shares else ""
        memory = _gigabytes(result["programs"][name]["memory"]["total"]) if name in result["programs"] else ""
        compiled = f"{result['programs'][name]['compile_s']:.0f} s" if name in result["programs"] else ""
        rows.append([name, f"{1e3 * seconds:.3g}", share, memory, compiled])
    return [
        f"Crops of {'x'.join(map(str, size['train_size']))}, {size['frames']} frames, batch {size['batch']}, "
        f"C = {size['channels']}, L = {size['layers']}, {size['shared_genotypes']} genotypes a step.",
        "",
        *_table(("phase", "ms", "share of the float32 peak", "memory of the program", "compiled in"), rows),
        "",
        f"An iteration of {size['shared_steps']} steps and {size['genotypes_per_step']} candidates: "
        f"{result['iteration_seconds']:.3g} s; {result['candidates_per_hour']:.0f} candidates an hour.",
        *_costs("an optimizer step", result["largest"]),
    ]


def _costs(what: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The largest costs of a program, as lines."""
    if not rows:
        return ["", f"Largest costs of {what}: the profiler gave no events of operations."]
    table = [
        [row["kind"], f"{row['ms']:.3g}", f"{100 * row['share']:.0f} %", row["op"], f"{row['op_ms']:.3g}"]
        for row in rows
    ]
    head = ("kind", "ms", "share", "its dearest operation", "ms")
    return ["", f"Largest costs of {what}:", "", *_table(head, table)]


def _nets(found: _Found) -> list[str]:
    rows, costs = [], []
    for part, _ in found:
        result = part["result"]
        for row in result["nets"]:
            equal = f"{100 * result['equal_labels']:.2f} %" if "equal_labels" in result else ""
            names = [name for name in ("forward", "train") if f"{name}_ms" in row]
            cells = [f"{row[f'{name}_ms']:.3g} ({100 * row[f'{name}_share']:.0f} %)" for name in names]
            memory = [_gigabytes(row[f"{name}_bytes"]) for name in names]
            rows.append([row["net"], *_padded(cells), *_padded(memory), equal])
            for name in names:
                costs += _costs(f"{row['net']}, {name}", row[f"{name}_largest"])
    result = found[0][0]["result"]
    sizes = f"Forward 1x{'x'.join(map(str, result['size']))}, training {'x'.join(map(str, result['train_size']))}."
    head = (
        "network",
        "forward ms (of peak)",
        "training ms (of peak)",
        "forward memory",
        "training memory",
        "labels as float32",
    )
    return [sizes, "", *_table(head, rows), *costs]


def _padded(cells: list[str]) -> list[str]:
    """Of both programs, where one may be missing."""
    return [*cells, "-"][:2]


def _export(found: _Found) -> list[str]:
    result = found[0][0]["result"]
    rows = [
        [who, *(f"{result[f'{who}_{part}_ms']:.3g}" for part in ("static", "key", "other"))]
        for who in ("exported", "own")
    ]
    platforms = dict.fromkeys(platform for each in result["platforms"].values() for platform in each)
    return [
        f"Frames of {'x'.join(map(str, result['size']))}, a key frame in {result['interval']}; "
        f"programs for {', '.join(platforms)}; {100 * result['equal_labels']:.2f} % of the labels as in this process.",
        "",
        *_table(("programs", "static ms", "key ms", "other ms"), rows),
    ]


def _programs(found: _Found) -> list[str]:
    rows = [
        [
            name, "; ".join(each["problems"]) or "none", each["convolutions"], each["depthwise"], each["products"],
            f"{100 * each['share_bfloat16']:.0f} %", f"{100 * each['share_aligned']:.0f} %",
        ]
        for name, each in found[0][0]["result"]["programs"].items()
    ]  # fmt: skip
    head = ("program", "problems", "convolutions", "depthwise", "products", "in bfloat16", "channels in eights")
    return _table(head, rows)


def _memory(found: _Found) -> list[str]:
    return _table(
        ("part", "most held by its process"), [[name, _gigabytes(part["peak_bytes"])] for part, name in found]
    )


_NETS = ("net_float32", "net_bfloat16", "net_resnet50")
_SECTIONS = (
    ("Device", _device, ("device",)),
    ("Kernels", _kernels, ("kernels",)),
    ("Search", _search, ("search",)),
    ("Static networks", _nets, _NETS),
    ("Export", _export, ("export",)),
    ("Programs", _programs, ("programs",)),
    ("Memory", _memory, tuple(_WHAT)),
)
