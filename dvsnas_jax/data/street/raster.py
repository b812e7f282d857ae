"""Draws one frame of a procedural street: colours, palette entries and depth per pixel.

Sky, ground and house fronts are cast along the rays of the image; objects are painted from far to near.
"""

from __future__ import annotations

import math

import numpy as np

from dvsnas_jax.data.street import painter, projection, props, scene, sprites

_MASK = 127


def _sample_noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The tiling texture at integer places a, b (broadcast)."""
    return sprites.noise().take(((a.astype(np.int32) & _MASK) << 7) + (b.astype(np.int32) & _MASK))


def _fraction(value: np.ndarray, period: float) -> np.ndarray:
    """Place within a period, 0..1 (much faster than `%`)."""
    scaled = value * np.float32(1.0 / period)
    return scaled - np.floor(scaled)


def _sky(view: projection.View, world: scene.World, color: np.ndarray, bottom: int) -> None:
    """Fills the rows above `bottom`: a gradient with clouds."""
    tint = world.tint
    mix = np.clip(-view.row[:bottom, None] / view.focal * 2.4, 0, 1)
    flat = tint["low"] + mix * (tint["top"] - tint["low"])  # [rows, 3]
    high = np.maximum(-view.row[:bottom, None] / view.focal, 0.02)
    cloud = _sample_noise(18.0 / (high + 0.18), view.dx / view.dz * 60.0 + 500)
    color[:, :bottom] = flat.T[:, :, None] + cloud * tint["cloud"][:, None, None]


def _ground(world: scene.World, drawing: projection.Drawing, top: int) -> None:
    """Fills the rows from `top` down: road with markings, pavement, crossing road."""
    view, tint = drawing.view, world.tint
    depth = view.height * view.focal / view.row[top:, None]  # [rows, 1]
    x, z = view.x + depth * view.dx, view.z + depth * view.dz
    away = np.abs(x)
    crossing = (z > world.crossing[0]) & (z < world.crossing[1])
    is_road = (away < world.road) | crossing
    grain = _sample_noise(x * 9.0 + 4096, z * 5.0 + 4096) + 0.6 * _sample_noise(x * 1.3 + 4096, z * 0.7 + 4096)
    shade = 1.0 + grain * (0.2 / (1.0 + depth / 9.0))
    thick = 0.07 + depth * 0.0045
    near = int(np.searchsorted(-depth[:, 0], -9.0))  # rows nearer than 9 m show the slabs of the pavement
    slabs = ~is_road[near:] & ((_fraction(z[near:], 1.1) < 0.055) | (_fraction(x[near:], 1.1) < 0.045))
    shade[near:][slabs] *= 0.8
    edge = away - np.float32(world.road)
    shade[(np.abs(edge - 0.08) < 0.08 + thick * 0.4) & ~crossing] *= 1.18  # curb
    marks = ((np.abs(edge + 0.45) < thick * 0.7) | ((away < thick) & (_fraction(z, 5.0) < 0.48))) & ~crossing
    if world.crossing[0] < world.end:
        first = world.crossing[0] - 3.4
        marks |= (z > first) & (z < first + 2.6) & (_fraction(x, 1.1) < 0.5) & (edge < 0)
    for channel in range(3):
        base = np.where(is_road, tint["road"][channel], tint["pavement"][channel])
        base[marks] = tint["mark"][channel]
        np.multiply(base, shade, out=drawing.color[channel, top:])
    drawing.entry[top:] = np.where(is_road, np.int16(props.ROAD), np.int16(props.PAVEMENT))
    drawing.depth[top:] = depth


def _houses(world: scene.World, drawing: projection.Drawing) -> None:
    """House fronts of both sides, the flanks seen in gaps, and the far end of the street."""
    view, lots, width = drawing.view, world.lots, len(drawing.view.dx)
    side = (view.dx > 0).astype(np.int32)
    steep = np.where(np.abs(view.dx) < 1e-4, 1e-4, np.abs(view.dx))
    wall_t = np.where(side == 1, world.wall - view.x, world.wall + view.x) / steep
    end_t = (world.end - view.z) / view.dz
    z = view.z + wall_t * view.dz
    lot = np.floor((z - lots.start[side]) / lots.length[side]).astype(np.int32).clip(0, scene.NUM_LOTS - 3)
    far_x = view.x + end_t * view.dx
    far_lot = np.floor((far_x - lots.start[2]) / lots.length[2]).astype(np.int32).clip(0, scene.NUM_LOTS - 1)
    layers = [(end_t, np.full(width, 2), far_lot, far_x)]
    for ahead in (2, 1):
        start = lots.start[side] + (lot + ahead) * lots.length[side]
        t = (start - view.z) / view.dz
        t = np.where((start < world.end) & (t > projection.NEAR) & (wall_t < end_t), t, 0)
        layers.append((t, side, lot + ahead, view.x + t * view.dx))
    layers.append((np.where((z < world.end) & (wall_t > projection.NEAR), wall_t, 0), side, lot, z))
    row = view.row[:, None]
    chosen = np.full(drawing.entry.shape, -1, np.int32)
    for layer, (t, kind, index, _) in enumerate(layers):
        tall = np.where(t > 0, lots.height[kind, index], 0)
        if tall.any():
            inverse = view.focal / np.maximum(t, projection.NEAR)
            bottom = np.where(tall > 0, view.height * inverse, -1e9)
            chosen[(row >= (view.height - tall) * inverse) & (row < bottom)] = layer
    pixels = np.flatnonzero(chosen >= 0)
    number = chosen.reshape(-1).take(pixels)
    where = number * width + pixels % width
    t, kind, index, along = (np.concatenate([values[i] for values in layers]).take(where) for i in range(4))
    _paint_houses(world, drawing, pixels, (t, kind, index, along, number))


def _paint_houses(
    world: scene.World, drawing: projection.Drawing, pixels: np.ndarray, hit: tuple[np.ndarray, ...]
) -> None:
    """Colours the pixels [n] of houses: hit = depth, row and column of the lot tables, metres along the wall, layer."""
    lots, view = world.lots, drawing.view
    t, kind, index, along, number = hit
    place = kind * scene.NUM_LOTS + index
    y = view.height - t * view.row.take(pixels // len(view.dx)) * np.float32(1 / view.focal)
    cell_x, share_x, cell_y, share_y = (lots.window[i].reshape(-1).take(place) for i in range(4))
    a, b = along / cell_x, (y - 0.4) / cell_y
    ca, cb = np.floor(a), np.floor(b)
    under_roof = lots.height.reshape(-1).take(place) - y
    is_glass = (np.abs(a - ca - 0.5) < share_x / 2) & (np.abs(b - cb - 0.45) < share_y / 2) & (under_roof > 0.7)
    grain = _sample_noise(along * 6.0 + 4096, y * 7.0 + 64)
    shade = 1.0 + grain * (0.22 / (1.0 + t / 14.0))
    shade[under_roof < 0.35] *= 0.68
    shade[(number == 1) | (number == 2)] *= 0.7
    is_shop = (y < 2.9) & (kind < 2) & ((index & 1) == 0)
    is_glass &= ~is_shop | (y < 2.3)
    is_tree = lots.is_tree.reshape(-1).take(place)
    pane = 1.0 + 0.8 * _sample_noise(ca * 17 + place * 5, cb * 29)
    shade = np.where(is_tree, 1.0 + 0.5 * grain, np.where(is_glass, pane, shade))
    # one table of colours: walls, shops, glass, leaves
    entry = place + len(lots.paint[0]) // 4 * np.where(is_tree, 3, np.where(is_glass, 2, is_shop))
    for channel in range(3):
        drawing.color[channel].reshape(-1)[pixels] = lots.paint[channel].take(entry) * shade
    drawing.entry.reshape(-1)[pixels] = np.where(is_tree, np.int16(props.FAR_TREES), np.int16(props.BUILDING))
    drawing.depth.reshape(-1)[pixels] = t


def draw(world: scene.World, frame: int, height: int, width: int) -> projection.Drawing:
    """Draws a frame of a world; a pure function of its number, >= 0."""
    view = projection.view_at(world.camera, frame, height, width)
    color, entries = np.empty((3, height, width), np.float32), np.zeros((height, width), np.int16)
    drawing = projection.Drawing(view, color, entries, np.full((height, width), projection.FAR, np.float32))
    top = int(np.clip(math.ceil(view.cy - 0.5 + 1e-3), 0, height))
    _sky(view, world, drawing.color, top)
    if top < height:
        _ground(world, drawing, top)
    boxes = painter.boxes_at(world, frame)
    painter.shadows(world, drawing, boxes)
    _houses(world, drawing)
    painter.bodies(world, drawing, boxes, frame)
    pixels = np.flatnonzero(drawing.entry >= props.NUM_SURFACES)
    entry = drawing.entry.reshape(-1).take(pixels)
    haze = np.exp(drawing.depth * np.float32(-1.0 / world.fog))
    haze[drawing.depth >= projection.FAR] = 1.0
    veil = np.float32(1.0) - haze
    for channel in range(3):
        color[channel].reshape(-1)[pixels] = world.palette[channel].take(entry)
        color[channel] *= haze
        color[channel] += veil * world.tint["low"][channel]
    return drawing
