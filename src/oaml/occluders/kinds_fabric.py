"""Niqab, mask and scarf."""

from __future__ import annotations

import math

import numpy as np

from oaml.occluders.canvas import (
    MID,
    Canvas,
    Style,
    Y,
    along,
    blurred,
    circle,
    curve,
    filled,
    mirrored,
    moved,
    pose,
    stroked,
)
from oaml.occluders.texture import draped, grain, hsv, lit, pattern, shading, smooth_noise


def head_cloth(rng: np.random.Generator) -> np.ndarray:
    """Outline of cloth that goes round the head and falls over the shoulders, beyond the crop."""
    top, side, flare = rng.uniform(-16, 3), rng.uniform(47, 60), rng.uniform(54, 75)
    half = [(14, top), (0.72 * side, top + 12), (side, 45), (side + 1, 75), (flare, 118), (flare, 150)]
    return curve(mirrored(half))


def niqab(rng: np.random.Generator, style: Style, canvas: Canvas) -> None:
    place = pose(rng)
    cloth = draped(rng, style, dark=True, angle=rng.normal(0.2, 0.5))
    rises, drops = ((6.5, 14), (5.5, 12)) if style == "a" else ((9, 15), (7, 13))
    rise, drop = rng.uniform(*rises), rng.uniform(*drops)
    width = rng.uniform(30, 43)
    arch, dip, slant = rng.uniform(-1, 5), rng.uniform(-3, 5), rng.normal(0, 1.2)
    upper, lower = 51.6 - rise, 51.6 + drop
    if style == "a":
        slit = [
            *((-width, 52 + slant), (-0.72 * width, upper + 0.55 * arch + 2), (-0.3 * width, upper)),
            *((0, upper - 0.3 * arch), (0.3 * width, upper), (0.72 * width, upper + 0.55 * arch + 2)),
            *((width, 52 - slant), (0.72 * width, lower - 1.5), (0.3 * width, lower)),
            *((0, lower + dip), (-0.3 * width, lower), (-0.72 * width, lower - 1.5)),
        ]
        hole = place(curve(moved(slit, MID, 0)))
    else:
        inner = width * rng.uniform(0.8, 1.05)
        slit = [
            *((-inner, upper + slant), (0, upper - 0.6 * arch), (inner, upper - slant), (width + 1, 52)),
            *((width - 3, lower - slant), (8, lower), (0, lower + 1.2 * dip), (-8, lower)),
            *((3 - width, lower + slant), (-width - 1, 52)),
        ]
        hole = place(moved(slit, MID, 0))
    head = place(head_cloth(rng))
    shape = rng.random()
    if shape < 0.72:
        alpha = filled([head], [hole])
    else:  # a veil tied across the nose: the forehead shows, with a head scarf above it or hair
        ends = rng.uniform(40, 52)
        edge = [(-60, ends), (-30, lower - 2), (0, lower + min(dip, 2)), (30, lower - 2), (60, ends)]
        line = moved(edge, MID, 0)
        line = curve(line, closed=False) if style == "a" else line
        veil = place(np.concatenate([line, [[130, 150], [-18, 150]]]))
        alpha = filled([veil])
        if shape < 0.93:
            brow = rng.uniform(14, 34)
            face = mirrored([(12, brow - 3), (30, brow + 3), (44, brow + 26), (43, 75), (30, 140)])
            hood = filled([head], [place(curve(face) if style == "a" else face)])
            shadow = blurred(hood, 3) * 0.8
            canvas.add(hood, cloth * 0.85 if rng.random() < 0.6 else draped(rng, style, dark=True))
            cloth = cloth * (1 - 0.35 * shadow * (Y < 60))
        hole = place(line)
    canvas.add(alpha, cloth)
    inside = blurred(alpha, 2.5)
    canvas.paint(np.clip(1.0 - inside, 0, 1) * 0.5, 0.0)  # the edge turns away from the light
    if shape < 0.72 or style == "b":
        trim = cloth * 0.55 + 25 if style == "a" else hsv(rng, (0, 1), (0, 0.8), (0.1, 1))
        for offset in (0.0, 2.2) if style == "b" and rng.random() < 0.6 else (0.7,):
            canvas.paint(
                stroked([moved(hole, 0, offset)], rng.uniform(0.7, 1.8), closed=shape < 0.72) * 0.7, trim
            )
    if style == "b" and shape < 0.72 and rng.random() < 0.25:
        cord = place([(MID, upper - 6), (MID + rng.normal(0, 1), lower + 8)])
        canvas.add(stroked([cord], rng.uniform(1.2, 2.5)), cloth * 0.8)


