"""What stands in a procedural street: the world of one clip, drawn from a random generator.

Coordinates in metres: x to the right, y up, z along the street; the camera starts at z = 0 and
looks along +z. Time is in frames. Nothing here knows about pixels (see `raster`).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dvsnas_jax.data.street import props

NUM_LOTS = 40
_BRICK = np.array(
    [[168, 92, 72], [196, 170, 130], [205, 200, 190], [140, 130, 125],
     [120, 70, 58], [180, 150, 145], [225, 215, 175], [110, 115, 125]], np.float64
)  # fmt: skip
# By the mood of a street: the light, and the sky above and at the horizon.
_LIGHT = np.array([[1.05, 1.02, 0.95], [0.85, 0.87, 0.9], [1.05, 0.92, 0.78], [0.62, 0.64, 0.7]])
_TOP = np.array([[95, 150, 215], [165, 172, 180], [130, 150, 190], [105, 112, 125]], np.float64)
_LOW = np.array([[185, 210, 232], [205, 208, 212], [245, 210, 165], [150, 155, 160]], np.float64)


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
    """The house fronts: row 0 left, 1 right, 2 the far end of the street."""

    start: np.ndarray  # f32 [3], coordinate where lot 0 begins
    length: np.ndarray  # f32 [3], metres per lot
    height: np.ndarray  # f32 [3, NUM_LOTS], 0 = gap
    paint: np.ndarray  # f32 [3 channels, 4 * 3 * NUM_LOTS], 0..255: the lots' walls, then shops, glass and leaves
    window: np.ndarray  # f32 [4, 3, NUM_LOTS]: width of a window cell, share of glass in x, floor height, share in y
    is_tree: np.ndarray  # bool [3, NUM_LOTS], trees instead of a house


@dataclasses.dataclass(frozen=True)
class World:
    """One street."""

    camera: Camera
    road: float  # half the width of the road
    wall: float  # distance of the house fronts from the middle
    end: float  # z of the far end
    crossing: tuple[float, float]  # z range of a crossing road (empty range = none)
    lots: Lots
    bodies: tuple[props.Body, ...]
    boxes: np.ndarray  # f64 [8, n], of the bodies: x0, x1, z0, z1, y0, y1, vx, vz at t = 0
    is_board: np.ndarray  # bool [n], flat bodies that face the camera
    palette: np.ndarray  # f32 [3, P]
    label: np.ndarray  # u8 [P]
    velocity: np.ndarray  # f32 [2, P], x and z per frame
    owner: np.ndarray  # i32 [P], number of the object
    tint: dict[str, np.ndarray]  # name -> f32 [3] colours of sky, ground and light
    fog: float  # metres over which contrast falls by e
    is_rainy: bool  # rain streaks on every frame


def _camera(rng: np.random.Generator, road: float, end: float) -> Camera:
    speed = 0.0 if rng.random() < 0.1 else rng.uniform(0.08, 0.42)
    lane = rng.choice((-1.0, 1.0)) * road * rng.uniform(0.3, 0.55)
    phase = rng.uniform(0, 2 * math.pi, 3)
    return Camera(
        focal=rng.uniform(0.78, 1.0),
        horizon=rng.uniform(0.42, 0.52),
        height=rng.uniform(1.4, 2.1),
        x=lane,
        speed=speed,
        reach=max(end - 22.0, 5.0),
        sway=(rng.uniform(0, 0.25), rng.uniform(0.05, 0.2), phase[0]),
        yaw=(rng.normal(0, 0.05), rng.uniform(0.0, 0.09), rng.uniform(0.05, 0.25), phase[1]),
        pitch=(rng.uniform(0.0, 0.012), rng.uniform(0.4, 1.4), phase[2]),
    )


def _lots(rng: np.random.Generator, light: np.ndarray) -> Lots:
    shape = (3, NUM_LOTS)
    height = rng.uniform(4.5, 9.0, (3, 1)) + rng.uniform(-1.5, 6.0, shape)
    height[:2] *= rng.random((2, NUM_LOTS)) > rng.uniform(0.1, 0.45, (2, 1))
    wall = _BRICK[rng.integers(len(_BRICK), size=shape)] * rng.uniform(0.75, 1.15, (*shape, 1))
    wall += rng.normal(0, 8, (*shape, 3))
    glass = np.array([52.0, 62, 76]) * rng.uniform(0.6, 1.9, (*shape, 1))
    shop = rng.uniform(25, 190, (*shape, 3)) * rng.uniform(0.5, 1.0, (*shape, 1))
    is_tree = np.zeros(shape, bool)
    is_tree[2] = rng.random(NUM_LOTS) < rng.choice((0.2, 0.9))
    sides = np.array([rng.uniform(0.8, 1.05), rng.uniform(0.62, 0.95), 0.85])[:, None, None]
    window = np.stack([rng.uniform(*each, shape) for each in ((1.6, 3.4), (0.35, 0.75), (2.8, 3.6), (0.4, 0.65))])
    length = np.array([rng.uniform(6, 13), rng.uniform(6, 13), rng.uniform(5, 12)])
    start = np.array([-20.0, -20.0, -length[2] * NUM_LOTS / 2]) - rng.uniform(0, 6, 3)
    leaf = np.array([70.0, 98, 48]) * rng.uniform(0.6, 1.3, (*shape, 1))
    paint = np.stack([wall * sides, shop * sides, glass, leaf]) * light  # [4, 3, NUM_LOTS, channels]
    as_f32 = [np.ascontiguousarray(a, np.float32) for a in (start, length, height, paint.reshape(-1, 3).T, window)]
    return Lots(*[*as_f32, is_tree])


def _furniture(build: props.Builder, road: float, wall: float, lots: Lots, end: float) -> None:
    """Trees, poles, signs and fences along both sides."""
    rng = build.rng
    for row, sign in ((0, -1.0), (1, 1.0)):
        curb = sign * (road + 0.45)
        spacing = rng.uniform(9, 18)
        for z in np.arange(rng.uniform(2, spacing), end - 2, spacing):
            at, tall, thick = z + rng.uniform(-1, 1), rng.uniform(4.5, 7.5), rng.uniform(0.2, 0.32)
            build.pole(curb, at, tall, thick, arm=-sign * rng.uniform(1.0, 1.8) * (rng.random() < 0.6))
        for z in np.arange(rng.uniform(4, 14), end - 2, rng.uniform(10, 24)):
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
                build.fence((x, x, z0, z0 + length), tall, style, paint)
            if along_curb and lot % 3 != 1:
                x = sign * (road + 0.15)
                build.fences(x, z0, length, 1.1, 1, paint * 0.9)
        if rng.random() < 0.15:
            z, (x0, x1) = rng.uniform(14, 30), sorted((sign * road, sign * (road - 2.2)))
            build.fence((x0, x1, z, z), 1.1, 2, np.array([225.0, 120, 60]))


def _traffic(build: props.Builder, camera: Camera, road: float, wall: float, end: float) -> None:
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
            x, z = sign * (road - rng.uniform(0.3, 1.9)), rng.uniform(5, 20)
            build.cyclist(x, z, (0.0, pace if sign == own else -pace * 0.6))


def make_world(rng: np.random.Generator) -> World:
    """Draws a street; nothing but the generator of the clip decides."""
    mood = rng.integers(4)
    light = _LIGHT[mood] * rng.uniform(0.88, 1.08)
    top, low = _TOP[mood] + rng.normal(0, 8, 3), _LOW[mood] + rng.normal(0, 6, 3)
    road = rng.uniform(3.3, 5.8)
    wall = road + rng.uniform(2.2, 4.5)
    end = rng.uniform(38, 85)
    camera = _camera(rng, road, end)
    lots = _lots(rng, light)
    start = rng.uniform(12, 30)
    crossing = (start, start + rng.uniform(5, 8)) if rng.random() < 0.35 else (1e9, 1e9)
    build = props.Builder(rng, light)
    _furniture(build, road, wall, lots, end)
    _traffic(build, camera, road, wall, end)
    tint = {
        "top": top,
        "low": low,
        "cloud": np.full(3, rng.uniform(0, 45)),
        "road": (rng.uniform(70, 125) + rng.normal(0, 4, 3)) * light,
        "pavement": (rng.uniform(120, 185) + np.array([rng.uniform(0, 18), 4, -rng.uniform(0, 14)])) * light,
        "mark": np.full(3, rng.uniform(190, 245)) * light,
    }
    return World(
        camera=camera,
        road=road,
        wall=wall,
        end=end,
        crossing=crossing,
        lots=lots,
        bodies=tuple(build.bodies),
        boxes=np.array([(*body.box, *body.move) for body in build.bodies]).T,
        is_board=np.array([not body.side and not body.end.startswith("fence") for body in build.bodies]),
        palette=np.ascontiguousarray(np.concatenate(build.palette).clip(0, 255).T, np.float32),
        label=np.array(build.label, np.uint8),
        velocity=np.ascontiguousarray(np.array(build.velocity).T, np.float32),
        owner=np.array(build.owner, np.int32),
        tint={name: np.asarray(value, np.float32) for name, value in tint.items()},
        fog=rng.uniform(60, 320),
        is_rainy=bool(rng.random() < 0.25),
    )
