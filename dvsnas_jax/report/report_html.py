"""Pieces of the report's page: tables, figures that follow the reader's colour scheme, the frame and its style.

Nothing is loaded from a network, and there is no script.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dvsnas_jax.evaluate import figures
from dvsnas_jax.space import draw

_VARIABLES = {
    "ink": (figures.INK, "#1c2026", "#000000"),
    "soft": ("#4a505a", "#5a616b", "#6b7280", "#7a8088"),
    "axis": ("#9aa1ab", draw.NONE_COLOR),
    "grid": ("#e6e8ec",),
    "card": ("#ffffff",),
    "blue": (figures.BLUE,),
    "orange": (figures.ORANGE,),
    "green": (figures.GREEN,),
    "sky": (figures.SKY,),
    "red": (figures.RED,),
    "grey": (figures.GREY,),
    "pink": (figures.PINK,),
    "layer": (draw.LAYER_COLOR,),
    "fill-history": ("#fcebc8",),
    "fill-current": ("#d3e8f6",),
    "fill-layer": ("#eceef2",),
    "fill-none": ("#f6f7f8",),
}
_COLORS = {color.lower(): f"var(--{name})" for name, colors in _VARIABLES.items() for color in colors}


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
    """A table that scrolls sideways by itself where the screen is narrow.

    Args:
      head: HTML of the headings, the first above the row names.
      rows: HTML of the name and of the cells; a cell that starts with "<td" is taken as it is.
      words: what the table shows, for those who hear the page.
      kind: CSS class.
      title: shown above the table.
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
    rows: Sequence[tuple[str, Sequence[float | None]]],
    columns: Sequence[str],
    words: str,
    *,
    title: str = "",
    corner: str = "",
    top: float = 1.0,
) -> str:
    """A table of shares in percent, the larger the darker.

    Args:
      rows: name and shares in 0..1, None where there is nothing to divide.
      columns: their headings.
      words: as in `table`.
      title: as in `table`.
      corner: heading of the row names.
      top: the share that has the full colour.
    """

    def cell(share: float | None) -> str:
        if share is None:
            return "<td>–</td>"
        strength = min(share / top, 1.0) if top else 0.0
        shown = "" if share < 0.005 else f"{100 * share:.0f}"
        return f'<td style="--s:{strength:.2f}">{shown}</td>'

    body = [(escape(name), [cell(share) for share in shares]) for name, shares in rows]
    return table([escape(corner) or "&nbsp;", *map(escape, columns)], body, words, kind="heat", title=title)


def listing(pairs: Sequence[tuple[str, str]], words: str) -> str:
    """Keys and values as a table."""
    rows = [(escape(key).replace(".", ".<wbr>"), [escape(value)]) for key, value in pairs]
    return table((), rows, words, kind="keys")


def image(data: bytes, words: str, *, kind: str = "", mime: str = "image/webp", still: bytes | None = None) -> str:
    """A picture inside the page.

    Args:
      data: of the file.
      words: what it shows.
      kind: CSS class.
      mime: its type.
      still: shown in place of a moving picture to those who asked their system for less motion.
    """
    source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    tag = f'<img class="{kind}" alt="{escape(words)}" src="{source}">'
    if still is None:
        return tag
    calm = f"data:{mime};base64,{base64.b64encode(still).decode()}"
    return f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{calm}">{tag}</picture>'


