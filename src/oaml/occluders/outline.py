"""The outline of an occluder in a photograph, where only a coarse map of visibility is known."""

from __future__ import annotations

import cv2
import numpy as np

from oaml.occluders.canvas import MID, X, blurred
from oaml.occluders.cutout import FACE
from oaml.support.files import FACE_SIZE

SURE = 0.08
"""A pixel of less visibility is the occluder's."""
SHOWN = 0.7
"""One of more is not."""
REACH = 8
"""Pixels that the outline may lie outside of that of the map: a cell. Else a white mask runs out into a white wall."""
ROUNDS = 3
SMOOTH = 1.5
"""Pixels that the outline is smoothed by (standard deviation)."""
MOST_SKIN = 0.25
"""Of what is cut out, the share that may have the colour of the skin and is then taken for skin, such as a cheek in the loop of a
strap. Where more has it, the cloth itself has."""
SKIN_RANGE = (60, 10, 10)
"""What counts as the same colour: distance from the median of the face in L, a, b of 8 bits."""
CHEEK = 24
"""Pixels from the middle of the face from which on skin may show in a loop; nearer, it is a valve or a print."""
LEAST_PART = 60
"""Pixels that a part of an occluder has on the face at least; smaller ones are specks."""


def outline(image: np.ndarray, visibility: np.ndarray) -> tuple[np.ndarray, float]:
    """Draw the edge of an occluder where the colours change.

    A predicted map has cells of 8 pixels, so that its edge is a ramp that the face shines through. Here the pixels of which the map
    is sure are the samples of two mixtures of colours, and the others go to one or the other by graph cuts (GrabCut; Rother et al.,
    SIGGRAPH 2004). Parts that do not touch the face, such as the black beyond the edge of a turned photograph, are dropped, and
    holes are filled.

    Args:
        image: aligned face, uint8 RGB [112,112,3].
        visibility: predicted map [h,w] in [0,1].

    Returns:
        mask float32 [112,112] of 0 and 1, 1 where the face shows; and how well it agrees with the map: intersection over union of
        what the two hide, the map cut at .5. It is 0 where the map is sure of no pixel of an occluder.
    """
    seen = cv2.resize(visibility.astype(np.float32), (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_CUBIC)
    labels = np.full(seen.shape, cv2.GC_PR_BGD, np.uint8)
    labels[seen < 0.5] = cv2.GC_PR_FGD
    labels[seen < SURE] = cv2.GC_FGD
    hidden = (seen < 0.5).astype(np.uint8)
    near = cv2.dilate(hidden, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * REACH + 1,) * 2))
    labels[(seen > SHOWN) | (near == 0)] = cv2.GC_BGD
    cut = hidden
    if not (labels == cv2.GC_FGD).any():
        return (1 - hidden).astype(np.float32), 0.0
    if (labels == cv2.GC_BGD).any():
        cv2.setRNGSeed(0)  # the mixtures start at random: equal photographs shall give equal occluders
        bgr = np.ascontiguousarray(image[..., ::-1])
        mixtures = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(bgr, labels, None, *mixtures, ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
        cut = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    skin = _skin(image, seen) & cut
    if skin.sum() < MOST_SKIN * cut.sum():
        cut &= 1 - skin
    cut = _parts_on_the_face(cut)
    both, either = (cut & hidden).sum(), (cut | _parts_on_the_face(hidden)).sum()
    return (1 - cut).astype(np.float32), float(both / either) if either else 0.0


def _skin(image: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """1 where a pixel beside the mouth has about the colour of the visible face, uint8 [112,112]."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    face = lab[(seen > 0.9) & (FACE > 0.5)]
    if not len(face):
        return np.zeros(seen.shape, np.uint8)
    alike = (np.abs(lab - np.median(face, axis=0)) < SKIN_RANGE).all(2) & (np.abs(X - MID) > CHEEK)
    return cv2.morphologyEx(alike.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))


def _parts_on_the_face(cut: np.ndarray) -> np.ndarray:
    """Of the parts of a mask (1: occluder) those that lie on the face, smooth and without holes."""
    cut = (blurred(cut.astype(np.float32), SMOOTH) > 0.5).astype(np.uint8)
    _, parts = cv2.connectedComponents(cut, connectivity=4)
    sizes = np.bincount(parts.ravel(), weights=(FACE > 0.5).ravel())
    kept = sizes >= LEAST_PART
    kept[0] = False
    cut = kept[np.asarray(parts, int)].astype(np.uint8)
    _, gaps, facts, _ = cv2.connectedComponentsWithStats(1 - cut, connectivity=4)
    small = facts[:, cv2.CC_STAT_AREA] < LEAST_PART
    small[0] = False
    cut[small[np.asarray(gaps, int)]] = 1
    return cut
