"""The classes of an overlay video: names beside their colours, in a corner of every frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHARE = 30
"""Lines of text in the height of a frame."""
_SMALLEST, _TINIEST = 12, 8
"""Sizes of text, pixels: wanted at least, and where a name would not fit otherwise."""
_VEIL = 0.65
"""Weight of the black behind the text."""


class Legend:
    """Draws those of K classes that have occurred, in the order in which they did, so that none moves.

    Made of their names and colours u8 [K, 3].
    """

    def __init__(self, names: Sequence[str], colors: np.ndarray) -> None:
        self._names, self._colors = names, colors
        self._seen: list[int] = []
        self._drawn: tuple[object, np.ndarray] = (None, np.zeros((0, 0, 4), np.uint8))

    def draw(self, image: np.ndarray, *labels: np.ndarray) -> np.ndarray:
        """A frame u8 [H, W, 3] with the legend over its lower left corner, for labels u8 of any shape."""
        counts = sum(np.bincount(each.ravel(), minlength=256)[: len(self._names)] for each in labels)
        self._seen += [number for number in np.flatnonzero(counts).tolist() if number not in self._seen]
        key = (image.shape, len(self._seen))
        if self._drawn[0] != key:
            self._drawn = key, self._box(image.shape[0], image.shape[1])
        box = self._drawn[1]
        result = image.copy()
        corner = result[len(result) - len(box) :, : box.shape[1]]
        weight = box[..., 3:].astype(np.float32) / 255
        corner[:] = (box[..., :3] * weight + corner * (1 - weight)).round().astype(np.uint8)
        return result

    def _box(self, height: int, width: int) -> np.ndarray:
        """The legend as u8 [h, w, 4], no larger than the frame."""
        for size in range(max(_SMALLEST, height // _SHARE), _TINIEST - 1, -1):
            font, line = ImageFont.load_default(size), size * 4 // 3
            rows, is_narrow = self._rows(font, size, width)
            if is_narrow and len(rows) * line + size // 2 <= height:
                break
        used = max((x + need for row in rows for x, need, _ in row), default=0)
        shape = (min(used, width), min(len(rows) * line + size // 2, height))
        box = Image.new("RGBA", shape, (0, 0, 0, round(255 * _VEIL)))
        draw, half = ImageDraw.Draw(box), size * 2 // 5
        for index, row in enumerate(rows):
            middle = size // 4 + index * line + line // 2
            for x, _, number in row:
                corners = (x, middle - half, x + 2 * half, middle + half)
                draw.rectangle(corners, fill=(*self._colors[number].tolist(), 255), outline=(160, 160, 160, 255))
                place = (x + 2 * half + size // 3, middle)
                draw.text(place, self._names[number], fill=(255, 255, 255, 255), font=font, anchor="lm")
        return np.asarray(box)

    def _rows(self, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: int, width: int) -> tuple[list, bool]:
        """Lines of (place, width, class), and whether each entry fits into the width."""
        rows: list[list[tuple[int, int, int]]] = [[]]
        x, is_narrow = size // 2, True
        for number in self._seen:
            need = size * 5 // 3 + int(font.getlength(self._names[number]))
            if rows[-1] and x + need > width:
                rows.append([])
                x = size // 2
            is_narrow &= x + need <= width
            rows[-1].append((x, need, number))
            x += need
        return rows, is_narrow