def svg(text: str, words: str, anchor: str, *, is_wide: bool = False) -> str:
    """A figure of matplotlib inside the page: its colours become the page's variables, its names unique.

    Args:
      text: the SVG file.
      words: what it shows.
      anchor: that no other figure of the page has.
      is_wide: it keeps its size on a narrow screen and scrolls.
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


_STYLE = """
:root{color-scheme:light dark;--font:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
--ink:#20242b;--soft:#5a616b;--line:#dde1e7;--paper:#f6f7f9;--card:#ffffff;--tint:#eceff3;--good:#00704f;--bad:#b34700;
--axis:#9aa1ab;--grid:#e6e8ec;--blue:#0072b2;--orange:#d08f00;--green:#00875f;--sky:#3d9fd8;--red:#d55e00;--grey:#8a919b;
--pink:#b8578f;--full:72%;--layer:#3b4252;--fill-history:#fcebc8;--fill-current:#d3e8f6;--fill-layer:#eceef2;--fill-none:#f6f7f8}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaee;--soft:#a9b0bb;--line:#363c46;--paper:#13161a;--card:#1b1f25;
--tint:#262c34;--good:#3ccf9f;--bad:#ff9a52;--axis:#6d7580;--grid:#2c323a;--blue:#5fb4ea;--orange:#f0b429;--green:#35c796;
--sky:#8fd0f5;--red:#ff8a3d;--grey:#98a0ab;--pink:#e48ec0;--full:50%;--layer:#a9b8d0;--fill-history:#4a3a12;--fill-current:#15374f;
--fill-layer:#2a303a;--fill-none:#20252c}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:74rem;padding:1.2rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.55 var(--font);overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2;margin:.4rem 0 .3rem}h2{font-size:1.3rem;margin:2.6rem 0 .7rem}
h3{font-size:1.08rem;margin:1.8rem 0 .6rem}h4{font-size:1rem;margin:1.4rem 0 .5rem}
p{max-width:52rem}a{color:var(--blue)}
.lead{font-size:1.15rem}.note,.missing{color:var(--soft);font-size:.88rem}.missing{padding-left:1.1rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;font-size:.92rem;margin:.8rem 0}
.run{border-top:3px solid var(--line);margin-top:3rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.6rem,1fr));gap:.6rem;margin:1rem 0;padding:0}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.55rem .8rem}
.facts dt{color:var(--soft);font-size:.8rem}.facts dd{margin:0;font-size:1.25rem;font-weight:650;line-height:1.3}
.facts dd small{display:block;font-size:.8rem;font-weight:400;color:var(--soft)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem;margin:.6rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;font-weight:600;padding:.5rem .7rem;font-size:.92rem}
th,td{padding:.4rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
tr:last-child>*{border-bottom:0}
th:first-child{text-align:left}thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom;
font-size:.86rem}
tbody th{font-weight:500}.good{color:var(--good);font-weight:700}.bad{color:var(--bad);font-weight:700}
.keys th,.keys td{text-align:left;white-space:normal;overflow-wrap:anywhere;font-size:.85rem;padding:.22rem .7rem}
.keys th{width:40%;overflow-wrap:break-word}.keys td{min-width:9rem}
.heat th,.heat td{font-size:.76rem;padding:.24rem .2rem;border:0}.heat thead th{font-size:.68rem;text-align:center}
.heat tbody th{padding-left:.7rem;white-space:nowrap}.heat td{text-align:center;min-width:1.5rem;
background:color-mix(in srgb,var(--blue) calc(var(--s,0)*var(--full)),transparent)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:.2rem 1rem;align-items:start}
.grid>div{min-width:0}.panels .grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr))}
.figure{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.6rem;overflow-x:auto;
margin:.6rem 0}
.figure svg{display:block;width:100%;height:auto;max-width:36rem;margin:0 auto}
.wide svg{min-width:34rem;max-width:46rem}
.figure svg *{stroke-linejoin:round;stroke-linecap:butt}
.strip{min-width:40rem}.strip p{margin:.35rem 0 .15rem;font-size:.86rem;position:sticky;left:0;width:max-content;
max-width:min(100%,calc(100vw - 4rem))}
.pixels{display:block;width:100%;height:auto;image-rendering:pixelated}
.clip{display:block;width:100%;max-width:40rem;height:auto;margin:0 auto;image-rendering:pixelated}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;margin:.6rem 0;list-style:none;font-size:.86rem}
.legend span{display:inline-block;width:.9rem;height:.9rem;border:1px solid var(--axis);border-radius:.2rem;
margin-right:.4rem;vertical-align:-.1rem}
pre{background:var(--tint);border-radius:.6rem;padding:.8rem 1rem;overflow-x:auto;font-size:.82rem}
code{background:var(--tint);border-radius:.3rem;padding:.08rem .3rem;font-size:.9em;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--soft)}
@media(max-width:40rem){th,td{padding:.35rem .3rem;font-size:.86rem}th:first-child{padding-left:.7rem}
thead th{font-size:.8rem}tbody th{white-space:normal;min-width:5.4rem}h2{margin-top:2.2rem}
.heat th,.heat td{padding:.24rem .08rem;font-size:.7rem}.heat thead th{font-size:.62rem}.heat td{min-width:1.35rem}
.heat tbody th{min-width:0;padding:.24rem .2rem .24rem .5rem}
.facts{grid-template-columns:1fr 1fr}.facts dd{font-size:1.12rem}}
@media print{body{max-width:none}section{break-inside:avoid}}
"""


def page(title: str, parts: Sequence[str], links: Sequence[tuple[str, str]]) -> str:
    """The whole page.

    Args:
      title: of the page.
      parts: HTML, in order.
      links: anchor and name of what the page holds.
    """
    entries = "".join(f'<a href="#{escape(anchor)}">{escape(name)}</a>' for anchor, name in links)
    nav = f'<nav aria-label="parts of the page">{entries}</nav>' if len(links) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{nav}</header>\n<main>"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )
