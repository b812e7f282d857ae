"""Draws one frame of a procedural street: colours, palette entries and depth per pixel.

The camera turns only about the vertical axis (pitch shifts the image), so every upright plane has
one depth per image column and the ground one depth per image row; drawing is whole-array work.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dvsnas_jax.data import sprites
from dvsnas_jax.data import street

NEAR = 0.35
"""Metres in front of the camera where everything is cut off."""
FAR = 5000.0
"""Depth of the sky, metres."""
_MASK = 127


@dataclasses.dataclass(frozen=True)
class View:
    """The camera at one time. Pixel centres are at +0.5.

    Attributes:
      x: z: height: position, metres.
      cos: sin: of the yaw (positive turns right).
      focal: pixels.
      cx: cy: principal point, pixels.
      dx: dz: f32 [W], direction of the ray of each column, with depth 1 along the optical axis.
      row: f32 [H], pixel centres minus cy.
    """

    x: float
    z: float
    height: float
    cos: float
    sin: float
    focal: float
    cx: float
    cy: float
    dx: np.ndarray
    dz: np.ndarray
    row: np.ndarray


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One frame.

    Attributes:
      view: the camera.
      color: f32 [H, W, 3], 0..255.
      entry: i32 [H, W], palette entry.
      depth: f32 [H, W], metres along the optical axis.
    """

    view: View
    color: np.ndarray
    entry: np.ndarray
    depth: np.ndarray


def view_at(camera: street.Camera, frame: int, height: int, width: int) -> View:
    """The camera of a clip at a frame, for images of height x width pixels."""
    amplitude, rate, phase = camera.sway
    x = camera.x + amplitude * math.sin(rate * frame + phase)
    z = camera.reach * (1.0 - math.exp(-camera.speed * frame / camera.reach))
    mean, amplitude, rate, phase = camera.yaw
    yaw = mean + amplitude * math.sin(rate * frame + phase)
    amplitude, rate, phase = camera.pitch
    cy = height * (camera.horizon + amplitude * math.sin(rate * frame + phase))
    focal, cx = camera.focal * width, width / 2
    ray = (np.arange(width, dtype=np.float32) + 0.5 - cx) / focal
    cos, sin = math.cos(yaw), math.sin(yaw)
    row = (np.arange(height) + 0.5 - cy).astype(np.float32)
    return View(x=x, z=z, height=camera.height, cos=cos, sin=sin, focal=focal, cx=cx, cy=cy,
                dx=(sin + cos * ray).astype(np.float32), dz=(cos - sin * ray).astype(np.float32), row=row)


