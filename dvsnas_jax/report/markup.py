"""Pieces of the report's page: tables, figures that follow the reader's colour scheme, the frame and its style.

Nothing is loaded from a network, and there is no script.
"""

from __future__ import annotations

import base64
import html
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.evaluate import figures
from dvsnas_jax.space.drawing import pen

_VARIABLES = {
    "ink": (figures.INK, "#1c2026", "#000000"),
    "soft": ("#4a505a", "#5a616b", "#6b7280", "#7a8088"),
    "axis": ("#9aa1ab", pen.NONE_COLOR),
    "grid": ("#e6e8ec",),
    "card": ("#ffffff",),
    "blue": (figures.BLUE,),
    "orange": (figures.ORANGE,),
    "green": (figures.GREEN,),
    "sky": (figures.SKY,),
    "red": (figures.RED,),
    "grey": (figures.GREY,),
    "pink": (figures.PINK,),
    "layer": (pen.LAYER_COLOR,),
    "fill-history": ("#fcebc8",),
    "fill-current": ("#d3e8f6",),
    "fill-layer": ("#eceef2",),
    "fill-none": ("#f6f7f8",),
}
_COLORS = {color.lower(): f"var(--{name})" for name, colors in _VARIABLES.items() for color in colors}
_STYLE = pathlib.Path(__file__).with_name("style.css")


def escape(value: Any) -> str:
    """Text as HTML."""
    return html.escape(str(value))


def number(value: float | None, decimals: int, *, is_signed: bool = False) -> str:
    """A number with a real minus sign and no sign on a zero; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return ("+" if is_signed and value > 0 else "") + text.replace("-", "−")


def percent(share: float | None, decimals: int, *, is_signed: bool = False) -> str:
    """A share in percent, a reward in hundredths; a dash where there is none."""
    return number(None if share is None else 100 * share, decimals, is_signed=is_signed)


def section(level: int, title: str, body: str, anchor: str) -> str:
    """A part under a heading; "" where it has no body."""
    if not body:
        return ""
    return f'<section id="{escape(anchor)}"><h{level}>{escape(title)}</h{level}>{body}</section>'


def note(text: str) -> str:
    """A grey line; `text` is HTML."""
    return f"<p class=note>{text}</p>"


def table(
    head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], words: str, *, kind: str = "", title: str = ""
) -> str:
    """A table that scrolls sideways where the screen is narrow; `words` tell those who hear the page what it shows.

    `head` and `rows` (the name, the cells) are HTML; a cell that starts with "<td" is taken as it is.
    """
    heads = "".join(f"<th scope=col>{text}</th>" if text else "<td></td>" for text in head)
    body = []
    for name, cells in rows:
        texts = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        body.append(f"<tr><th scope=row>{name}</th>{texts}</tr>")
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    thead = f"<thead><tr>{heads}</tr></thead>" if head else ""
    inner = f'<table class="{kind}">{caption}{thead}<tbody>{"".join(body)}</tbody></table>'
    return f'<div class=scroll role=region tabindex=0 aria-label="{escape(words)}">{inner}</div>'


def heat(
    rows: Sequence[tuple[str, Sequence[float | None]]], columns: Sequence[str], words: str, *,
    title: str, corner: str, top: float = 1.0,
) -> str:  # fmt: skip
    """A table of shares in 0..1 (None: nothing to divide) in percent, the larger the darker up to `top`."""

    def cell(share: float | None) -> str:
        if share is None:
            return "<td>–</td>"
        strength = min(share / top, 1.0) if top else 0.0
        shown = "" if share < 0.005 else f"{100 * share:.0f}"
        return f'<td style="--s:{strength:.2f}">{shown}</td>'

    body = [(escape(name), [cell(share) for share in shares]) for name, shares in rows]
    return table([escape(corner), *map(escape, columns)], body, words, kind="heat", title=title)


def listing(pairs: Sequence[tuple[str, str]], words: str) -> str:
    """Keys and values as a table."""
    rows = [(escape(key).replace(".", ".<wbr>"), [escape(value)]) for key, value in pairs]
    return table((), rows, words, kind="keys")


def image(data: bytes, words: str, *, kind: str, still: bytes | None = None) -> str:
    """A picture inside the page, and the words that say what it shows.

    `still` is shown in place of a moving picture to those who asked their system for less motion.
    """
    tag = f'<img class="{kind}" alt="{escape(words)}" src="{_webp(data)}">'
    if still is None:
        return tag
    return f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{_webp(still)}">{tag}</picture>'


def _webp(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def svg(text: str, words: str, anchor: str, *, is_wide: bool = False) -> str:
    """A figure of matplotlib inside the page: its colours become the page's variables, its names unique by the anchor.

    Where it is wide, it keeps its size on a narrow screen and scrolls.
    """
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", body).replace("xlink:href", "href")
    head, _, rest = body.partition(">")
    body = re.sub(r'\s(width|height)="[^"]*"', "", head) + ">" + rest
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{anchor}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{anchor}-", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _COLORS.get(found[0], found[0]), body)
    body = body.replace("'DejaVu Sans'", "var(--font)")
    body = body.replace("<svg", f'<svg role=img aria-label="{escape(words)}"', 1)
    kind = "figure wide" if is_wide else "figure"
    return f'<div class="{kind}">{body.strip()}</div>'


def grid(*items: str) -> str:
    """Pieces side by side where there is room; empty ones are left out."""
    shown = [item for item in items if item]
    return f"<div class=grid>{''.join(f'<div>{item}</div>' for item in shown)}</div>" if shown else ""


def legend(entries: Mapping[str, Sequence[int]]) -> str:
    """Names with their colours, each of three bytes."""
    chips = (
        f'<li><span style="background:rgb({",".join(str(int(part)) for part in color)})"></span>{escape(name)}</li>'
        for name, color in entries.items()
    )
    return f'<ul class=legend aria-label="colours of the classes">{"".join(chips)}</ul>'


def page(title: str, parts: Sequence[str], links: Sequence[tuple[str, str]]) -> str:
    """The whole page: its parts as HTML, and anchor and name of what it holds."""
    entries = "".join(f'<a href="#{escape(anchor)}">{escape(name)}</a>' for anchor, name in links)
    style = _STYLE.read_text(encoding="utf-8")
    nav = f'<nav aria-label="parts of the page">{entries}</nav>' if len(links) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{nav}</header>\n<main>" + "\n".join(parts) + "\n</main></body></html>\n"
    )
