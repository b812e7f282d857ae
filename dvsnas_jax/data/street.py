"""What stands in a procedural street: the world of one clip, drawn from a random generator.

Coordinates in metres: x to the right, y up, z along the street; the camera starts at z = 0 and
looks along +z. Time is in frames. Nothing here knows about pixels (see `raster`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from dvsnas_jax.data import classes
from dvsnas_jax.data import sprites

NUM_LOTS = 40
SKY, ROAD, PAVEMENT, BUILDING, FAR_TREES = range(5)
"""Palette entries of the surfaces that are no objects; objects come after."""
NUM_SURFACES = 5

_ID = {name: number for number, name in enumerate(classes.CAMVID.names)}
_FENCES = ("fence_planks", "fence_bars", "fence_panel")
_SIGNS = ("sign_disc", "sign_triangle", "sign_board", "traffic_light")


class Body(NamedTuple):
    """A box (or a flat upright rectangle) that moves at a constant velocity, metres and frames."""

    x0: float
    x1: float
    z0: float
    z1: float
    y0: float
    y1: float
    vx: float
    vz: float
    end: str  # sprite of the face across the street; "" = none
    side: str  # sprite of the faces along the street; "" = none
    base: int  # palette entry of part 0
    num_phases: int  # > 1: `end` is animated
    shadow: float  # 0..1, how much the ground below darkens


@dataclasses.dataclass(frozen=True)
class Camera:
    """How the camera moves; every value is a function of the frame number alone."""

    focal: float  # in image widths
    horizon: float  # in image heights from the top
    height: float
    x: float
    speed: float  # metres per frame at t = 0
    reach: float  # metres after which it stands still
    sway: tuple[float, float, float]  # amplitude, angular frequency, phase
    yaw: tuple[float, float, float, float]  # mean, amplitude, angular frequency, phase
    pitch: tuple[float, float, float]  # amplitude in image heights, angular frequency, phase


@dataclasses.dataclass(frozen=True)
class Lots:
    """The house fronts: row 0 left, 1 right, 2 the far end of the street.

    Attributes:
      start: f32 [3], coordinate where lot 0 begins.
      length: f32 [3], metres per lot.
      height: f32 [3, NUM_LOTS], 0 = gap.
      wall: f32 [3, NUM_LOTS, 3], glass: likewise, shop: likewise (colours, 0..255).
      window: f32 [3, NUM_LOTS, 4]: width of a window cell, share of glass in x, floor height, share in y.
      is_tree: bool [3, NUM_LOTS], trees instead of a house.
    """

    start: np.ndarray
    length: np.ndarray
    height: np.ndarray
    wall: np.ndarray
    glass: np.ndarray
    shop: np.ndarray
    window: np.ndarray
    is_tree: np.ndarray


@dataclasses.dataclass(frozen=True)
class World:
    """One street.

    Attributes:
      camera: its motion.
      road: half the width of the road; wall: distance of the house fronts from the middle.
      end: z of the far end.
      crossing: z range of a crossing road (empty range = none).
      lots: the houses.
      bodies: the objects.
      palette: f32 [P, 3]; label: u8 [P]; velocity: f32 [P, 2] (x, z per frame); owner: i32 [P], number of the object.
      tint: name -> f32 [3] colours of sky, ground and light.
      fog: metres over which contrast falls by e.
      is_rainy: rain streaks on every frame.
    """

    camera: Camera
    road: float
    wall: float
    end: float
    crossing: tuple[float, float]
    lots: Lots
    bodies: tuple[Body, ...]
    palette: np.ndarray
    label: np.ndarray
    velocity: np.ndarray
    owner: np.ndarray
    tint: dict[str, np.ndarray]
    fog: float
    is_rainy: bool


class _Builder:
    """Collects bodies and their palettes."""

    def __init__(self, rng: np.random.Generator, light: np.ndarray):
        self.rng = rng
        self.light = light
        self.bodies: list[Body] = []
        ground = (_ID["sky"], _ID["road"], _ID["pavement"], _ID["building"], _ID["tree"])
        self.palette = [np.zeros((NUM_SURFACES, 3))]
        self.label = list(ground)
        self.velocity = [(0.0, 0.0)] * NUM_SURFACES
        self.owner = list(range(NUM_SURFACES))

    def color(self, low: float, high: float, spread: float = 20.0) -> np.ndarray:
        """A greyish colour of random brightness."""
        return self.rng.uniform(low, high) + self.rng.normal(0, spread, 3)

    def vivid(self) -> np.ndarray:
        """A colour of random hue."""
        return np.clip(self.rng.uniform(10, 240, 3), 0, 255)

    def add(self, kind: str, box: tuple[float, ...], colors: list, *, end: str = "", side: str = "",
            move: tuple[float, float] = (0.0, 0.0), num_phases: int = 1, shadow: float = 0.0) -> None:
        """Adds a body of class `kind`: box = (x0, x1, z0, z1, y0, y1), colors of parts 1, 2, ..."""
        base = len(self.label) - 1
        self.bodies.append(Body(*box, *move, end, side, base, num_phases, shadow))
        self.palette.append(np.asarray(colors, np.float64) * self.light)
        self.label += [_ID[kind]] * len(colors)
        self.velocity += [move] * len(colors)
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
        self.add("car", (x - width / 2, x + width / 2, z, z + length, 0.0, height), colors,
                 end=f"{kind}_front" if is_oncoming else f"{kind}_rear",
                 side=f"{kind}_flank" if is_oncoming else f"{kind}_side", move=(0.0, speed), shadow=0.6)

    def person(self, x: float, z: float, move: tuple[float, float]) -> None:
        """A pedestrian who stands at (x, z) at t = 0."""
        rng = self.rng
        coat, skin = (self.vivid() if rng.random() < 0.6 else self.color(15, 120)), rng.uniform(0.55, 1.0)
        trousers = self.color(15, 110, 14)
        hair = np.array([60.0, 40, 25]) * rng.uniform(0.3, 2.2)
        colors = [np.array([225.0, 175, 145]) * skin, coat, trousers, hair, [25, 22, 20], coat * 0.8]
        tall = rng.uniform(1.55, 1.9)
        self.add("pedestrian", (x - tall * 0.25, x + tall * 0.25, z, z, 0.0, tall), colors, end="person_",
                 move=move, num_phases=sprites.NUM_PHASES if move != (0.0, 0.0) else 1, shadow=0.35)

    def cyclist(self, x: float, z: float, move: tuple[float, float]) -> None:
        """A cyclist, seen from the side when the motion is across the street."""
        rng = self.rng
        shirt = self.vivid()
        colors = [[220, 170, 140], shirt, self.color(15, 90, 12), self.vivid(), [20, 20, 20], shirt * 0.8,
                  self.vivid(), [95, 95, 95]]
        is_side = abs(move[0]) > abs(move[1])
        half, tall = (0.95, 1.85) if is_side else (0.52, 1.8)
        end = ("cyclist_right" if move[0] > 0 else "cyclist_left") if is_side else "cyclist_end"
        self.add("bicyclist", (x - half, x + half, z, z, 0.0, tall), colors, end=end, move=move,
                 shadow=0.3 + 0.1 * rng.random())

    def tree(self, x: float, z: float) -> None:
        """A tree of 4 to 8 metres."""
        rng = self.rng
        leaf = np.array([rng.uniform(50, 130), rng.uniform(95, 150), rng.uniform(25, 70)])
        if rng.random() < 0.15:
            leaf = np.array([170.0, 110, 45]) * rng.uniform(0.8, 1.1)
        colors = [np.array([88.0, 68, 50]) * rng.uniform(0.6, 1.2), leaf * 0.42, leaf * 0.62, leaf * 0.85, leaf * 1.12]
        tall = rng.uniform(4.0, 8.0)
        half = tall * rng.uniform(0.36, 0.5)
        self.add("tree", (x - half, x + half, z, z, 0.0, tall), colors,
                 end=f"tree_{rng.integers(sprites.NUM_TREES)}", shadow=0.5)

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
            colors = [[28, 30, 28]] * 3 + [np.array(c) * (1.0 if i == lamp else 0.25)
                                           for i, c in enumerate(([255, 40, 30], [255, 190, 40], [60, 240, 110]))]
        self.add("sign", (x - half, x + half, z, z, low, low + tall), colors, end=name)

    def fence(self, box: tuple[float, float, float, float], tall: float, style: int, paint: np.ndarray) -> None:
        """A stretch of fence from (x0, z0) to (x1, z1), along or across the street: box = (x0, x1, z0, z1)."""
        colors = [paint, paint * 0.62, paint * 0.8, paint * 0.3 + 12]
        is_across = box[1] - box[0] > 1e-6
        self.add("fence", (*box, 0.0, tall), colors, end=_FENCES[style] if is_across else "",
                 side="" if is_across else _FENCES[style])


def _camera(rng: np.random.Generator, road: float, end: float) -> Camera:
    speed = 0.0 if rng.random() < 0.1 else rng.uniform(0.08, 0.42)
    lane = rng.choice((-1.0, 1.0)) * road * rng.uniform(0.3, 0.55)
    phase = rng.uniform(0, 2 * math.pi, 3)
    return Camera(
        focal=rng.uniform(0.78, 1.0), horizon=rng.uniform(0.42, 0.52), height=rng.uniform(1.4, 2.1), x=lane, speed=speed,
        reach=max(end - 22.0, 5.0), sway=(rng.uniform(0, 0.25), rng.uniform(0.05, 0.2), phase[0]),
        yaw=(rng.normal(0, 0.05), rng.uniform(0.0, 0.09), rng.uniform(0.05, 0.25), phase[1]),
        pitch=(rng.uniform(0.0, 0.012), rng.uniform(0.4, 1.4), phase[2]))


def _lots(rng: np.random.Generator, light: np.ndarray) -> Lots:
    shape = (3, NUM_LOTS)
    height = rng.uniform(4.5, 9.0, (3, 1)) + rng.uniform(-1.5, 6.0, shape)
    height[:2] *= rng.random((2, NUM_LOTS)) > rng.uniform(0.1, 0.45, (2, 1))
    brick = np.array([[168, 92, 72], [196, 170, 130], [205, 200, 190], [140, 130, 125], [120, 70, 58], [180, 150, 145],
                      [225, 215, 175], [110, 115, 125]], np.float64)
    wall = brick[rng.integers(len(brick), size=shape)] * rng.uniform(0.75, 1.15, (*shape, 1)) + rng.normal(0, 8, (*shape, 3))
    glass = np.array([52.0, 62, 76]) * rng.uniform(0.6, 1.9, (*shape, 1))
    shop = rng.uniform(25, 190, (*shape, 3)) * rng.uniform(0.5, 1.0, (*shape, 1))
    is_tree = np.zeros(shape, bool)
    is_tree[2] = rng.random(NUM_LOTS) < rng.choice((0.2, 0.9))
    sides = np.array([rng.uniform(0.8, 1.05), rng.uniform(0.62, 0.95), 0.85])[:, None, None]
    window = np.stack([rng.uniform(1.6, 3.4, shape), rng.uniform(0.35, 0.75, shape),
                       rng.uniform(2.8, 3.6, shape), rng.uniform(0.4, 0.65, shape)], -1)
    length = np.array([rng.uniform(6, 13), rng.uniform(6, 13), rng.uniform(5, 12)])
    start = np.array([-20.0, -20.0, -length[2] * NUM_LOTS / 2]) - rng.uniform(0, 6, 3)
    as_f32 = [np.asarray(a, np.float32) for a in (start, length, height, wall * sides * light, glass * light, shop * sides * light, window)]
    return Lots(*as_f32, is_tree)


def _furniture(build: _Builder, road: float, wall: float, lots: Lots, end: float) -> None:
    """Trees, poles, signs and fences along both sides."""
    rng = build.rng
    for row, sign in ((0, -1.0), (1, 1.0)):
        curb = sign * (road + 0.45)
        spacing = rng.uniform(7, 15)
        for z in np.arange(rng.uniform(2, spacing), end - 2, spacing):
            build.pole(curb, z + rng.uniform(-1, 1), rng.uniform(4.5, 7.5), rng.uniform(0.2, 0.32),
                       arm=-sign * rng.uniform(1.0, 1.8) * (rng.random() < 0.6))
        for z in np.arange(rng.uniform(4, 14), end - 2, rng.uniform(9, 20)):
            build.sign(curb + sign * rng.uniform(0.0, 0.5), z)
        if rng.random() < 0.75:
            spacing = rng.uniform(6, 14)
            offset = sign * rng.uniform(road + 0.8, wall - 0.3)
            for z in np.arange(rng.uniform(2, spacing), end - 3, spacing):
                build.tree(offset, z + rng.uniform(-1.5, 1.5))
        style, tall = int(rng.integers(3)), rng.uniform(1.0, 1.9)
        paint = build.color(60, 210, 18)
        along_front, along_curb = rng.random() < 0.45, rng.random() < 0.3
        first, length = float(lots.start[row]), float(lots.length[row])
        for lot in range(NUM_LOTS):
            z0, is_gap = first + lot * length, lots.height[row, lot] == 0
            if z0 > end or z0 + length < 0.5:
                continue
            if is_gap and rng.random() < 0.5:
                build.tree(sign * (wall + rng.uniform(2, 4)), z0 + length / 2)
            if rng.random() < (0.85 if is_gap else 0.8 * along_front):
                x = sign * (wall - (0.0 if is_gap else 0.25))
                for part in range(3):
                    build.fence((x, x, z0 + length * part / 3, z0 + length * (part + 1) / 3), tall, style, paint)
            if along_curb and lot % 3 != 1:
                x = sign * (road + 0.15)
                for part in range(3):
                    build.fence((x, x, z0 + length * part / 3, z0 + length * (part + 1) / 3), 1.1, 1, paint * 0.9)
        if rng.random() < 0.15:
            z = rng.uniform(14, 30)
            build.fence((min(sign * road, sign * (road - 2.2)), max(sign * road, sign * (road - 2.2)), z, z), 1.1, 2,
                        np.array([225.0, 120, 60]))


def _traffic(build: _Builder, camera: Camera, road: float, wall: float, end: float) -> None:
    """Cars, pedestrians and cyclists, parked and moving."""
    rng = build.rng
    own = math.copysign(1.0, camera.x)
    for sign in (-1.0, 1.0):
        share = rng.choice((0.0, 0.35, 0.7))
        for z in np.arange(rng.uniform(2, 8), end - 8, 6.2):
            if rng.random() < share:
                build.car(sign * (road - 0.75), z, 0.0, is_oncoming=sign != own)
    if rng.random() < 0.6:
        build.car(camera.x + rng.uniform(-0.3, 0.3), rng.uniform(9, 28), camera.speed * rng.uniform(0.7, 1.35), False)
    for _ in range(rng.integers(0, 3)):
        build.car(-camera.x * rng.uniform(0.6, 1.0), rng.uniform(8, end - 5), -rng.uniform(0.1, 0.45), True)
    for _ in range(rng.integers(5, 12)):
        x = rng.choice((-1.0, 1.0)) * rng.uniform(road + 0.5, wall - 0.4)
        pace = 0.0 if rng.random() < 0.25 else rng.choice((-1.0, 1.0)) * rng.uniform(0.05, 0.11)
        build.person(x, rng.uniform(4, 26), (0.0, pace))
    for _ in range(rng.integers(0, 4)):
        pace = rng.choice((-1.0, 1.0)) * rng.uniform(0.05, 0.12)
        build.person(rng.uniform(-road, road), rng.uniform(7, 26), (pace, 0.0))
    for _ in range(rng.integers(1, 5)):
        sign = rng.choice((-1.0, 1.0))
        if rng.random() < 0.4:
            build.cyclist(rng.uniform(-road, road), rng.uniform(6, 20), (sign * rng.uniform(0.1, 0.25), 0.0))
        else:
            pace = camera.speed * 0.5 + rng.uniform(0.0, 0.2)
            build.cyclist(sign * (road - rng.uniform(0.3, 1.9)), rng.uniform(5, 20), (0.0, pace if sign == own else -pace * 0.6))


def make_world(rng: np.random.Generator) -> World:
    """Draws a street.

    Args:
      rng: the generator of the clip; nothing else decides.
    """
    mood = rng.integers(4)
    light = np.array([[1.05, 1.02, 0.95], [0.85, 0.87, 0.9], [1.05, 0.92, 0.78], [0.62, 0.64, 0.7]])[mood] * rng.uniform(0.88, 1.08)
    top = np.array([[95, 150, 215], [165, 172, 180], [130, 150, 190], [105, 112, 125]], np.float64)[mood] + rng.normal(0, 8, 3)
    low = np.array([[185, 210, 232], [205, 208, 212], [245, 210, 165], [150, 155, 160]], np.float64)[mood] + rng.normal(0, 6, 3)
    road = rng.uniform(3.3, 5.8)
    wall = road + rng.uniform(2.2, 4.5)
    end = rng.uniform(38, 85)
    camera = _camera(rng, road, end)
    lots = _lots(rng, light)
    start = rng.uniform(12, 30)
    crossing = (start, start + rng.uniform(5, 8)) if rng.random() < 0.35 else (1e9, 1e9)
    build = _Builder(rng, light)
    _furniture(build, road, wall, lots, end)
    _traffic(build, camera, road, wall, end)
    tint = {
        "top": top, "low": low, "light": light, "cloud": np.full(3, rng.uniform(0, 45)),
        "road": (rng.uniform(70, 125) + rng.normal(0, 4, 3)) * light,
        "pavement": (rng.uniform(120, 185) + np.array([rng.uniform(0, 18), 4, -rng.uniform(0, 14)])) * light,
        "mark": np.full(3, rng.uniform(190, 245)) * light, "leaf": np.array([70.0, 98, 48]) * rng.uniform(0.7, 1.2) * light,
    }
    return World(
        camera=camera, road=road, wall=wall, end=end, crossing=crossing, lots=lots, bodies=tuple(build.bodies),
        palette=np.concatenate(build.palette).clip(0, 255).astype(np.float32), label=np.array(build.label, np.uint8),
        velocity=np.array(build.velocity, np.float32), owner=np.array(build.owner, np.int32),
        tint={name: np.asarray(value, np.float32) for name, value in tint.items()},
        fog=rng.uniform(60, 320), is_rainy=bool(rng.random() < 0.25))