def _sample_noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The tiling texture at integer places a, b (broadcast)."""
    return sprites.noise().take(((a.astype(np.int32) & _MASK) << 7) + (b.astype(np.int32) & _MASK))


def _sky(view: View, world: street.World, color: np.ndarray, bottom: int) -> None:
    """Fills the rows above `bottom`: a gradient with clouds."""
    tint = world.tint
    mix = np.clip(-view.row[:bottom, None] / view.focal * 2.4, 0, 1)
    flat = tint["low"] + mix * (tint["top"] - tint["low"])  # [rows, 3]
    high = np.maximum(-view.row[:bottom, None] / view.focal, 0.02)
    cloud = _sample_noise(np.broadcast_to(18.0 / (high + 0.18), (bottom, 1)), view.dx / view.dz * 60.0 + 500)
    color[:bottom] = flat[:, None, :] + cloud[:, :, None] * tint["cloud"]


def _ground(view: View, world: street.World, drawing: Drawing, top: int) -> None:
    """Fills the rows from `top` down: road with markings, pavement, crossing road."""
    tint = world.tint
    depth = view.height * view.focal / view.row[top:, None]  # [rows, 1]
    x, z = view.x + depth * view.dx, view.z + depth * view.dz
    away = np.abs(x)
    crossing = (z > world.crossing[0]) & (z < world.crossing[1])
    is_road = (away < world.road) | crossing
    grain = _sample_noise(x * 9.0 + 4096, z * 5.0 + 4096) + 0.6 * _sample_noise(x * 1.3 + 4096, z * 0.7 + 4096)
    fade = 0.2 / (1.0 + depth / 9.0)
    shade = 1.0 + grain * fade
    thick = 0.07 + depth * 0.0045
    tiles = ~is_road & (depth < 9) & (((z % 1.1) < 0.06) | ((x % 1.1) < 0.05))
    shade[tiles] *= 0.8
    curb = (np.abs(away - world.road - 0.08) < 0.08 + thick * 0.4) & ~crossing
    lane = (np.abs(away - world.road + 0.45) < thick * 0.7) | ((away < thick) & ((z % 5.0) < 2.4))
    zebra = (z > world.crossing[0] - 3.4) & (z < world.crossing[0] - 0.8) & ((x % 1.1) < 0.55) & (away < world.road)
    marks = (lane & is_road & ~crossing) | zebra
    color = np.where(is_road[:, :, None], tint["road"], tint["pavement"])
    color[marks] = tint["mark"]
    shade[curb] *= 1.18
    drawing.color[top:] = color * shade[:, :, None]
    drawing.entry[top:] = np.where(is_road, street.ROAD, street.PAVEMENT)
    drawing.depth[top:] = depth


def _shadow(view: View, body: street.Body, frame: int, drawing: Drawing) -> None:
    """Darkens the ground below a body."""
    x0, x1 = body.x0 + body.vx * frame, body.x1 + body.vx * frame
    z0, z1 = body.z0 + body.vz * frame, body.z1 + body.vz * frame
    grow = 0.12 * (x1 - x0)
    near, far = max(z0 - grow - 0.15 - view.z, 1.0), z1 + grow + 0.25 - view.z
    if far <= near:
        return
    top = view.cy + view.focal * view.height / far
    bottom = view.cy + view.focal * view.height / near
    r0, r1 = max(math.ceil(top - 0.5), 0), min(math.ceil(bottom - 0.5), len(view.row))
    if r1 <= r0 or r0 <= view.cy:
        return
    depth = view.height * view.focal / view.row[r0:r1, None]
    x = view.x + depth * view.dx
    inside = (x > x0 - grow) & (x < x1 + grow)
    part = drawing.color[r0:r1]
    part *= (1.0 - body.shadow * inside)[:, :, None]


def _houses(view: View, world: street.World, drawing: Drawing) -> None:
    """House fronts of both sides, the flanks seen in gaps, and the far end of the street."""
    lots, width = world.lots, len(view.dx)
    side = (view.dx > 0).astype(np.int32)
    steep = np.where(np.abs(view.dx) < 1e-4, 1e-4, np.abs(view.dx))
    wall_t = np.where(side == 1, world.wall - view.x, world.wall + view.x) / steep
    end_t = (world.end - view.z) / view.dz
    z = view.z + wall_t * view.dz
    lot = np.floor((z - lots.start[side]) / lots.length[side]).astype(np.int32).clip(0, street.NUM_LOTS - 3)
    far_x = view.x + end_t * view.dx
    far_lot = np.floor((far_x - lots.start[2]) / lots.length[2]).astype(np.int32).clip(0, street.NUM_LOTS - 1)
    layers = [(end_t, np.full(width, 2), far_lot, far_x)]
    for ahead in (2, 1):
        start = lots.start[side] + (lot + ahead) * lots.length[side]
        t = (start - view.z) / view.dz
        t = np.where((start < world.end) & (t > NEAR) & (wall_t < end_t), t, 0)
        layers.append((t, side, lot + ahead, view.x + t * view.dx))
    layers.append((np.where((z < world.end) & (wall_t > NEAR), wall_t, 0), side, lot, z))
    row = view.row[:, None]
    chosen = np.full(drawing.entry.shape, -1, np.int32)
    for number, (t, kind, index, _) in enumerate(layers):
        tall = np.where(t > 0, lots.height[kind, index], 0)
        inverse = view.focal / np.maximum(t, NEAR)
        covers = (row >= (view.height - tall) * inverse) & (row < view.height * inverse) & (tall > 0)
        chosen[covers] = number
    rows, cols = np.nonzero(chosen >= 0)
    number = chosen[rows, cols]
    t, kind, index, along = (np.stack([np.broadcast_to(layer[i], (width,)) for layer in layers])[number, cols] for i in range(4))
    _paint_houses(view, world, drawing, rows, cols, (t, kind, index, along), number)


def _paint_houses(view: View, world: street.World, drawing: Drawing, rows: np.ndarray, cols: np.ndarray,
                  hit: tuple[np.ndarray, ...], number: np.ndarray) -> None:
    """Colours the pixels [n] of houses: hit = depth, row and column of the lot tables, metres along the wall."""
    lots = world.lots
    t, kind, index, along = hit
    place = kind * street.NUM_LOTS + index
    y = view.height - t * view.row[rows] / view.focal
    window = lots.window.reshape(-1, 4).take(place, axis=0)
    a, b = along / window[:, 0], (y - 0.4) / window[:, 2]
    ca, cb = np.floor(a), np.floor(b)
    under_roof = lots.height.reshape(-1).take(place) - y
    is_glass = (np.abs(a - ca - 0.5) < window[:, 1] / 2) & (np.abs(b - cb - 0.45) < window[:, 3] / 2) & (under_roof > 0.7)
    grain = _sample_noise(along * 6.0 + 4096, y * 7.0 + 64)
    color = lots.wall.reshape(-1, 3).take(place, axis=0)
    shade = 1.0 + grain * (0.22 / (1.0 + t / 14.0))
    shade[under_roof < 0.35] *= 0.68
    shade[(number == 1) | (number == 2)] *= 0.7
    is_shop = (y < 2.9) & (kind < 2) & ((index & 1) == 0)
    color[is_shop] = lots.shop.reshape(-1, 3).take(place[is_shop], axis=0)
    is_glass &= ~is_shop | (y < 2.3)
    panes = lots.glass.reshape(-1, 3).take(place[is_glass], axis=0)
    pane = _sample_noise(ca[is_glass] * 17 + place[is_glass] * 5, cb[is_glass] * 29)
    color[is_glass] = panes * (1.0 + 0.8 * pane)[:, None]
    is_tree = lots.is_tree.reshape(-1).take(place)
    color[is_tree] = world.tint["leaf"]
    shade[is_tree] = 1.0 + 0.5 * grain[is_tree]
    drawing.color[rows, cols] = color * shade[:, None]
    drawing.entry[rows, cols] = np.where(is_tree, street.FAR_TREES, street.BUILDING)
    drawing.depth[rows, cols] = t


def _quad(view: View, drawing: Drawing, ends: tuple[float, float, float, float], low: float, high: float,
          sprite: np.ndarray, base: int) -> None:
    """Paints an upright rectangle over the ground line `ends` = (xa, za, xb, zb), from y `low` to `high`.

    Along the columns 1/depth and (place on the line)/depth are linear: the perspective is exact.
    """
    xa, za, xb, zb = ends
    da = (xa - view.x) * view.sin + (za - view.z) * view.cos
    db = (xb - view.x) * view.sin + (zb - view.z) * view.cos
    if da <= NEAR and db <= NEAR:
        return
    la = (xa - view.x) * view.cos - (za - view.z) * view.sin
    lb = (xb - view.x) * view.cos - (zb - view.z) * view.sin
    sa, sb = 0.0, 1.0
    if da < NEAR or db < NEAR:
        cut = (NEAR - da) / (db - da)
        middle = la + cut * (lb - la)
        if da < NEAR:
            da, la, sa = NEAR, middle, cut
        else:
            db, lb, sb = NEAR, middle, cut
    ua, ub = view.cx + view.focal * la / da, view.cx + view.focal * lb / db
    if ua > ub:
        ua, ub, da, db, sa, sb = ub, ua, db, da, sb, sa
    height, width = drawing.entry.shape
    c0, c1 = math.ceil(ua - 0.5), math.ceil(ub - 0.5)
    c1 = max(c1, c0 + 1)  # thin things keep one column
    c0, c1 = max(c0, 0), min(c1, width)
    if c0 >= c1:
        return
    place = (np.arange(c0, c1, dtype=np.float32) + (0.5 - ua)) / max(ub - ua, 1e-6)
    np.clip(place, 0.0, 1.0, out=place)
    inverse = (1 / da) + place * (1 / db - 1 / da)
    along = (sa / da + place * (sb / db - sa / da)) / inverse
    top = (view.height - high) * view.focal * inverse + view.cy
    bottom = (view.height - low) * view.focal * inverse + view.cy
    r0, r1 = max(math.ceil(float(top.min()) - 0.5), 0), min(math.ceil(float(bottom.max()) - 0.5), height)
    if r0 >= r1:
        return
    tall, wide = sprite.shape[0] - 2, sprite.shape[1]
    rows = np.arange(r0, r1, dtype=np.float32)[:, None] + 0.5
    texel = (rows - top) * (tall / np.maximum(bottom - top, 1e-3)) + 1.0
    index = np.clip(texel, 0, tall + 1).astype(np.int32) * wide + np.minimum(along * wide, wide - 1).astype(np.int32)
    part = sprite.take(index)
    mask = part > 0
    np.copyto(drawing.entry[r0:r1, c0:c1], part + np.int32(base), where=mask)
    np.copyto(drawing.depth[r0:r1, c0:c1], 1 / inverse, where=mask)


def _body(view: View, body: street.Body, frame: int, drawing: Drawing) -> None:
    """Paints the faces of a body that the camera sees."""
    table = sprites.table()
    x0, x1 = body.x0 + body.vx * frame, body.x1 + body.vx * frame
    z0, z1 = body.z0 + body.vz * frame, body.z1 + body.vz * frame
    if body.side:
        if x0 == x1 or x0 > view.x:
            _quad(view, drawing, (x0, z0, x0, z1), body.y0, body.y1, table[body.side], body.base)
        elif x1 < view.x:
            _quad(view, drawing, (x1, z0, x1, z1), body.y0, body.y1, table[body.side], body.base)
    if body.end:
        name = body.end
        if body.num_phases > 1:
            name = f"{name}{int(frame * 0.5 + body.base) % body.num_phases}"
        elif name == "person_":
            name = "person_0"
        _quad(view, drawing, (x0, z0, x1, z0), body.y0, body.y1, table[name], body.base)


def draw(world: street.World, frame: int, height: int, width: int) -> Drawing:
    """Draws a frame of a world.

    Args:
      world: the street.
      frame: its number, >= 0; a pure function of it.
      height: pixels.
      width: pixels.
    """
    view = view_at(world.camera, frame, height, width)
    drawing = Drawing(view=view, color=np.empty((height, width, 3), np.float32),
                      entry=np.zeros((height, width), np.int32), depth=np.full((height, width), FAR, np.float32))
    top = int(np.clip(math.ceil(view.cy - 0.5 + 1e-3), 0, height))
    _sky(view, world, drawing.color, top)
    if top < height:
        _ground(view, world, drawing, top)
    visible = [(body.z0 + body.vz * frame - view.z, body) for body in world.bodies]
    visible = [(z, body) for z, body in visible if z + body.z1 - body.z0 > NEAR and z + view.z < world.end - 1]
    for z, body in visible:
        if body.shadow and z < 30:
            _shadow(view, body, frame, drawing)
    _houses(view, world, drawing)
    for _, body in sorted(visible, key=lambda pair: -pair[0]):
        _body(view, body, frame, drawing)
    is_object = drawing.entry >= street.NUM_SURFACES
    drawing.color[is_object] = world.palette.take(drawing.entry[is_object], axis=0)
    haze = np.exp(drawing.depth * np.float32(-1.0 / world.fog))
    haze[drawing.depth >= FAR] = 1.0
    np.multiply(drawing.color, haze[:, :, None], out=drawing.color)
    drawing.color[...] += (1.0 - haze)[:, :, None] * world.tint["low"]
    return drawing


def flow(now: Drawing, before: Drawing, world: street.World) -> np.ndarray:
    """True backward motion between two drawings of consecutive frames.

    Args:
      now: frame t.
      before: frame t - 1.
      world: their street.

    Returns:
      f32 [H, W, 2], displacement (x, y) in pixels from each pixel of t to where its surface point was
      in t - 1; nan where that place was outside of the image or hidden.
    """
    height, width = now.entry.shape
    a, b = now.view, before.view
    velocity = world.velocity.take(now.entry, axis=0)
    x = a.x + now.depth * a.dx - velocity[:, :, 0] - np.float32(b.x)
    z = a.z + now.depth * a.dz - velocity[:, :, 1] - np.float32(b.z)
    depth = x * b.sin + z * b.cos
    near = np.maximum(depth, NEAR)
    u = (x * b.cos - z * b.sin) * (b.focal / near) + (b.cx - 0.5)
    v = now.depth * a.row[:, None] * (b.focal / a.focal) / near + (b.cy - 0.5)
    motion = np.empty((height, width, 2), np.float32)
    motion[:, :, 0] = u - np.arange(width, dtype=np.float32)
    motion[:, :, 1] = v - np.arange(height, dtype=np.float32)[:, None]
    col, row = np.rint(u), np.rint(v)
    seen = (depth > NEAR) & (col >= 0) & (col < width) & (row >= 0) & (row < height)
    where = np.where(seen, row * width + col, 0).astype(np.int32)
    seen &= world.owner.take(now.entry) == world.owner.take(before.entry.take(where))
    seen &= np.abs(before.depth.take(where) - depth) < 0.2 * depth + 0.5
    motion[~seen] = np.nan
    return motion
