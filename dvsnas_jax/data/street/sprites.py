"""Flat shapes of the procedural street: maps of part numbers that a palette colours.

A sprite is a u8 map [height, width] of part numbers, row 0 on top; part 0 is transparent. The palette of an object
gives a colour to each part, so one shape serves many objects.
"""

from __future__ import annotations

import functools

import numpy as np

NUM_TREES = 6
NUM_PHASES = 4


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the texels, y and x in 0..1."""
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width
    return np.broadcast_to(y, (height, width)), np.broadcast_to(x, (height, width))


def _box(y: np.ndarray, x: np.ndarray, bounds: tuple[float, float, float, float]) -> np.ndarray:
    """Mask of the rectangle (y0, x0, y1, x1)."""
    y0, x0, y1, x1 = bounds
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def _ball(y: np.ndarray, x: np.ndarray, center: tuple[float, float], radius: tuple[float, float]) -> np.ndarray:
    """Mask of an ellipse with radii (ry, rx)."""
    return ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 < 1.0


def _bar(
    y: np.ndarray, x: np.ndarray, ends: tuple[float, float, float, float], thick: float, aspect: float
) -> np.ndarray:
    """Mask of a thick line from (y0, x0) to (y1, x1); `aspect` is width over height of the sprite."""
    y0, x0, y1, x1 = ends
    ux, uy = (x1 - x0) * aspect, y1 - y0
    px, py = (x - x0) * aspect, y - y0
    along = np.clip((px * ux + py * uy) / max(ux * ux + uy * uy, 1e-9), 0.0, 1.0)
    return (px - along * ux) ** 2 + (py - along * uy) ** 2 < thick * thick


def _car_side(is_van: bool) -> np.ndarray:
    """Parts: 1 body, 2 glass, 3 tyre, 4 lower body, 5 rim, 6 pillar."""
    y, x = _grid(32, 88)
    sprite = np.zeros(y.shape, np.uint8)
    if is_van:
        cabin = (x >= 0.8) & (x < 0.8 + (y - 0.02) * 0.36) & (y < 0.6) & (y > 0.02)
        cabin |= _box(y, x, (0.02, 0.02, 0.6, 0.8))
        glass = (x >= 0.8) & (x < 0.78 + (y - 0.02) * 0.34) & (y > 0.12) & (y < 0.4)
        glass |= _box(y, x, (0.12, 0.6, 0.4, 0.78))
    else:
        slope = (y - 0.03) / 0.42
        cabin = (y >= 0.03) & (y < 0.45) & (x > 0.22 - slope * 0.12) & (x < 0.62 + slope * 0.16)
        glass = (y >= 0.1) & (y < 0.42) & (x > 0.25 - slope * 0.1) & (x < 0.6 + slope * 0.13)
    sprite[cabin] = 1
    sprite[glass] = 2
    if not is_van:
        sprite[glass & (np.abs(x - 0.45) < 0.012)] = 6
    sprite[_box(y, x, (0.42, 0.01, 0.7, 0.99))] = 1
    sprite[_box(y, x, (0.66, 0.015, 0.86, 0.985))] = 4
    sprite[_box(y, x, (0.3, 0.58, 0.42, 0.6)) & is_van] = 6
    for center in (0.19, 0.8):
        sprite[_ball(y, x, (0.82, center), (0.18, 0.072))] = 3
        sprite[_ball(y, x, (0.82, center), (0.09, 0.036))] = 5
    return sprite


def _car_end(is_front: bool, is_van: bool) -> np.ndarray:
    """Parts: 1 body, 2 glass, 3 tyre, 4 lower body, 5 rim and plate, 6 pillar, 7 lights."""
    y, x = _grid(40, 44)
    sprite = np.zeros(y.shape, np.uint8)
    center = np.abs(x - 0.5)
    narrow = 0.04 if is_van else 0.14
    roof = (y > 0.03) & (y < 0.45) & (center < 0.47 - narrow * (0.45 - y) / 0.42)
    sprite[roof] = 1
    sprite[roof & (y > 0.1) & (y < 0.4) & (center < 0.41 - narrow * (0.45 - y) / 0.42)] = 2
    sprite[_box(y, x, (0.42, 0.01, 0.72, 0.99))] = 1
    sprite[_box(y, x, (0.68, 0.02, 0.88, 0.98))] = 4
    sprite[_box(y, x, (0.84, 0.05, 0.99, 0.23)) | _box(y, x, (0.84, 0.77, 0.99, 0.95))] = 3
    sprite[(y > 0.47) & (y < 0.6) & (center > 0.3) & (center < 0.46)] = 7
    sprite[(y > 0.62) & (y < 0.7) & (center < 0.14)] = 5
    if is_front:
        sprite[(y > 0.5) & (y < 0.6) & (center < 0.22)] = 4
    return sprite


def _person(phase: int) -> np.ndarray:
    """Parts: 1 skin, 2 coat, 3 trousers, 4 hair, 5 shoes, 6 sleeve."""
    y, x = _grid(48, 24)
    sprite = np.zeros(y.shape, np.uint8)
    swing = 0.17 * np.sin(2 * np.pi * phase / NUM_PHASES)
    for sign in (-1, 1):
        foot = 0.5 + sign * (0.1 + swing)
        sprite[_bar(y, x, (0.55, 0.5 + sign * 0.09, 0.95, foot), 0.048, 0.5)] = 3
        sprite[_bar(y, x, (0.96, foot, 0.96, foot + 0.08), 0.03, 0.5)] = 5
        sprite[_bar(y, x, (0.22, 0.5 + sign * 0.24, 0.5, 0.5 + sign * (0.3 - swing)), 0.034, 0.5)] = 6
    sprite[_ball(y, x, (0.36, 0.5), (0.22, 0.27)) & (y > 0.15)] = 2
    sprite[_box(y, x, (0.4, 0.28, 0.58, 0.72))] = 2
    sprite[_ball(y, x, (0.085, 0.5), (0.08, 0.155))] = 1
    sprite[_ball(y, x, (0.06, 0.5), (0.06, 0.16)) & (y < 0.075)] = 4
    return sprite


def _cyclist_end() -> np.ndarray:
    """A cyclist from behind or in front. Parts as `_cyclist_side`."""
    y, x = _grid(48, 28)
    sprite = np.zeros(y.shape, np.uint8)
    sprite[_ball(y, x, (0.8, 0.5), (0.2, 0.1))] = 5
    sprite[_bar(y, x, (0.42, 0.12, 0.42, 0.88), 0.022, 0.58)] = 7
    sprite[_bar(y, x, (0.5, 0.38, 0.82, 0.3), 0.055, 0.58) | _bar(y, x, (0.5, 0.62, 0.74, 0.7), 0.055, 0.58)] = 3
    sprite[_ball(y, x, (0.34, 0.5), (0.2, 0.28))] = 2
    sprite[_bar(y, x, (0.24, 0.25, 0.42, 0.14), 0.036, 0.58) | _bar(y, x, (0.24, 0.75, 0.42, 0.86), 0.036, 0.58)] = 6
    sprite[_ball(y, x, (0.095, 0.5), (0.085, 0.14))] = 1
    sprite[_ball(y, x, (0.07, 0.5), (0.075, 0.16)) & (y < 0.09)] = 4
    return sprite


def _cyclist_side() -> np.ndarray:
    """Parts: 1 skin, 2 shirt, 3 trousers, 4 helmet, 5 tyre, 6 sleeve, 7 frame, 8 between the spokes."""
    y, x = _grid(48, 48)
    sprite = np.zeros(y.shape, np.uint8)
    for center in (0.22, 0.78):
        wheel = _ball(y, x, (0.79, center), (0.2, 0.2))
        sprite[wheel] = 5
        sprite[_ball(y, x, (0.79, center), (0.14, 0.14))] = 8
    rear, saddle, steering = (0.79, 0.22), (0.55, 0.38), (0.55, 0.68)
    front, pedals, handlebar = (0.79, 0.78), (0.79, 0.48), (0.45, 0.7)
    rear_half = ((rear, saddle), (saddle, steering), (pedals, steering), (saddle, pedals), (rear, pedals))
    for start, end in (*rear_half, (steering, front), (steering, handlebar)):
        sprite[_bar(y, x, (*start, *end), 0.022, 1.0)] = 7
    sprite[_bar(y, x, (0.5, 0.38, 0.66, 0.54), 0.055, 1.0) | _bar(y, x, (0.66, 0.54, 0.86, 0.48), 0.04, 1.0)] = 3
    sprite[_bar(y, x, (0.48, 0.38, 0.25, 0.54), 0.09, 1.0)] = 2
    sprite[_bar(y, x, (0.27, 0.55, 0.44, 0.7), 0.035, 1.0)] = 6
    sprite[_ball(y, x, (0.11, 0.6), (0.085, 0.075))] = 1
    sprite[_ball(y, x, (0.08, 0.59), (0.075, 0.09)) & (y < 0.1)] = 4
    return sprite


def _tree(variant: int) -> np.ndarray:
    """Parts: 1 trunk, 2..5 leaves from dark to light."""
    rng = np.random.default_rng([7, variant])
    y, x = _grid(72, 60)
    sprite = np.zeros(y.shape, np.uint8)
    trunk = 0.035 + 0.02 * (variant % 3)
    sprite[(np.abs(x - 0.5) < trunk * (0.7 + 0.5 * y)) & (y > 0.4)] = 1
    is_conifer = variant == NUM_TREES - 1
    for _ in range(26):
        if is_conifer:
            cy = rng.uniform(0.08, 0.78)
            cx, size = 0.5 + rng.uniform(-0.42, 0.42) * cy, 0.06 + 0.1 * cy
        else:
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1) ** 0.5
            cy, cx, size = 0.33 + 0.22 * far * np.sin(angle), 0.5 + 0.34 * far * np.cos(angle), rng.uniform(0.08, 0.17)
        leaf = _ball(y, x, (cy, cx), (size, size * 1.15))
        light = 3.5 + 2.2 * (0.4 - cy) + 2.0 * (0.5 - cx) * 0.6 - 1.6 * (y - cy) / size * 0.5
        sprite[leaf] = np.clip(light + rng.normal(0, 0.75, y.shape), 2, 5.49)[leaf].round().astype(np.uint8)
    return sprite


def _signs() -> dict[str, np.ndarray]:
    """Parts: 1 border, 2 fill, 3 symbol, 4..6 lamps."""
    y, x = _grid(32, 32)
    disc = np.where(_ball(y, x, (0.5, 0.5), (0.5, 0.5)), 1, 0)
    disc[_ball(y, x, (0.5, 0.5), (0.36, 0.36))] = 2
    disc[_box(y, x, (0.42, 0.26, 0.58, 0.74))] = 3
    triangle = np.where(np.abs(x - 0.5) < 0.5 * y, 1, 0)
    triangle[(np.abs(x - 0.5) < 0.5 * y - 0.2) & (y < 0.86)] = 2
    triangle[_box(y, x, (0.5, 0.46, 0.8, 0.54))] = 3
    board = np.ones(y.shape, int)
    board[_box(y, x, (0.07, 0.05, 0.93, 0.95))] = 2
    board[_box(y, x, (0.2, 0.15, 0.36, 0.85)) | _box(y, x, (0.55, 0.15, 0.7, 0.6))] = 3
    y, x = _grid(36, 14)
    lamps = np.ones(y.shape, int)
    for row in range(3):
        lamps[_ball(y, x, (0.18 + 0.32 * row, 0.5), (0.13, 0.33))] = 4 + row
    named = {"sign_disc": disc, "sign_triangle": triangle, "sign_board": board, "traffic_light": lamps}
    return {name: sprite.astype(np.uint8) for name, sprite in named.items()}


def _fences() -> dict[str, np.ndarray]:
    """Parts: 1 light, 2 dark, 3 rail, 4 what is seen between the bars."""
    y, x = _grid(32, 96)
    column = np.floor(x * 16).astype(int)
    planks = np.where(column % 2 == 0, 1, 2)
    planks[(x * 16) % 1.0 < 0.14] = 4
    planks[(y < 0.1) & ((x * 16) % 1.0 < 0.45)] = 0
    bars = np.where((x * 24) % 1.0 < 0.42, 1, 4)
    bars[(y < 0.14) | ((y > 0.86) & (y < 0.97))] = 3
    bars[(x * 3) % 1.0 < 0.07] = 2
    panel = np.where(((y * 5) % 1.0 < 0.2) | ((x * 8 + np.floor(y * 5) % 2 * 0.5) % 1.0 < 0.09), 2, 1)
    panel[y < 0.1] = 3
    named = {"fence_planks": planks, "fence_bars": bars, "fence_panel": panel}
    return {name: sprite.astype(np.uint8) for name, sprite in named.items()}


@functools.cache
def table() -> dict[str, np.ndarray]:
    """All sprites by name, u8 [height + 2, width]: a transparent row is added on top and at the bottom."""
    sprites: dict[str, np.ndarray] = {}
    for kind, is_van in (("car", False), ("van", True)):
        sprites[f"{kind}_side"] = _car_side(is_van)
        sprites[f"{kind}_flank"] = _car_side(is_van)[:, ::-1]
        sprites[f"{kind}_rear"] = _car_end(False, is_van)
        sprites[f"{kind}_front"] = _car_end(True, is_van)
        end = _car_end(False, is_van)
        sprites[f"{kind}_core"] = np.where(end == 2, 2, np.where(end > 0, 6, 0)).astype(np.uint8)
    for phase in range(NUM_PHASES):
        sprites[f"person_{phase}"] = _person(phase)
    sprites["cyclist_end"] = _cyclist_end()
    sprites["cyclist_right"] = _cyclist_side()
    sprites["cyclist_left"] = _cyclist_side()[:, ::-1]
    for variant in range(NUM_TREES):
        sprites[f"tree_{variant}"] = _tree(variant)
    sprites.update(_signs(), **_fences())
    sprites["pole"] = (1 + np.floor(_grid(4, 9)[1] * 3)).astype(np.uint8)  # 1 light edge, 2 middle, 3 dark edge
    return {name: np.ascontiguousarray(np.pad(sprite, ((1, 1), (0, 0)))) for name, sprite in sprites.items()}


@functools.cache
def noise() -> np.ndarray:
    """A tiling texture f32 [128, 128] of smooth and fine grain, mean 0, about -1..1."""
    rng = np.random.default_rng(11)
    total = np.zeros((128, 128), np.float32)
    for cells, weight in ((8, 0.5), (32, 0.45), (128, 0.5)):
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        fine = np.kron(coarse, np.ones((128 // cells, 128 // cells), np.float32))
        for _ in range(64 // cells):
            fine = (fine + np.roll(fine, 1, 0) + np.roll(fine, 1, 1) + np.roll(fine, (1, 1), (0, 1))) / 4
        total += weight * fine / max(float(np.abs(fine).max()), 1e-6)
    return np.ascontiguousarray(total - total.mean())
