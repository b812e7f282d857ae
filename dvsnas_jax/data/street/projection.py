"""The camera of a procedural street: where surface points appear, and how they move.

It turns only about the vertical axis (pitch shifts the image), so every upright plane has one
depth per image column and the ground one depth per image row.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from dvsnas_jax.data.street import scene

NEAR = 0.35
"""Metres in front of the camera where everything is cut off."""
FAR = 5000.0
"""Depth of the sky, metres."""


@dataclasses.dataclass(frozen=True)
class View:
    """The camera at one time. Pixel centres are at +0.5."""

    x: float  # position, metres
    z: float
    height: float
    cos: float  # of the yaw (positive turns right)
    sin: float
    focal: float  # pixels
    cx: float  # principal point, pixels
    cy: float
    dx: np.ndarray  # f32 [W], direction of the ray of each column, with depth 1 along the optical axis
    dz: np.ndarray
    row: np.ndarray  # f32 [H], pixel centres minus cy
    column: np.ndarray  # f32 [W], pixel centres

    def seen(self, x: Any, z: Any) -> tuple[Any, Any]:
        """Where a point of the world (relative to the camera's position) lies: to the right, and the depth."""
        return x * self.cos - z * self.sin, x * self.sin + z * self.cos


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One frame."""

    view: View
    color: np.ndarray  # f32 [3, H, W], 0..255
    entry: np.ndarray  # i16 [H, W], palette entry
    depth: np.ndarray  # f32 [H, W], metres along the optical axis


def view_at(camera: scene.Camera, frame: int, height: int, width: int) -> View:
    """The camera of a clip at a frame, for images of height x width pixels."""
    amplitude, rate, phase = camera.sway
    x = camera.x + amplitude * math.sin(rate * frame + phase)
    z = camera.reach * (1.0 - math.exp(-camera.speed * frame / camera.reach))
    mean, amplitude, rate, phase = camera.yaw
    yaw = mean + amplitude * math.sin(rate * frame + phase)
    amplitude, rate, phase = camera.pitch
    cy = height * (camera.horizon + amplitude * math.sin(rate * frame + phase))
    focal, cx = camera.focal * width, width / 2
    column = np.arange(width, dtype=np.float32) + np.float32(0.5)
    ray = (column - cx) / focal
    cos, sin = math.cos(yaw), math.sin(yaw)
    row = (np.arange(height) + 0.5 - cy).astype(np.float32)
    dx, dz = (sin + cos * ray).astype(np.float32), (cos - sin * ray).astype(np.float32)
    return View(x, z, camera.height, cos, sin, focal, cx, cy, dx, dz, row, column)


def flow(now: Drawing, before: Drawing, world: scene.World) -> np.ndarray:
    """True backward motion between the drawings of two consecutive frames of a street.

    Returns:
      f32 [H, W, 2], displacement (x, y) in pixels from each pixel of `now` to where its surface point was
      in `before`; nan where that place was outside of the image or hidden.
    """
    height, width = now.entry.shape
    a, b = now.view, before.view
    x = now.depth * a.dx - world.velocity[0].take(now.entry) + np.float32(a.x - b.x)
    z = now.depth * a.dz - world.velocity[1].take(now.entry) + np.float32(a.z - b.z)
    right, depth = b.seen(x, z)
    near = np.maximum(depth, NEAR)
    u = right * (b.focal / near) + (b.cx - 0.5)
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
