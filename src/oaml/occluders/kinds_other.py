"""Sunglasses, hand and patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from oaml.occluders.canvas import (
    MID,
    TWICE,
    Canvas,
    Style,
    X,
    Y,
    along,
    averaged_down,
    blurred,
    circle,
    curve,
    filled,
    fixed_point,
    mirrored,
    moved,
    pose,
    stroked,
)
from oaml.occluders.texture import draped, grain, hsv, lit, pattern, skin_colour, smooth_noise
from oaml.support.files import FACE_SIZE

_EYES = np.array([[38.3, 51.7], [73.5, 51.5]])


def sunglasses(rng: np.random.Generator, style: Style, canvas: Canvas) -> None:
    place = pose(rng, 0.7)
    w, h, sink = rng.uniform(15, 19), rng.uniform(11, 16), rng.uniform(0, 4)
    apart = max(0.0, w + rng.uniform(1.2, 4) - 17.6)
    family = rng.integers(3) if style == "b" else -1
    h *= 1.15 if style == "b" else 1.0
    if style == "a":
        power = rng.uniform(0.6, 1.0)  # 1 is an ellipse, less is squarer
        round_ = circle()
        unit = np.sign(round_) * np.abs(round_) ** power
        unit[:, 0] *= 1 - rng.uniform(0, 0.15) * unit[:, 1]
    elif family == 0:  # teardrop
        upper = [(-0.85, -0.75), (0, -0.9), (0.95, -0.8), (1.05, -0.1)]
        unit = curve([*upper, (0.6, 0.9), (0, 1.1), (-0.6, 0.6), (-0.95, -0.2)])
    else:  # angular, the outer corner drawn up
        up = rng.uniform(-1.35, -0.7)
        unit = np.array(
            [(-0.9, -0.75), (0.3, -0.9), (1.15, up), (1.0, 0.1), (0.75, 0.85), (-0.55, 0.95), (-0.9, 0.3)]
        )
    sides = zip((-1, 1), _EYES, strict=True)
    outlines = [place(unit * (sign * w, h) + eye + (sign * apart, sink)) for sign, eye in sides]
    if family == 2:  # one piece across both eyes
        half = w + 17.6 + apart
        brow, base = 51.6 + sink - h, 51.6 + sink + h
        upper = [(8, brow), (half * 0.7, brow - 1), (half, brow + 6)]
        outlines = [place(mirrored([*upper, (half * 0.85, base - 2), (18, base), (5, base - 0.8 * h)]))]
    alpha = np.minimum(filled(outlines), 1)
    opacity = rng.uniform(0.85, 1.0) if rng.random() < 0.6 else 1.0
    down = np.clip((Y - (51.6 + sink - h)) / (2 * h), 0, 1)
    if style == "a":
        tint = hsv(rng, (0, 1), (0, 0.35), (0.02, 0.22))
        lens = tint * (1 + rng.uniform(0, 1.5) * down)
    else:
        one, two = hsv(rng, (0, 1), (0.2, 0.9), (0.1, 0.9)), hsv(rng, (0, 1), (0.2, 0.9), (0.05, 0.5))
        lens = one * (1 - down) + two * down
    lens = lens + 25 * np.maximum(smooth_noise(rng, 6, 8), 0)
    dark = rng.random() < 0.65
    frame = hsv(rng, (0, 1), (0, 0.3), (0.02, 0.2)) if dark else hsv(rng, (0, 1), (0.2, 0.8), (0.2, 0.9))
    thick = rng.uniform(0.8, 3.2) if style == "a" else rng.uniform(0.6, 2.2)
    ear = rng.uniform(46, 56)
    outer, height = 17.6 + apart + w * 0.95, 51.6 + sink - h * rng.uniform(0.2, 0.7)
    arms = [place([(MID + s * outer, height), (MID + s * ear, height - rng.uniform(-1, 3))]) for s in (-1, 1)]
    canvas.add(stroked(arms, rng.uniform(1.5, 4.5)), frame)
    if family != 2:
        nose = 17.6 + apart - w * 0.9
        rise = 51.6 + sink - h * rng.uniform(0.1, 0.6)
        bridge = curve(
            [(MID - nose, rise), (MID, rise - rng.uniform(0.5, 3)), (MID + nose, rise)], closed=False
        )
        canvas.add(stroked([place(bridge)], max(1.5, thick)), frame)
        if style == "b" and rng.random() < 0.5:  # a second bar above
            canvas.add(stroked([place(moved(bridge, 0, -0.35 * h))], 1.2), frame)
    canvas.add(alpha * opacity, lens)
    if rng.random() < 0.7:
        angle, at, width = rng.uniform(0.4, 1.2), rng.uniform(-12, 12), rng.uniform(1.5, 7)
        for eye in _EYES:  # both lenses mirror the same window
            offset = np.abs(along(angle) - (math.cos(angle) * eye[0] + math.sin(angle) * eye[1]) - at)
            streak = np.clip((width - offset) / 1.5, 0, 1) * (np.abs(X - eye[0]) < 20) * alpha
            canvas.paint(streak * rng.uniform(0.08, 0.4), hsv(rng, (0, 1), (0, 0.2), (0.7, 1)))
    if family != 2 or rng.random() < 0.3:
        canvas.add(stroked(outlines, thick, closed=True), frame)
        canvas.paint(stroked([moved(o, -0.3, -0.5) for o in outlines], 0.6, closed=True) * 0.35, frame + 90)


def hand(rng: np.random.Generator, style: Style, canvas: Canvas) -> None:
    """Palm, four fingers and a thumb in units of the palm's width (fingers up), laid on the face."""
    targets = [(56, 90), (38, 54), (74, 54), (28, 78), (84, 78), (56, 72), (56, 96)]
    target = np.array(targets[int(rng.integers(len(targets)))]) + rng.normal(0, 5, 2)
    size = rng.uniform(33, 42)
    flip = rng.choice([-1.0, 1.0])
    # The arm comes from below or from the hand's own side, not out of the hair.
    turn = np.radians(flip * rng.uniform(-25, 105))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, sin], [-sin, cos]]) * size
    anchor = np.array([0, rng.uniform(-1.5, -0.6)])

    def place(points: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
        return (((np.asarray(points, np.float64) - anchor) * (-flip, 1)) @ matrix) + target

    back = style == "b" and rng.random() < 0.6
    spread = rng.uniform(0.2, 1.0) if style == "a" else rng.uniform(1.2, 3.2)
    bent = style == "b" and rng.random() < 0.35
    tone = rng.uniform(0, 1)
    colour = (skin_colour(tone) * rng.uniform(0.95, 1.05, 3)).astype(np.float32).reshape(3, 1, 1)
    if style == "b" and rng.random() < 0.25:
        colour = hsv(rng, (0, 1), (0, 0.7), (0.08, 0.95))

    side = FACE_SIZE * TWICE
    shape, light = np.zeros((side, side), np.uint8), np.full((side, side), 128, np.uint8)

    def tube(points: np.ndarray, width: float) -> None:
        # Rings from wide and dark to narrow and light, blurred later, read as a round finger with a crease.
        fixed = fixed_point(place(points))
        full = width * size * TWICE
        cv2.polylines(shape, [fixed], False, 255, max(1, round(full)), cv2.LINE_AA, 4)
        for part, level in ((1.0, 70), (0.86, 112), (0.62, 140), (0.34, 156)):
            cv2.polylines(light, [fixed], False, level, max(1, round(full * part)), cv2.LINE_AA, 4)

    palm = [
        *((-0.5, -0.1), (-0.53, -0.5), (-0.5, -0.9), (0, -1.04), (0.5, -0.9), (0.53, -0.5)),
        *((0.4, 0.05), (0.34, 0.6), (0.36, 5), (-0.36, 5), (-0.34, 0.6)),
    ]
    outline = fixed_point(place(curve(palm)))
    cv2.fillPoly(shape, [outline], 255, cv2.LINE_AA, 4)
    cv2.fillPoly(light, [outline], 134, cv2.LINE_AA, 4)
    for width, level in ((14, 116), (7, 96)):
        cv2.polylines(light, [outline], True, level, width, cv2.LINE_AA, 4)
    nails = []
    fan, curl = rng.normal(0, 3), rng.normal(0, 9)
    for base, length, angle in ((-0.37, 0.84, -7), (-0.125, 1.0, -2), (0.125, 0.94, 3), (0.36, 0.74, 9)):
        length *= rng.uniform(0.92, 1.06) * (rng.uniform(0.35, 0.6) if bent else 1)
        first = np.radians(angle * spread + fan + rng.normal(0, 1.5))
        second = first + np.radians(curl * rng.uniform(0.6, 1.4))
        start = np.array([base, -0.86])
        knuckle = start + (0.12 + 0.5 * length) * np.array([np.sin(first), -np.cos(first)])
        tip = knuckle + 0.5 * length * np.array([np.sin(second), -np.cos(second)])
        tube(np.array([start, knuckle, tip]), rng.uniform(0.225, 0.26))
        nails.append((tip, second))
    thumb = np.radians(rng.uniform(-60, -15))
    start = np.array([-0.36, -0.25])
    joint = start + 0.45 * np.array([np.sin(thumb), -np.cos(thumb)])
    bend = thumb + np.radians(rng.uniform(-10, 35))
    tip = joint + 0.36 * np.array([np.sin(bend), -np.cos(bend)])
    tube(np.array([start, joint, tip]), rng.uniform(0.27, 0.31))

    shade = (averaged_down(light) * 255 - 128) / 128
    shade = blurred(shade, 0.9) * rng.uniform(0.5, 0.9)
    direction = rng.uniform(0, 2 * math.pi)
    across = along(direction) - math.cos(direction) * target[0] - math.sin(direction) * target[1]
    shade += rng.uniform(0, 0.25) * across / 56
    shade += 0.06 * smooth_noise(rng, 9, 9) + grain(rng, 0.02)
    skin = lit(colour, shade, 5)
    skin[0] += 9 * np.maximum(smooth_noise(rng, 7, 7), 0) * (1 - tone)
    canvas.add(averaged_down(shape), skin)
    if back and not bent:
        for tip, angle in nails:
            axis = np.array([np.sin(angle), -np.cos(angle)])
            nail = tip + 0.02 * axis + circle(12) * 0.075 + np.outer(circle(12) @ axis, axis) * 0.03
            canvas.paint(filled([place(nail)]) * 0.75, np.minimum(colour * 1.15 + 25, 255))
    elif not back:
        creases = [
            curve([(-0.42, -0.62), (-0.1, -0.66), (0.3, -0.78)], closed=False),
            curve([(-0.4, -0.5), (0, -0.45), (0.35, -0.25)], closed=False),
        ]
        canvas.paint(blurred(stroked([place(c) for c in creases], 0.9), 0.5) * 0.35, colour * 0.45)
    if style == "b" and rng.random() < 0.6:
        cuff = rng.uniform(0.15, 0.6)
        sleeve = place([(-0.46, cuff), (0.46, cuff), (0.62, 5), (-0.62, 5)])
        canvas.add(filled([sleeve]), draped(rng, style, dark=False))


def patch(rng: np.random.Generator, style: Style, canvas: Canvas) -> None:
    if style == "a":
        square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
        unit = square if rng.random() < 0.5 else circle()
    else:
        corners = int(rng.integers(3, 8))
        angle = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2 * math.pi / corners)
        unit = np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(0.65, 1.15, (corners, 1))
    stretch, turn = rng.uniform(0.7, 1.4), rng.uniform(0, math.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    shape = (unit * (stretch, 1 / stretch)) @ np.array([[cos, sin], [-sin, cos]])
    area = cv2.contourArea(shape.astype(np.float32))
    share = rng.uniform(0.05, 0.45) if style == "a" else rng.uniform(0.04, 0.24)
    shape *= np.sqrt(share * FACE_SIZE**2 / area)
    low, high = -shape.min(axis=0), FACE_SIZE - 1 - shape.max(axis=0)
    shape += np.where(low < high, rng.uniform(np.minimum(low, high), np.maximum(low, high)), (low + high) / 2)
    colour = hsv(rng, (0, 1), (0, 1), (0, 1))
    if style == "b":
        texture = lit(pattern(rng, colour, rng.uniform(0, 12)), rng.uniform(0, 0.3) * smooth_noise(rng, 3, 3))
    elif rng.random() < 0.4:
        texture = lit(colour, 0.25 * smooth_noise(rng, 3, 3) + grain(rng, 0.03), 20)
    else:
        cells = rng.uniform(0, 255, (*rng.integers(2, 28, 2), 3)).astype(np.float32)
        noise = cv2.resize(cells, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
        texture = colour + (noise - colour) * rng.uniform(0.3, 1)
    canvas.add(filled([shape]), np.clip(texture, 0, 255))
