"""The five landmarks of a face laid on the standard landmarks of a 112x112 face, and the face cut out by them."""

from __future__ import annotations

import numpy as np

from oaml.support.files import FACE_SIZE

STANDARD_LANDMARKS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Where the five landmarks lie on an aligned face, in pixels (Deng et al., 2019): eyes, nose, mouth corners."""


def similarity(landmarks: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Rotation, scale and shift that bring landmarks closest to the standard ones, by weighted least squares (Umeyama, 1991).

    In the plane, with points as complex numbers, a similarity without reflection is `z -> a*z + b`, and the best one has a
    closed form.

    Args:
        landmarks: [5,2], not all in one place.
        weights: [5], at least 0, two of them above 0; by default all the same.

    Returns:
        float64 [2,3], from pixels of the photograph to pixels of the aligned face.
    """
    share = np.ones(len(landmarks)) if weights is None else np.asarray(weights, np.float64)
    share = share / share.sum()
    z, goal = landmarks @ (1, 1j), STANDARD_LANDMARKS @ (1, 1j)
    z_mean, goal_mean = (share * z).sum(), (share * goal).sum()
    centred = z - z_mean
    a = (share * centred.conj() * (goal - goal_mean)).sum() / (share * abs(centred) ** 2).sum()
    b = goal_mean - a * z_mean
    return as_matrix(a, b)


def as_matrix(a: complex, b: complex) -> np.ndarray:
    """The similarity `z -> a*z + b` of points as complex numbers, float64 [2,3]."""
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def warp(photograph: np.ndarray, matrix: np.ndarray, size: int = FACE_SIZE) -> np.ndarray:
    """What lies beneath a square of a photograph, black where the photograph ends, as published backbones were trained.

    Only that part of the photograph is touched, so that it may have any size.

    Args:
        photograph: uint8 RGB [H,W,3].
        matrix: float64 [2,3] from pixels of the photograph to pixels of the square.
        size: of the square.

    Returns:
        uint8 RGB [size,size,3]; by default the aligned face.
    """
    import cv2

    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    shrink = max(1, int(1 / scale))
    back = cv2.invertAffineTransform(matrix)
    corners = np.array([(0, 0), (size, 0), (0, size), (size, size)]) @ back[:, :2].T + back[:, 2]
    # the part that the square sees, with room for what is interpolated, from a multiple of `shrink` on
    ends = np.array(photograph.shape[1::-1])
    low = np.clip(np.floor(corners.min(0) / shrink - 2) * shrink, 0, ends).astype(int)
    high = np.clip(np.ceil(corners.max(0) / shrink + 2) * shrink, 0, ends).astype(int)
    part = photograph[low[1] : high[1], low[0] : high[0]]
    if part.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    matrix = np.column_stack([matrix[:, :2], matrix[:, :2] @ low + matrix[:, 2]])
    if shrink > 1:  # average first: the warp looks at four pixels only
        rows, columns = (-side % shrink for side in part.shape[:2])
        part = cv2.copyMakeBorder(part, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
        part = cv2.resize(
            part, (part.shape[1] // shrink, part.shape[0] // shrink), interpolation=cv2.INTER_AREA
        )
        # pixel x of the small image is centred on shrink*x + (shrink - 1)/2 of the large one
        matrix = np.column_stack(
            [matrix[:, :2] * shrink, matrix[:, :2].sum(1) * (shrink - 1) / 2 + matrix[:, 2]]
        )
    return cv2.warpAffine(part, matrix, (size, size), flags=cv2.INTER_LINEAR)
