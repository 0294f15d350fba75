"""The joint embedding, which is the visibility-masked embedding of a pair: two faces are compared by the cells that both show.

Every output layer of `net.py` is affine in the last feature map, so an embedding is a sum over cells: e = sum_r A[r]. For a
pair, each cell is weighted by how much of it both faces show, and the two weighted sums are compared by cosine. Nearest
published idea: Song et al., Occlusion Robust Face Recognition Based on Mask Learning with Pairwise Differential Siamese
Network (PDSN), ICCV 2019 (https://arxiv.org/abs/1908.06290).

Shapes: B faces, P probes, G gallery faces, N pairs; R = 7*7 cells, of transformers 12*12; E embedding size. A (the per-cell
embeddings) is [B,R,E]. Visibility is [B,1,h,w], 1 = visible, h x w 7x7, 14x14 or 12x12. Scores are logits: higher is more similar.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oaml.kernels import native
from oaml.kernels.best_matches import spread
from oaml.visibility import JOINT_GRIDS, cell_visibility, overlap_of, unseen_and_overlap

KNOTS = 21  # of the offset, evenly over shares from 0 to 1
TRACES = 24
"""Directions of the plain embedding in which `Fusion` looks for what was done to both pictures."""
BLOCK_FACES = 96  # on either side, that a thread compares at a time in compiled loops
CHUNK_BYTES = 2 << 20
"""Of the weighted sums that `match` holds at once: they are read several times, from the cache."""


class Compared(NamedTuple):
    """What comparing the cells that both faces show gives, each [P,G] or [N]."""

    cosine: Tensor
    """Cosine in [-1,1]; 0 where nothing is visible in common."""
    unseen: Tensor
    """Share of the face that the two do not both show, in [0,1]."""
    overlap: Tensor
    """Of that share, how much both hide, in [0,1]: 0 where one face is unoccluded, 1 where occluders hide the same part of both."""


class CellShares(NamedTuple):
    """What each cell adds to the cosine of one pair, [7,7] each (of transformers [12,12])."""

    share: Tensor
    """What each cell adds to the cosine; the sum is the cosine."""
    weight: Tensor
    """How much of the cell both faces show."""
    cosine: float


class Joint(nn.Module):
    """Score of what both faces show: the cosine of the weighted sums, and a confidence that falls as less is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.confidence = nn.Parameter(torch.tensor([-6.0, 0.0, 0.0, 0.0]))  # k0 .. k3

    def compare(
        self, probe: Tensor, gallery: Tensor, probe_visibility: Tensor, gallery_visibility: Tensor
    ) -> Compared:
        """Every probe against every gallery face: A [P,R,E], [G,R,E], visibility [P,1,h,w], [G,1,h,w] -> [P,G] each.

        With visibility 1 everywhere the cosine is that of the two embeddings. Symmetric in the two faces.
        """
        with torch.autocast(probe.device.type, enabled=False):
            (a, v_p), (b, v_g) = _both_ready(probe, gallery, probe_visibility, gallery_visibility)
            return _compare(a * v_p[..., None], v_p, b * v_g[..., None], v_g)

    def hidden(self, probe_visibility: Tensor, gallery_visibility: Tensor) -> tuple[Tensor, Tensor]:
        """`unseen` and `overlap` of `Compared` from visibility alone: [P,1,h,w], [G,1,h,w] -> [P,G] each."""
        return unseen_and_overlap(cell_visibility(probe_visibility), cell_visibility(gallery_visibility))

    def compare_pairs(self, a: Tensor, b: Tensor, visibility_a: Tensor, visibility_b: Tensor) -> Compared:
        """Row i of a against row i of b: A [N,R,E] twice, visibility [N,1,h,w] twice -> [N] each."""
        with torch.autocast(a.device.type, enabled=False):
            (a, v_a), (b, v_b) = _ready(a, visibility_a), _ready(b, visibility_b)
            if a.shape != b.shape:  # one face would otherwise be compared with every face of the other side
                raise ValueError(
                    f"per-cell embeddings are {tuple(a.shape)} and {tuple(b.shape)}; pairs are compared row by row"
                )
            weight = (v_a * v_b)[..., None]
            unseen, hidden = 1 - weight.mean((1, 2)), ((1 - v_a) * (1 - v_b)).mean(1)
            left, right = ((weight.transpose(1, 2) @ x)[:, 0] for x in (a, b))
            cosine = _cosine(left, right)
            return Compared(cosine, unseen, overlap_of(hidden, unseen))

    def logit(self, cosine: Tensor, unseen: Tensor) -> Tensor:
        """Cosine and unseen share, of any shape -> logit of that shape."""
        k0, k1, k2, k3 = self.confidence
        return self.log_scale.exp() * cosine * (1 + k1 * unseen) + k0 + k2 * unseen + k3 * unseen**2

    def forward(
        self, probe: Tensor, gallery: Tensor, probe_visibility: Tensor, gallery_visibility: Tensor
    ) -> Tensor:
        """A [P,R,E], [G,R,E], visibility [P,1,h,w], [G,1,h,w] -> logits [P,G]; see `compare`."""
        compared = self.compare(probe, gallery, probe_visibility, gallery_visibility)
        return self.logit(compared.cosine, compared.unseen)

    @torch.inference_mode()
    def match(
        self,
        probe: Tensor,
        gallery: Tensor,
        probe_visibility: Tensor,
        gallery_visibility: Tensor,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Compared:
        """As `compare`, without gradients and in bounded memory.

        The compiled loops hold nothing besides the result. Without them it goes block by block: each holds weighted sums of about
        `chunk_bytes`, and there is a weighted copy of all per-cell embeddings.
        """
        with torch.autocast(probe.device.type, enabled=False):
            (a, v_p), (b, v_g) = _both_ready(probe, gallery, probe_visibility, gallery_visibility)
            if native.compares(a) and b.dtype == torch.float32:
                return Compared(_compiled_cosine(a, v_p, b, v_g), *unseen_and_overlap(v_p, v_g))
            block = max(1, min(int((chunk_bytes / (2 * 4 * a.shape[2])) ** 0.5), 512))
            # fewer probes than gallery faces: more blocks for the threads to share
            few, many = max(1, block // 2), 2 * block
            columns = [(x * v[..., None], v) for x, v in zip(b.split(many), v_g.split(many), strict=True)]

            def row(faces: tuple[Tensor, Tensor]) -> Compared:
                x, v = faces
                weighted = x * v[..., None]
                parts = [_compare(weighted, v, *column) for column in columns]
                return Compared(*(torch.cat(field, 1) for field in zip(*parts, strict=True)))

            rows = spread(row, zip(a.split(few), v_p.split(few), strict=True), a.device)
            return Compared(*(torch.cat(field) for field in zip(*rows, strict=True)))

    @torch.inference_mode()
    def explain(self, a: Tensor, b: Tensor, visibility_a: Tensor, visibility_b: Tensor) -> CellShares:
        """What each cell adds to the cosine of one pair: A [R,E] twice, visibility [1,h,w] twice.

        The dot product of the two sums has a term for each cell of one face with each cell of the other. A cell's share is half of
        all terms of that cell in either face, so that shares don't depend on the order of the faces and add up to the cosine.
        """
        (a, v_a), (b, v_b) = _ready(a[None], visibility_a[None]), _ready(b[None], visibility_b[None])
        weight = (v_a * v_b)[0]
        a, b = a[0] * weight[:, None], b[0] * weight[:, None]
        left, right = a.sum(0), b.sum(0)
        share = (a @ right + b @ left) / 2 / (left.norm() * right.norm()).clamp_min(1e-6)
        grid = JOINT_GRIDS[visibility_a.shape[1], visibility_a.shape[2]]
        return CellShares(share.view(grid), weight.view(grid), float(share.sum()))


class Fusion(nn.Module):
    """One logit from the joint embedding, QAConv and the plain cosine, calibrated so that one threshold fits every occlusion.

    It is the sum of the logits, less what impostor pairs score for other reasons than their faces. That is `offset`, by the share
    that the two don't both show; `overlap` where both hide the same part, in proportion to the cosine of the plain
    embeddings, which is then about the occluders; and `traces`, where both pictures were darkened, blurred, coarsened or hidden
    alike: how far both plain embeddings lie in a direction into which that moves any face, beyond `trace_floor`, where faces that
    are well seen end. All are fitted after training (`oaml.adaptation.calibration`), so that a threshold keeps its false-accept
    rate whatever is occluded.

    Args:
        embedding_size: of the plain embedding.
    """

    offset: Tensor
    overlap: Tensor
    traces: Tensor
    """[TRACES,E]; 0 until fitted."""
    trace_floor: Tensor
    """[TRACES], at least 0."""
    cosine_fade: Tensor
    """How fast the plain cosine's weight falls with the share that the two don't both show: 1, to nothing where nothing is shown;
    0, not at all, for a network whose plain embedding was taught to look past occluders."""
    lift: Tensor
    """The most that QAConv added to a held-out pair that a stored threshold accepts with QAConv and rejects without; infinite until
    fitted. `Model.fused_above` saves work by it."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.qaconv_weight = nn.Parameter(torch.tensor(1.0))
        self.cosine_weight = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("offset", torch.zeros(KNOTS))
        self.register_buffer("overlap", torch.zeros(()))
        self.register_buffer("traces", torch.zeros(TRACES, embedding_size))
        self.register_buffer("trace_floor", torch.zeros(TRACES))
        self.register_buffer("cosine_fade", torch.ones(()))
        self.register_buffer("lift", torch.tensor(torch.inf))

    def forward(
        self, joint: Tensor, qaconv: Tensor, cosine: Tensor, compared: Compared, alike: Tensor
    ) -> Tensor:
        """Logits, cosine of the plain embeddings, result of `Joint.compare` and what `traces_of` both faces have in common (the dot
        product of the two), all of one shape -> logit of that shape.

        The plain cosine is weighted by the share that both show, since plain embeddings hold the occluders too; see `cosine_fade`.
        """
        return self.without_qaconv(joint, cosine, compared, alike) + self.qaconv_weight * qaconv

    def without_qaconv(self, joint: Tensor, cosine: Tensor, compared: Compared, alike: Tensor) -> Tensor:
        """`forward` less the part of QAConv, which is nearly all of its cost."""
        return (
            joint
            + self.cosine_weight * (1 - self.cosine_fade * compared.unseen) * cosine
            - self.offset_at(compared.unseen)
            - self.overlap * compared.overlap * cosine.clamp_min(0)
            - alike
        )

    def traces_of(self, embedding: Tensor) -> Tensor:
        """Plain embeddings of unit length [N,E] -> [N,TRACES], at least 0: what was put there by what was done to the picture."""
        return (embedding.float() @ self.traces.T - self.trace_floor).relu()

    def uncorrected(self) -> None:
        """Set all corrections to those of a model that was never calibrated."""
        for correction in (self.offset, self.overlap, self.traces, self.trace_floor):
            correction.zero_()
        self.lift.fill_(torch.inf)

    def offset_at(self, unseen: Tensor) -> Tensor:
        """Offset of any share in [0,1], linear between the knots."""
        place = unseen.clamp(0, 1) * (KNOTS - 1)
        low = place.floor().clamp_max(KNOTS - 2)
        weight, low = place - low, low.long()
        return self.offset[low] * (1 - weight) + self.offset[low + 1] * weight


def _ready(cell_embeddings: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor]:
    weight = cell_visibility(visibility)
    if cell_embeddings.dim() != 3 or cell_embeddings.shape[:2] != weight.shape:
        faces, cells = weight.shape
        raise ValueError(
            f"per-cell embeddings are {tuple(cell_embeddings.shape)}, expected [{faces},{cells},E] as for the maps"
        )
    if cell_embeddings.dtype in (torch.float16, torch.bfloat16):
        cell_embeddings = cell_embeddings.float()
    return cell_embeddings, weight.to(cell_embeddings.dtype)


def _both_ready(
    probe: Tensor, gallery: Tensor, probe_visibility: Tensor, gallery_visibility: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    a, b = _ready(probe, probe_visibility), _ready(gallery, gallery_visibility)
    sizes = a[0].shape[2], b[0].shape[2]
    if sizes[0] != sizes[1]:
        raise ValueError(f"embeddings of {sizes[0]} and {sizes[1]} numbers can't be compared")
    return a, b


def _compare(a: Tensor, v_p: Tensor, b: Tensor, v_g: Tensor) -> Compared:
    """Per-cell embeddings times visibility [P,R,E], [G,R,E], visibility [P,R], [G,R] -> [P,G] each."""
    # sum_r V_p[r] V_g[r] A[r], for either face: [P,G,E]
    left, right = torch.matmul(v_g, a), torch.matmul(v_p, b).transpose(0, 1)
    return Compared(_cosine(left, right), *unseen_and_overlap(v_p, v_g))


def _compiled_cosine(a: Tensor, v_p: Tensor, b: Tensor, v_g: Tensor) -> Tensor:
    """A [P,R,E], [G,R,E], visibility [P,R], [G,R] -> [P,G]."""
    a, v_p, b, v_g = (x.contiguous() for x in (a, v_p, b, v_g))
    cosine = a.new_empty(len(a), len(b))

    def block(corner: tuple[int, int]) -> None:
        p, g = (slice(i, i + BLOCK_FACES) for i in corner)
        native.joint_cosine(a[p], v_p[p], b[g], v_g[g], cosine[p, g])

    corners = product(range(0, len(a), BLOCK_FACES), range(0, len(b), BLOCK_FACES))
    spread(block, corners, a.device)
    return cosine


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    lengths = left.norm(dim=-1) * right.norm(dim=-1)
    return (left * right).sum(-1) / lengths.clamp_min(1e-6)