def mask(rng: np.random.Generator, style: Style, canvas: Canvas) -> None:
    place = pose(rng, turn=4.0)
    top, wing, side = rng.uniform(54, 64), rng.uniform(60, 68), rng.uniform(36, 46)
    chin, low = rng.uniform(108, 120), rng.uniform(90, 102)
    jaw = side * rng.uniform(0.72, 0.95)
    ear = rng.uniform(47, 56)
    pale = rng.random() < 0.75
    strap = hsv(rng, (0, 1), (0, 0.15), (0.7, 1)) if pale else hsv(rng, (0, 1), (0, 0.9), (0, 0.9))
    shade = shading(rng, 0.45)
    seams: list[np.ndarray] = []
    if style == "a":
        rim = [(7, top), (22, top + 5), (side, wing), (side + 2, 80), (jaw, low), (20, chin - 2), (7, chin)]
        outline = place(curve(mirrored(rim)))
        ends = [
            ((side, wing + 1), (ear, wing - rng.uniform(2, 12))),
            ((jaw, low), (ear, rng.uniform(74, 90))),
        ]
        if rng.random() < 0.6:  # medical: pleats, pale
            hues = ((0.5, 0.58), (0.25, 0.5), (0.9, 1.0), (0, 1))
            tint = int(rng.choice(4, p=[0.5, 0.15, 0.1, 0.25]))
            colour = hsv(rng, hues[tint], (0.0, 0.12) if tint == 3 else (0.1, 0.45), (0.72, 1.0))
            if rng.random() < 0.12:
                colour = hsv(rng, (0, 1), (0, 0.1), (0.08, 0.2))
            bow = rng.uniform(1, 6)
            seams = [
                place(curve([(8, y - bow), (MID, y + bow), (104, y - bow)], closed=False))
                for y in (75, 84, 93)
            ]
            texture = lit(colour, shade + grain(rng, 0.015), 6)
        else:  # cloth: one seam down the middle
            texture = draped(rng, "a", dark=rng.random() < 0.4, folds=0.4)
            seams = [place(curve([(MID, top), (MID + 1, 80), (MID, chin)], closed=False))]
    else:
        ends = [
            ((side - 1, wing + 2), (ear, rng.uniform(38, 54))),
            ((jaw, low - 3), (ear, rng.uniform(84, 98))),
        ]
        family = rng.integers(3)
        bold = rng.random() < 0.5
        colour = (
            hsv(rng, (0, 1), (0, 0.7), (0.15, 1)) if bold else hsv(rng, (0.1, 0.16), (0, 0.12), (0.75, 1))
        )
        if family == 0:  # folded in the middle, two flat halves
            rim = [(1, top - 4), (side, wing + 2), (jaw + 2, low), (1, chin + 2)]
            right = along(rng.normal(0, 0.05)) > MID + rng.normal(0, 4)
            tilt = np.where(right, 1.0, -1.0).astype(np.float32)
            texture = lit(colour, shade + blurred(tilt, 0.8) * rng.uniform(0.04, 0.15) + grain(rng, 0.02), 8)
            seams = [place([(14, wing + 8), (40, wing + 13)]), place([(98, wing + 8), (72, wing + 13)])]
        elif family == 1:  # duckbill: a beak with an edge across
            beak = rng.uniform(80, 92)
            rim = [
                (6, top),
                (24, top + 6),
                (side - 3, wing + 3),
                (side - 6, beak),
                (26, chin - 3),
                (20, chin),
            ]
            fall = np.where(beak < Y, -1.0, 1.0).astype(np.float32)
            texture = lit(colour, shade + blurred(fall, 0.8) * rng.uniform(0.06, 0.16) + grain(rng, 0.02), 8)
            seams = [place([(MID - side + 6, beak), (MID + side - 6, beak)])]
        else:
            rim = [(2, top - 3), (26, top + 7), (side, wing), (side - 1, low - 6), (jaw, low + 2), (16, chin)]
            texture = lit(pattern(rng, colour, 3), shade, 12)
        outline = place(mirrored(rim))
    straps = [place([(MID + s * x, y) for x, y in line]) for s in (-1, 1) for line in ends]
    canvas.add(stroked(straps, rng.uniform(0.9, 2.4)), strap * rng.uniform(0.75, 1))
    canvas.add(filled([outline]), texture)
    canvas.paint(np.clip(1 - blurred(canvas.alpha, 2.5), 0, 1) * 0.4, texture * 0.3)
    hem = blurred(stroked([outline], 3.0, closed=True), 0.6)
    canvas.paint(hem * rng.uniform(0, 0.35), texture * 1.15 + 8)
    if seams:
        rims = stroked([moved(s, 0, 1.2) for s in seams], 1.2)
        canvas.paint(rims * 0.4, np.minimum(texture * 1.15 + 12, 255))
        canvas.paint(blurred(stroked(seams, 1.3), 0.6) * rng.uniform(0.25, 0.6), texture * 0.6)
    if style == "b" and rng.random() < 0.3:
        middle = place([(MID + rng.choice([-20, 0, 20]), rng.uniform(82, 94))])
        round_valve = middle + rng.uniform(5, 8) * circle()
        valve = hsv(rng, (0, 1), (0, 0.2), (0.1, 1))
        canvas.paint(filled([moved(round_valve, 0.8, 1.2)]) * 0.4, 0.0)
        canvas.paint(filled([round_valve]), lit(valve, 0.1 * np.sin(along(rng.uniform(0, 3)) * 2)))


