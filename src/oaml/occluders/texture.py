"""Colours, light and textures: cloth, patterns and skin.

Colours are planar, a single one is [3,1,1]: so they broadcast against maps [112,112].
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

from oaml.occluders.canvas import Style, X, Y, along
from oaml.support.files import FACE_SIZE

Range = tuple[float, float]


def hsv(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> np.ndarray:
    """A colour from ranges in [0,1] -> float32 [3,1,1] in 0..255."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, np.float32).reshape(3, 1, 1) * 255


def _cloth_colour(rng: np.random.Generator, style: Style, dark: bool) -> np.ndarray:
    if style == "a":
        if dark and rng.random() < 0.65:
            return hsv(rng, (0, 1), (0, 0.2), (0.05, 0.16))
        if rng.random() < 0.6:
            return hsv(rng, (0.52, 0.72), (0.15, 0.7), (0.12, 0.6))
        return hsv(rng, (-0.02, 0.12), (0.1, 0.5), (0.2, 0.75))
    if dark and rng.random() < 0.45:
        return hsv(rng, (0.75, 1.02), (0.2, 0.7), (0.06, 0.25))
    if rng.random() < 0.5:
        return hsv(rng, (0.12, 0.5), (0.1, 0.6), (0.15, 0.75))
    return hsv(rng, (0.75, 1.1), (0.05, 0.35 if dark else 0.7), (0.3, 0.9))


def _relief() -> tuple[np.ndarray, np.ndarray]:
    """Slope of cloth that lies on a face (nose, cheeks, chin, the roundness of the head), along x and y."""

    def bump(x: float, y: float, sx: float, sy: float) -> np.ndarray:
        return np.exp(-(((X - x) / sx) ** 2) - ((Y - y) / sy) ** 2)

    height = 70 * bump(56, 66, 58, 70) + 9 * bump(56, 70, 9, 12) + 5 * bump(34, 76, 13, 13)
    height += 5 * bump(78, 76, 13, 13) + 5 * bump(56, 104, 14, 9) - 3 * bump(56, 92, 16, 6)
    slope_y, slope_x = np.gradient(height)
    return slope_x.astype(np.float32), slope_y.astype(np.float32)


_SLOPE_X, _SLOPE_Y = _relief()


def smooth_noise(rng: np.random.Generator, rows: int, columns: int, size: int = FACE_SIZE) -> np.ndarray:
    """Noise in about [-1,1] that varies over `rows` x `columns` cells, float32 [size,size]."""
    cells = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC)


def shading(rng: np.random.Generator, folds: float = 1.0, angle: float | None = None) -> np.ndarray:
    """Light and shadow on draped cloth as a relative change of brightness, [112,112]."""
    light = rng.uniform(0, 2 * math.pi)
    relief = math.cos(light) * _SLOPE_X + (0.4 + math.sin(light)) * _SLOPE_Y
    across = rng.uniform(0, math.pi) if angle is None else angle + rng.normal(0, 0.25)
    bend = smooth_noise(rng, 4, 4)
    wave = np.sin(along(across) * rng.uniform(0.1, 0.32) + 1.9 * bend)
    # Folds rise gently on one side, fall off on the other and fade out along their length.
    ridge = (wave + 0.5 * np.abs(wave)) * np.maximum(0.35 + 0.8 * smooth_noise(rng, 4, 3), 0)
    return rng.uniform(0.12, 0.3) * relief + folds * rng.uniform(0.2, 0.55) * ridge - 0.06 * bend


def lit(colour: np.ndarray, shade: np.ndarray, sheen: float = 14.0) -> np.ndarray:
    """Shade a colour ([3,1,1] or [3,112,112]); the sheen keeps folds visible on black cloth."""
    return np.clip(colour * (1 + shade) + (sheen * shade), 0, 255)


def grain(rng: np.random.Generator, amount: float) -> np.ndarray:
    """Noise of single pixels, [112,112], of standard deviation `amount`."""
    return rng.standard_normal((FACE_SIZE, FACE_SIZE), np.float32) * amount


