"""The objects of a procedural street: cars, people, trees, poles, signs, fences, with their colours.

Coordinates as in `scene`. Each object adds entries to one palette; an entry knows its colour, its class, its velocity
and its object.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dvsnas_jax.data.datasets import classes
from dvsnas_jax.data.street import sprites

SKY, ROAD, PAVEMENT, BUILDING, FAR_TREES = range(5)
"""Palette entries of the surfaces that are no objects; objects come after."""
NUM_SURFACES = 5

_ID = {name: number for number, name in enumerate(classes.CAMVID.names)}
_FENCES = ("fence_planks", "fence_bars", "fence_panel")
_SIGNS = ("sign_disc", "sign_triangle", "sign_board", "traffic_light")


class Body(NamedTuple):
    """A box (or a flat upright rectangle) that moves at a constant velocity, metres and frames."""

    box: tuple[float, float, float, float, float, float]  # x0, x1, z0, z1, y0, y1
    base: int  # palette entry of part 0
    move: tuple[float, float] = (0.0, 0.0)  # in x and z, a frame
    end: str = ""  # sprite of the face across the street
    side: str = ""  # sprite of the faces along the street
    num_phases: int = 0  # > 0: `end` is followed by the number of a phase
    shadow: float = 0.0  # 0..1, how much the ground below darkens


class Builder:
    """Collects bodies and their palettes."""

    def __init__(self, rng: np.random.Generator, light: np.ndarray):
        self.rng, self.light = rng, light
        self.bodies: list[Body] = []
        self.palette = [np.zeros((NUM_SURFACES, 3))]
        self.label = [_ID[name] for name in ("sky", "road", "pavement", "building", "tree")]
        self.velocity = [(0.0, 0.0)] * NUM_SURFACES
        self.owner = list(range(NUM_SURFACES))

    def color(self, low: float, high: float, spread: float = 20.0) -> np.ndarray:
        """A greyish colour of random brightness."""
        return self.rng.uniform(low, high) + self.rng.normal(0, spread, 3)

    def vivid(self) -> np.ndarray:
        """A colour of random hue."""
        return np.clip(self.rng.uniform(10, 240, 3), 0, 255)

    def add(self, kind: str, box: tuple[float, float, float, float, float, float], colors: list, **more: Any) -> None:
        """Adds a body of class `kind` with the colours of parts 1, 2, ...; `more` are fields of `Body`."""
        body = Body(box, len(self.label) - 1, **more)
        self.bodies.append(body)
        self.palette.append(np.asarray(colors, np.float64) * self.light)
        self.label += [_ID[kind]] * len(colors)
        self.velocity += [body.move] * len(colors)
        self.owner += [NUM_SURFACES + len(self.bodies)] * len(colors)

    def car(self, x: float, z: float, speed: float, is_oncoming: bool) -> None:
        """A car or a van whose middle is at x and whose near end is at z."""
        rng = self.rng
        is_van = rng.random() < 0.25
        kind = "van" if is_van else "car"
        width, length, height = (2.1, 5.4, 2.5) if is_van else (1.85, 4.3, rng.uniform(1.42, 1.65))
        paint = self.vivid() if rng.random() < 0.5 else self.color(20, 235, 6)
        glass = np.array([40.0, 50, 58]) + rng.uniform(0, 60)
        lights = [235, 235, 215] if is_oncoming else [200, 25, 20]
        colors = [paint, glass, [22, 22, 24], paint * 0.66, [150, 150, 155], paint * 0.8, lights]
        end, side = ("front", "flank") if is_oncoming else ("rear", "side")
        box = (x - width / 2, x + width / 2, z, z + length, 0.0, height)
        self.add("car", box, colors, end=f"{kind}_{end}", side=f"{kind}_{side}", move=(0.0, speed), shadow=0.6)

    def person(self, x: float, z: float, move: tuple[float, float]) -> None:
        """A pedestrian who stands at (x, z) at t = 0."""
        rng = self.rng
        coat, skin = (self.vivid() if rng.random() < 0.6 else self.color(15, 120)), rng.uniform(0.55, 1.0)
        trousers = self.color(15, 110, 14)
        hair = np.array([60.0, 40, 25]) * rng.uniform(0.3, 2.2)
        colors = [np.array([225.0, 175, 145]) * skin, coat, trousers, hair, [25, 22, 20], coat * 0.8]
        tall, phases = rng.uniform(1.55, 1.9), sprites.NUM_PHASES if move != (0.0, 0.0) else 1
        box = (x - tall * 0.25, x + tall * 0.25, z, z, 0.0, tall)
        self.add("pedestrian", box, colors, end="person_", move=move, num_phases=phases, shadow=0.35)

    def cyclist(self, x: float, z: float, move: tuple[float, float]) -> None:
        """A cyclist, seen from the side when the motion is across the street."""
        rng = self.rng
        shirt = self.vivid()
        trousers, helmet, frame = self.color(15, 90, 12), self.vivid(), self.vivid()
        colors = [[220, 170, 140], shirt, trousers, helmet, [20, 20, 20], shirt * 0.8, frame, [95, 95, 95]]
        is_side = abs(move[0]) > abs(move[1])
        half, tall = (0.95, 1.85) if is_side else (0.52, 1.8)
        end = ("cyclist_right" if move[0] > 0 else "cyclist_left") if is_side else "cyclist_end"
        box = (x - half, x + half, z, z, 0.0, tall)
        self.add("bicyclist", box, colors, end=end, move=move, shadow=0.3 + 0.1 * rng.random())

    def tree(self, x: float, z: float) -> None:
        """A tree of 4 to 8 metres."""
        rng = self.rng
        leaf = np.array([rng.uniform(50, 130), rng.uniform(95, 150), rng.uniform(25, 70)])
        if rng.random() < 0.15:
            leaf = np.array([170.0, 110, 45]) * rng.uniform(0.8, 1.1)
        colors = [np.array([88.0, 68, 50]) * rng.uniform(0.6, 1.2), leaf * 0.42, leaf * 0.62, leaf * 0.85, leaf * 1.12]
        tall = rng.uniform(4.0, 8.0)
        half = tall * rng.uniform(0.36, 0.5)
        end = f"tree_{rng.integers(sprites.NUM_TREES)}"
        self.add("tree", (x - half, x + half, z, z, 0.0, tall), colors, end=end, shadow=0.5)

    def pole(self, x: float, z: float, tall: float, thick: float, arm: float = 0.0) -> None:
        """A pole; `arm` metres of lamp arm at its top."""
        tone = self.color(60, 170, 8)
        colors = [tone * 1.25, tone, tone * 0.6]
        self.add("pole", (x - thick / 2, x + thick / 2, z, z, 0.0, tall), colors, end="pole")
        if arm:
            box = (min(x, x + arm), max(x, x + arm), z, z, tall - 0.22, tall)
            self.add("pole", box, colors, end="pole")

    def sign(self, x: float, z: float) -> None:
        """A sign or a traffic light on its pole."""
        rng = self.rng
        name = _SIGNS[rng.choice(4, p=(0.3, 0.2, 0.28, 0.22))]
        half, tall = (0.26, 1.25) if name == "traffic_light" else (rng.uniform(0.42, 0.6), rng.uniform(0.85, 1.1))
        if name == "sign_board":
            half, tall = rng.uniform(0.5, 1.1), rng.uniform(0.7, 1.2)
        low = rng.uniform(1.9, 2.5)
        self.pole(x, z + 0.02, low + tall * 0.6, 0.15)
        fill = [[235, 235, 235], [25, 70, 175], [20, 120, 70], [235, 200, 40]][rng.integers(4)]
        symbol = [20, 20, 20] if sum(fill) > 420 else [240, 240, 240]
        colors = [[205, 25, 30], [245, 240, 235] if name != "sign_board" else fill, symbol]
        if name == "sign_board":
            colors[0] = [240, 240, 240]
        if name == "traffic_light":
            lamp = rng.integers(3)
            colors = [[28, 30, 28]] * 3
            for i, (r, g, b) in enumerate(((255, 40, 30), (255, 190, 40), (60, 240, 110))):
                colors.append([r, g, b] if i == lamp else [r // 4, g // 4, b // 4])
        self.add("sign", (x - half, x + half, z, z, low, low + tall), colors, end=name)

    def fence(self, box: tuple[float, float, float, float], tall: float, style: int, paint: np.ndarray) -> None:
        """A stretch of fence from (x0, z0) to (x1, z1), along or across the street: box = (x0, x1, z0, z1)."""
        colors = [paint, paint * 0.62, paint * 0.8, paint * 0.3 + 12]
        is_across = box[1] - box[0] > 1e-6
        self.add("fence", (*box, 0.0, tall), colors, **{"end" if is_across else "side": _FENCES[style]})

    def fences(self, x: float, z: float, length: float, tall: float, style: int, paint: np.ndarray) -> None:
        """A fence along the street from z on, in pieces of about 3 m that are painted in their own order."""
        pieces = max(round(length / 3), 1)
        part = length / pieces
        for start in z + part * np.arange(pieces):
            self.fence((x, x, start, start + part), tall, style, paint)
