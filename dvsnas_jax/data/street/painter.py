"""Paints the objects of a procedural street, from far to near.

Flat objects face the camera (boards, one depth each); cars and fences show upright faces in exact perspective.
"""

from __future__ import annotations

import math

import numpy as np

from dvsnas_jax.data.street import projection, props, scene, sprites

_SMALLEST = 5.0  # pixels of height below which a body is left out
_SOLID = 8.0  # metres up to which a car is filled
_SHADOW_REACH = 40.0  # metres, times the strength of the shadow

Box = tuple[float, ...]
"""x0, x1, z0, z1, y0, y1."""


def _project(view: projection.View, ends: tuple[float, float, float, float]) -> tuple[float, ...] | None:
    """Both ends of a ground line (xa, za, xb, zb), cut at the near plane, from left to right in the image.

    Returns:
      Columns (pixels), depths (metres) and places on the line (0..1): ua, ub, da, db, sa, sb; None if behind.
    """
    xa, za, xb, zb = ends
    (la, da), (lb, db) = view.seen(xa - view.x, za - view.z), view.seen(xb - view.x, zb - view.z)
    if da <= projection.NEAR and db <= projection.NEAR:
        return None
    sa, sb = 0.0, 1.0
    if da < projection.NEAR or db < projection.NEAR:
        cut = (projection.NEAR - da) / (db - da)
        middle = la + cut * (lb - la)
        if da < projection.NEAR:
            da, la, sa = projection.NEAR, middle, cut
        else:
            db, lb, sb = projection.NEAR, middle, cut
    ua, ub = view.cx + view.focal * la / da, view.cx + view.focal * lb / db
    return (ua, ub, da, db, sa, sb) if ua <= ub else (ub, ua, db, da, sb, sa)


def _quad(
    drawing: projection.Drawing,
    ends: tuple[float, float, float, float],
    span_y: tuple[float, float],
    sprite: np.ndarray,
    base: int,
) -> None:
    """Paints an upright rectangle over the ground line `ends` = (xa, za, xb, zb), from one y to another.

    The perspective is exact. What the ground line leaves of an image column is at least one column.
    """
    view, (low, high) = drawing.view, span_y
    line = _project(view, ends)
    if line is None:
        return
    ua, ub, da, db, sa, sb = line
    height, width = drawing.entry.shape
    c0, c1 = math.ceil(ua - 0.5), math.ceil(ub - 0.5)
    c1 = max(c1, c0 + 1)  # thin things keep one column
    c0, c1 = max(c0, 0), min(c1, width)
    if c0 >= c1:
        return
    # along the columns 1/depth and (place on the line)/depth are linear: `a + b * column`
    slope = 1.0 / max(ub - ua, 1e-6)
    column = view.column[c0:c1]
    if ub - ua < 1.0:
        inverse, along = np.array([0.5 / da + 0.5 / db]), np.array([0.5 * (sa + sb)])
    else:
        rise = (1 / db - 1 / da) * slope
        inverse = column * rise + (1 / da - ua * rise)
        rise = (sb / db - sa / da) * slope
        along = (column * rise + (sa / da - ua * rise)) / inverse
    scale = inverse * view.focal
    top, span = (view.height - high) * scale, (high - low) * scale
    most, least = max(float(scale[0]), float(scale[-1])), min(float(scale[0]), float(scale[-1]))
    up, down = view.height - high, view.height - low
    r0 = max(math.ceil(view.cy + up * (most if up < 0 else least) - 0.5), 0)
    r1 = min(math.ceil(view.cy + down * (most if down > 0 else least) - 0.5), height)
    if r0 >= r1:
        return
    tall, wide = sprite.shape[0] - 2, sprite.shape[1]
    texel = view.row[r0:r1, None] - top
    texel *= tall / span
    texel += 1.0
    index = np.clip(texel, 0.0, tall + 1, out=texel).astype(np.int32)
    index *= wide
    index += np.minimum(along * wide, wide - 1).astype(np.int32)
    part = sprite.take(index)
    mask = part > 0
    np.copyto(drawing.entry[r0:r1, c0:c1], part + np.int16(base), where=mask)
    np.copyto(drawing.depth[r0:r1, c0:c1], 1 / inverse, where=mask)