def _weave(rng: np.random.Generator) -> np.ndarray:
    """Threads of a plain weave as a change of brightness, with a moire where they are finer than a pixel."""
    angle, step = rng.uniform(0, math.pi), 2 * math.pi / rng.uniform(2.1, 4.5)
    threads = np.sin(along(angle) * step) * np.sin(along(angle + math.pi / 2) * step)
    return rng.uniform(0.02, 0.12) * threads


def pattern(
    rng: np.random.Generator, base: np.ndarray, warp: float = 5.0, contrast: float = 1.0
) -> np.ndarray:
    """Three colours woven or printed on cloth, [3,112,112]; less contrast: all nearer to the base."""
    second = base + contrast * (hsv(rng, (0, 1), (0, 0.85), (0.05, 1)) - base)
    third = base + contrast * (hsv(rng, (0, 1), (0, 0.85), (0.1, 0.9)) - base)
    angle = rng.uniform(0, math.pi)
    bend = warp * smooth_noise(rng, 4, 4)
    u = along(angle) + bend
    v = along(angle + math.pi / 2) - bend
    step = rng.uniform(5, 17)
    family = rng.integers(5)
    if family == 0:  # stripes, of two widths
        first, other = np.sin(u * (2 * math.pi / step)), np.sin(u * (math.pi / step) + 1)
    elif family == 1:  # checks
        first, other = np.sin(u * (2 * math.pi / step)), np.sin(v * (2 * math.pi / step))
    elif family == 2:  # dots
        first = np.sin(u * (2 * math.pi / step)) * np.sin(v * (2 * math.pi / step)) * 2 - 1
        other = -first - 1.2
    elif family == 3:  # print: blots of two sizes
        first, other = 4 * smooth_noise(rng, 12, 12) - 1, 4 * smooth_noise(rng, 20, 20) - 1.5
    else:  # zigzag
        tooth = np.abs((v / step) % 1 - 0.5) * step
        first, other = np.sin((u + tooth) * (4 * math.pi / step)), np.sin((u + tooth) * (math.pi / step))
    weight = np.clip(first * 2 + 0.5, 0, 1) * rng.uniform(0.5, 1)
    cloth = base * (1 - weight) + second * weight
    weight = np.clip(other * 2 - 0.3, 0, 1) * rng.uniform(0.2, 0.7)
    return cloth * (1 - weight) + third * weight


def draped(
    rng: np.random.Generator, style: Style, *, dark: bool, folds: float = 1.0, angle: float | None = None
) -> np.ndarray:
    """Draped cloth, [3,112,112]: plain weave in style "a"; pattern or twill in style "b"."""
    colour = _cloth_colour(rng, style, dark)
    shade = shading(rng, folds, angle)
    if style == "a":
        return lit(colour, shade + _weave(rng) + grain(rng, 0.03), rng.uniform(15, 55))
    if rng.random() < 0.7:
        contrast = rng.uniform(0.15, 0.6) if dark else rng.uniform(0.4, 1)
        return lit(pattern(rng, colour, contrast=contrast), shade + grain(rng, 0.04), rng.uniform(8, 25))
    twill = np.sin((along(rng.uniform(0.6, 1.0)) + 2 * smooth_noise(rng, 5, 5)) * rng.uniform(1.2, 2.0))
    return lit(colour, shade + rng.uniform(0.1, 0.3) * twill, rng.uniform(15, 45))


_SKIN = np.array([(246, 214, 190), (226, 180, 148), (192, 138, 104), (140, 92, 64), (84, 54, 40)], np.float64)


def skin_colour(tone: float) -> np.ndarray:
    """A skin colour, RGB float64 [3] in 0..255, from light (tone 0) to dark (tone 1)."""
    place = np.clip(tone, 0, 1) * (len(_SKIN) - 1)
    return np.array([np.interp(place, range(len(_SKIN)), _SKIN[:, channel]) for channel in range(3)])
