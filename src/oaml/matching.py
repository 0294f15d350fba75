"""Compare faces with numpy alone: templates from an exported network, scored as `oaml.model.Model` scores them.

A device that runs the network elsewhere, or in ONNX Runtime, needs neither torch nor the rest of this package:
`oaml export MODEL --out model.onnx` writes the network, and model.npz beside it with the numbers of both matchers, of the fused
score and the model's thresholds. This module reads the second file. It is plain and exact, and slower than the model itself where
millions of pairs are compared. The formulas are those of `oaml.qaconv` and `oaml.joint`, where their sources are named.

Shapes: P probes, G gallery faces; E embedding size; K = k*k cells of per-cell embeddings; C channels on h x w cells of QAConv, S of
a probe and R of a gallery face. Visibility is 1 where the face shows. Scores: higher is more similar.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

import numpy as np

from oaml.errors import OamlError

OUTPUTS: tuple[str, ...] = ("embedding", "norm", "visibility", "cell_embeddings", "local")
"""What an exported network says of a face, in this order."""
FORMAT = 1
"""Of the file of matchers; raised when an older reader would misread it."""
TAU, MIN_VISIBILITY = 0.3, 1e-3
"""How strongly QAConv prefers a visible partner, and the floor under the logarithm of that choice."""
GALLERY_AT_A_TIME = 256
"""Gallery faces that one probe is compared with at a time: their correlations take 2.5 MB on 7x7 cells."""
Faces = Mapping[str, np.ndarray]
"""Outputs of the network for some faces, by name (`OUTPUTS`)."""


class Compared(NamedTuple):
    """Scores of every probe with every gallery face, float64 [P,G] each."""

    fused: np.ndarray
    """The one to decide by: at least a threshold is the same person."""
    joint: np.ndarray
    qaconv: np.ndarray
    cosine: np.ndarray
    """Of the whole embeddings, as if nothing were occluded."""
    visible_both: np.ndarray
    """Share of the face that both show, in [0,1]. Below `Matcher.least_visible_both` nothing should be decided."""


class Matcher:
    """The matchers and thresholds of one model.

    Args:
        path: the .npz file that `oaml export` writes.

    Raises:
        OamlError: the file is missing, damaged or none of these.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        try:
            with np.load(path, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            raise OamlError(
                f"{path}: no such file; `oaml export MODEL --out model.onnx` writes model.npz"
            ) from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise OamlError(f"{path}: can't be read ({error}); export the model again") from error
        if int(values.get("format", -1)) != FORMAT:
            raise OamlError(f"{path}: holds no matchers that this version reads; export the model again")
        self._values = values
        self.model = str(values["model"])
        """Of which model: templates of another one can't be compared."""
        self.thresholds = {
            float(far): float(t) for far, t in zip(values["fars"], values["thresholds"], strict=True)
        }
        """False-accept rate -> the fused score from which on two faces are one person's."""
        self.least_visible_both = float(values["least_visible_both"])

    def compare(self, probes: Faces, gallery: Faces) -> Compared:
        """Every probe with every gallery face.

        Raises:
            OamlError: an output of the network is missing or has another shape.
        """
        for faces in (probes, gallery):
            self._check(faces)
        v_p, v_g = (_on_cells(faces) for faces in (probes, gallery))
        unseen = 1 - v_p @ v_g.T / v_p.shape[1]
        overlap = ((1 - v_p) @ (1 - v_g).T / v_p.shape[1]) / np.maximum(unseen, 0.05)
        cosine = _double(probes["embedding"]) @ _double(gallery["embedding"]).T
        joint = _logit(
            self._joint_cosine(probes, gallery, v_p, v_g),
            unseen,
            self._values["joint.log_scale"],
            self._values["joint.confidence"],
        )
        qaconv = np.empty_like(cosine)
        for p in range(len(cosine)):
            for start in range(0, cosine.shape[1], GALLERY_AT_A_TIME):
                some = slice(start, start + GALLERY_AT_A_TIME)
                qaconv[p, some] = self._qaconv(
                    *(_double(probes[name][p]) for name in ("local", "visibility")),
                    *(_double(gallery[name][some]) for name in ("local", "visibility")),
                )
        knots = self._values["fusion.offset"]
        offset = np.interp(np.clip(unseen, 0, 1), np.linspace(0, 1, len(knots)), knots)
        traces, floor = self._values["fusion.traces"], self._values["fusion.trace_floor"]
        alike = np.inner(
            *(np.maximum(_double(faces["embedding"]) @ traces.T - floor, 0) for faces in (probes, gallery))
        )
        fused = (
            joint
            + self._values["fusion.qaconv_weight"] * qaconv
            + self._values["fusion.cosine_weight"]
            * (1 - self._values["fusion.cosine_fade"] * unseen)
            * cosine
            - offset
            - self._values["fusion.overlap"] * overlap * np.maximum(cosine, 0)
            - alike
        )
        return Compared(fused, joint, qaconv, cosine, 1 - unseen)

    def _check(self, faces: Faces) -> None:
        missing = [name for name in OUTPUTS if name not in faces]
        if missing:
            raise OamlError(
                f"faces: without {', '.join(missing)}; name the outputs of the network: {', '.join(OUTPUTS)}"
            )
        count = len(faces["embedding"])
        for name, wanted in zip(OUTPUTS, self._values["shapes"], strict=True):
            shape = (count, *(int(size) for size in wanted if size))
            if faces[name].shape != shape:
                raise OamlError(
                    f"faces: {name} is {list(faces[name].shape)}, this model's is {list(shape)}; "
                    f"export network and matchers of one model"
                )

    def _joint_cosine(self, probes: Faces, gallery: Faces, v_p: np.ndarray, v_g: np.ndarray) -> np.ndarray:
        """Cosine [P,G] of the sums of per-cell embeddings, each weighted by what both faces show of the cell."""
        a, b = (_double(faces["cell_embeddings"]) for faces in (probes, gallery))
        left = np.einsum("gr,pre->pge", v_g, a * v_p[..., None])
        right = np.einsum("pr,gre->pge", v_p, b * v_g[..., None])
        lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
        return (left * right).sum(-1) / np.maximum(lengths, 1e-6)

    def _qaconv(
        self, probe: np.ndarray, visible_p: np.ndarray, gallery: np.ndarray, visible_g: np.ndarray
    ) -> np.ndarray:
        """Maps [C,h,w] and [G,C,h,w], visibility [1,h,w] and [G,1,h,w] -> logits [G]."""
        values, method = self._values, str(self._values["method"])
        p, g = probe.reshape(len(probe), -1), gallery.reshape(*gallery.shape[:2], -1)
        v_p, v_g = visible_p.reshape(-1), visible_g.reshape(len(gallery), -1)
        similarity = np.einsum("gcr,cs->grs", g, p)
        if method != "normalized":
            if method == "scaling":
                similarity = similarity * v_g[:, :, None] * v_p
            sides = (similarity.max(1), similarity.max(2))
            both = sum(_affine(side, values["qaconv.bn"]) @ values["qaconv.fc"] for side in sides)
            return _affine(both + 2 * values["qaconv.fc_bias"], values["qaconv.logit_bn"])
        similarity = similarity + values["qaconv.bias"]
        partner_s = (similarity + TAU * np.log(np.maximum(v_g, MIN_VISIBILITY))[:, :, None]).argmax(1)
        partner_r = (similarity + TAU * np.log(np.maximum(v_p, MIN_VISIBILITY))).argmax(2)
        best_s = np.take_along_axis(similarity, partner_s[:, None], 1)[:, 0]
        best_r = np.take_along_axis(similarity, partner_r[:, :, None], 2)[:, :, 0]
        weight = values["qaconv.cell_weight"]
        weight_s = weight * v_p * np.take_along_axis(v_g, partner_s, 1)
        weight_r = weight * v_g * v_p[partner_r]
        total = weight_s.sum(1) + weight_r.sum(1) + 1e-3
        local = ((weight_s * best_s).sum(1) + (weight_r * best_r).sum(1)) / total
        unseen = np.clip(1 - (weight * v_p * v_g).sum(1) / weight.sum(), 0, 1)
        return _logit(local, unseen, values["qaconv.log_scale"], values["qaconv.confidence"])


def _on_cells(faces: Faces) -> np.ndarray:
    """Visibility [B,1,h,w] -> float64 [B,K] on the cells of the per-cell embeddings; the mean of a square where it is finer."""
    visibility = _double(faces["visibility"])
    count, _, height, _ = visibility.shape
    side = round(faces["cell_embeddings"].shape[1] ** 0.5)
    step = height // side
    return visibility.reshape(count, side, step, side, step).mean((2, 4)).reshape(count, -1)


def _logit(similarity: np.ndarray, unseen: np.ndarray, log_scale: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.exp(log_scale) * similarity * (1 + k[1] * unseen) + k[0] + k[2] * unseen + k[3] * unseen**2


def _affine(x: np.ndarray, scale_and_shift: np.ndarray) -> np.ndarray:
    return x * scale_and_shift[0] + scale_and_shift[1]


def _double(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64)