def _boards(view: projection.View, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where flat bodies appear: depth f64 [n] and edges f64 [4, n]: left, top, width and height in pixels."""
    x, half = (boxes[0] + boxes[1]) / 2 - view.x, (boxes[1] - boxes[0]) / 2
    right, depth = view.seen(x, boxes[2] - view.z)
    scale = view.focal / np.maximum(depth, projection.NEAR)
    left = view.cx + scale * (right - half)
    top = view.cy + scale * (view.height - boxes[5])
    return depth, np.stack([left, top, 2 * half * scale, (boxes[5] - boxes[4]) * scale])


def _board(drawing: projection.Drawing, edges: tuple[float, ...], sprite: np.ndarray, base: int) -> None:
    """Paints a sprite over the rectangle edges = (left, top, width, height) in pixels; at least one column."""
    left, top, wide, tall = edges
    height, width = drawing.entry.shape
    c0, r0 = math.ceil(left - 0.5), max(math.ceil(top - 0.5), 0)
    c1, r1 = min(max(math.ceil(left + wide - 0.5), c0 + 1), width), min(math.ceil(top + tall - 0.5), height)
    c0 = max(c0, 0)
    if r0 >= r1 or c0 >= c1:
        return
    rows, cols = sprite.shape
    view = drawing.view
    col = ((view.column[c0:c1] - left) * (cols / wide)).astype(np.intp)
    row = ((view.row[r0:r1] + (view.cy - top)) * (rows / tall)).astype(np.intp)
    part = sprite.take(row, axis=0, mode="clip").take(col, axis=1, mode="clip")
    np.copyto(drawing.entry[r0:r1, c0:c1], part + np.int16(base), where=part > 0)


def _faces(drawing: projection.Drawing, body: props.Body, box: Box) -> None:
    """Paints the upright faces of a body that the camera sees."""
    x0, x1, z0, z1, *span_y = box
    view, table = drawing.view, sprites.table()
    faces = []
    if body.side and body.end and z0 - view.z < _SOLID:
        # a near car is seen to be hollow: cross-sections of its cabin fill it
        core = body.end.split("_")[0] + "_core"
        places = (0.6, 0.41, 0.22) if body.side.endswith("side") else (0.78, 0.59, 0.4)
        faces += [((x0, z, x1, z), core) for z in (z0 + place * (z1 - z0) for place in places)]
    if body.side and (x0 == x1 or x0 > view.x):
        faces.append(((x0, z0, x0, z1), body.side))
    elif body.side and x1 < view.x:
        faces.append(((x1, z0, x1, z1), body.side))
    if body.end:
        faces.append(((x0, z0, x1, z0), body.end))
    for ends, name in faces:
        _quad(drawing, ends, (span_y[0], span_y[1]), table[name], body.base)


def _shadow(drawing: projection.Drawing, box: Box, strength: float) -> None:
    """Darkens the ground below a box."""
    view, (x0, x1, z0, z1, *_) = drawing.view, box
    grow = 0.12 * (x1 - x0)
    near, far = max(z0 - grow - 0.15 - view.z, 1.0), z1 + grow + 0.25 - view.z
    if far <= near:
        return
    top, bottom = (view.cy + view.focal * view.height / depth for depth in (far, near))
    r0, r1 = max(math.ceil(top - 0.5), 0), min(math.ceil(bottom - 0.5), len(view.row))
    if r1 <= r0 or r0 <= view.cy:
        return
    depth = view.height * view.focal / view.row[r0:r1, None]
    x = view.x + depth * view.dx
    inside = (x > x0 - grow) & (x < x1 + grow)
    cols = np.flatnonzero(inside.any(0))
    if len(cols):
        span = slice(cols[0], cols[-1] + 1)
        part = drawing.color[:, r0:r1, span]
        part *= np.float32(1.0) - np.float32(strength) * inside[:, span]


def boxes_at(world: scene.World, frame: int) -> np.ndarray:
    """All bodies at a frame: f64 [6, n], x0, x1, z0, z1, y0, y1."""
    boxes = world.boxes[:6].copy()
    boxes[:2] += world.boxes[6] * frame
    boxes[2:4] += world.boxes[7] * frame
    return boxes


def _visible(view: projection.View, world: scene.World, boxes: np.ndarray) -> list[int]:
    """Numbers of the bodies that are in front of the camera and large enough, from far to near."""
    ahead = boxes[2] - view.z
    keep = (boxes[3] - view.z > projection.NEAR) & (boxes[2] < world.end - 1)
    keep &= ahead * _SMALLEST < (boxes[5] - boxes[4]) * view.focal
    # a fence along the street lies behind all that stands before it: at the fronts its far end counts, else its middle
    along, away = boxes[0] == boxes[1], np.abs(boxes[0] + boxes[1]) / 2
    rank = np.where(along, np.where(away > world.wall - 0.3, boxes[3], (boxes[2] + boxes[3]) / 2), boxes[2])
    rank += np.where(away > world.wall + 0.5, 1e4, 0.0)  # what stands in the gaps between the houses
    order = np.argsort(-rank, kind="stable")
    return order[keep[order]].tolist()


def shadows(world: scene.World, drawing: projection.Drawing, boxes: np.ndarray) -> None:
    """Darkens the ground below the bodies; to be called before anything else covers the ground."""
    for number in _visible(drawing.view, world, boxes):
        strength = world.bodies[number].shadow
        box = tuple(boxes[:, number].tolist())
        if strength and box[2] - drawing.view.z < _SHADOW_REACH * strength:
            _shadow(drawing, box, strength)


def bodies(world: scene.World, drawing: projection.Drawing, boxes: np.ndarray, frame: int) -> None:
    """Paints all bodies, `boxes_at` a frame, into the entries and depths of a drawing that has ground and houses."""
    table = sprites.table()
    depth, edges = _boards(drawing.view, boxes)
    for number in _visible(drawing.view, world, boxes):
        body = world.bodies[number]
        if not world.is_board[number]:
            _faces(drawing, body, tuple(boxes[:, number].tolist()))
        elif depth[number] > projection.NEAR:
            name = body.end
            if body.num_phases:
                name = f"{name}{(frame // 2 + body.base) % body.num_phases}"
            _board(drawing, tuple(edges[:, number].tolist()), table[name][1:-1], body.base)
    flat = np.where(world.is_board, depth, 0.0).astype(np.float32)
    by_owner = np.concatenate([np.zeros(props.NUM_SURFACES + 1, np.float32), flat])
    of_board = by_owner.take(world.owner.take(drawing.entry))
    np.copyto(drawing.depth, of_board, where=of_board > 0)