def scarf(rng: np.random.Generator, style: Style, canvas: Canvas) -> None:
    place = pose(rng)
    edge = rng.uniform(60, 84)
    ends = edge - rng.uniform(-2, 16)
    count = int(rng.integers(1, 4))
    hooded = rng.random() < 0.4
    dark = bool(rng.random() < 0.3)
    angle = math.pi / 2 + rng.normal(0, 0.25)
    if hooded:
        brow, side = rng.uniform(8, 30), rng.uniform(38, 46)
        face = mirrored([(12, brow - 3), (30, brow + 4), (side, brow + 26), (side - 1, 78), (28, 140)])
        alpha = filled([place(head_cloth(rng))], [place(curve(face) if style == "a" else face)])
        canvas.add(alpha, draped(rng, style, dark=dark))
        canvas.paint(np.clip(1 - blurred(alpha, 3), 0, 1) * 0.6, 0.0)
    reach = rng.uniform(46, 66)
    cloth = draped(rng, style, dark=dark, angle=angle)
    ribs = 2 * math.pi / rng.uniform(3, 8)
    for layer in range(count):  # each turn of the scarf lies on the one above it
        y = edge + layer * rng.uniform(12, 22)
        sag, tilt = rng.uniform(-4, 6), rng.normal(0, 3)
        line = [
            (-reach, ends + layer * 12 + tilt),
            (-28, y - 1 + tilt / 2),
            (0, y + sag),
            (28, y - 1 - tilt / 2),
            (reach, ends + layer * 12 - tilt),
        ]
        points = moved(line, MID, 0)
        if style == "a":
            points = curve(points + np.stack([np.zeros(5), rng.normal(0, 1.2, 5)], axis=1), closed=False)
        outline = place(np.concatenate([points, [[MID + reach + 6, 150], [MID - reach - 6, 150]]]))
        alpha = filled([outline])
        piece = cloth * rng.uniform(0.85, 1.1)
        if style == "a" and layer == 0 and rng.random() < 0.5:
            knit = np.sin(along(angle + math.pi / 2) * ribs + 2 * smooth_noise(rng, 4, 4))
            cloth = lit(cloth, knit * rng.uniform(0.1, 0.35), 10)
            piece = cloth
        canvas.add(blurred(alpha, 0.5) if style == "a" else alpha, piece)
        # Darkest just below the edge it tucks under, and a lighter rim on top.
        canvas.paint(np.clip(1 - blurred(alpha, 4), 0, 1) * alpha * 0.9, piece * 0.4)
        canvas.paint(stroked([moved(place(points), 0, 0.8)], 1.4) * 0.45, np.minimum(piece * 1.25 + 12, 255))
        if style == "b" and rng.random() < 0.5:
            canvas.paint(
                stroked([moved(place(points), 0, rng.uniform(3, 6))], rng.uniform(1, 3)),
                hsv(rng, (0, 1), (0, 0.8), (0.1, 1)),
            )
