"""QAConv: compare two feature maps cell by cell, weighting every correlation by the visibility of both cells.

Liao & Shao, "Interpretable and Generalizable Person Re-Identification with Query-Adaptive Convolution and Temporal
Lifting", ECCV 2020 (method `none`), with the two ways to use visibility of OCCLUSION_LAYER_SPEC.md section 5.

Shapes: P probes, G gallery faces, N pairs; C channels on h x w cells; S = h*w cells of a probe, R = h*w of a gallery face.
Similarities are laid out [P,G,R,S]. Visibility is 1 where the face shows. Scores are logits: higher is more similar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oaml.kernels import Precision
from oaml.kernels.best_matches import (
    BestMatches,
    best_matches,
    listed_best_matches,
    paired_best_matches,
    spread,
)

Method = Literal["none", "scaling", "normalized"]
METHODS: tuple[Method, ...] = ("none", "scaling", "normalized")
TAU = 0.3  # how strongly a visible partner is preferred, in units of correlation per e-fold of visibility
MIN_VISIBILITY = 1e-3  # floor under the logarithm of the choice
CHUNK_BYTES = 32 * 2**20  # what match() holds of the best matches of a block of pairs, on each thread
PAIRS_AT_A_TIME = 256  # of match_listed(), on each thread
Block = tuple[Tensor, Tensor]  # prepared maps [B,C,cells] and visibility [B,cells] of B faces


@dataclass
class QAConvConfig:
    """QAConv, the matcher of local cells."""

    method: Method = "normalized"
    """How visibility enters: not at all (none), as a factor of the correlations (scaling), or as the weights of a mean over cells
    (normalized)."""
    adapter: int = 128
    """Channels of the 1x1 adapter in front of the comparison; 0 compares the backbone's own channels."""
    position_bias: bool = True
    """Learn a bonus for each offset between matched cells (method normalized only)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"qaconv.method: {self.method!r} is none of {', '.join(METHODS)}")
        if self.adapter < 0:
            raise ValueError(f"qaconv.adapter: {self.adapter} channels; 0 switches the adapter off")


@dataclass(frozen=True)
class CellMatches:
    """The best matches of one pair: which cell of one face matched which cell of the other.

    Every field is [h,w]. `partner_*` is the flat index r = y*w + x of the matched cell on the other face, `similarity_*` the
    correlation used, `weight_*` the weight it entered the score with; the weights of both faces together sum to 1
    with method `normalized` (to 0 when nothing is visible in common) and are the linear layer's own otherwise.
    """

    partner_probe: Tensor
    similarity_probe: Tensor
    weight_probe: Tensor
    partner_gallery: Tensor
    similarity_gallery: Tensor
    weight_gallery: Tensor
    score: float


def apply_occlusion_weight(similarity: Tensor, prob_occ: Tensor, gal_occ: Tensor, method: Method) -> Tensor:
    """Let visibility into a similarity, before partners are chosen.

    Args:
        similarity: [P,G,R,S], r a gallery cell and s a probe cell (with the position bias, for `normalized`).
        prob_occ: visibility of the probes [P,1,h,w]; gal_occ: of the gallery [G,1,h,w].

    Returns:
        [P,G,R,S]. `none`: unchanged. `scaling`: S * V_g[r] * V_p[s]. `normalized`: the selection scores
        S + tau (log V_p[s] + log V_g[r]); for a fixed cell of one face only the other face's term can change the choice,
        so that one tensor serves both directions.
    """
    visible_p, visible_g = prob_occ.flatten(1)[:, None, None], gal_occ.flatten(1)[None, :, :, None]
    if method == "none":
        return similarity
    if method == "scaling":
        return similarity * visible_g * visible_p
    return similarity + _preference(visible_g) + _preference(visible_p)


def _preference(visible: Tensor) -> Tensor:
    """How much a cell is preferred as a partner, in units of correlation. A choice is no smooth function of it: no gradient."""
    return TAU * visible.detach().clamp_min(MIN_VISIBILITY).log()


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class QAConv(nn.Module):
    """Matcher of local cells: compares each cell of a face with the most similar one of the other face.

    Args:
        num_features: channels C of the maps it is given.
        height, width: cells h, w of the maps.
        method, adapter, position_bias: see QAConvConfig.
    """

    def __init__(
        self,
        num_features: int,
        height: int,
        width: int,
        method: Method = "none",
        adapter: int = 0,
        position_bias: bool = False,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method: {method!r} is none of {', '.join(METHODS)}")
        self.num_features, self.height, self.width = num_features, height, width
        self.method: Method = method
        cells = height * width
        self.offset_bias = nn.Parameter(torch.zeros(2 * height - 1, 2 * width - 1)) if position_bias else None
        self.adapter = (
            nn.Sequential(nn.Conv2d(num_features, adapter, 1, bias=False), nn.BatchNorm2d(adapter))
            if adapter
            else None
        )
        if method == "normalized":
            # softplus(0.5413) = 1: all cells start equal. The scale is learned through its logarithm, so that a
            # step of the optimiser changes it by a share and not by an absolute amount.
            self.cell_weight = nn.Parameter(torch.full((cells,), 0.5413))
            self.log_scale = nn.Parameter(torch.tensor(2.5))
            self.confidence = nn.Parameter(torch.tensor([-6.0, 0.0, 0.0, 0.0]))  # k0 .. k3
        else:
            if position_bias:
                raise ValueError("position_bias: only method 'normalized' has one")
            self.bn = nn.BatchNorm1d(1)
            self.fc = nn.Linear(cells, 1)
            self.logit_bn = nn.BatchNorm1d(1)
            nn.init.constant_(self.fc.weight, 1 / cells)
            nn.init.zeros_(self.fc.bias)

    def prepare(self, features: Tensor) -> Tensor:
        """Maps [B,C,h,w] of the backbone -> what is compared [B,C',h,w]: adapted, unit length in every cell."""
        if features.shape[1:] != (self.num_features, self.height, self.width):
            raise ValueError(
                f"features are {tuple(features.shape)}, this matcher compares "
                f"[B,{self.num_features},{self.height},{self.width}]"
            )
        with torch.autocast(features.device.type, enabled=False):
            features = _full_precision(features)
            if self.adapter is not None:
                features = self.adapter(features)
            return F.normalize(features, dim=1)

    def forward(
        self,
        probe: Tensor,
        gallery: Tensor,
        probe_visibility: Tensor | None = None,
        gallery_visibility: Tensor | None = None,
    ) -> Tensor:
        """Maps [P,C,h,w] and [G,C,h,w], visibility [P,1,h,w] and [G,1,h,w] or None (all visible) -> logits [P,G]."""
        same = probe is gallery
        probe = self.prepare(probe)
        return self._compute_similarity_batch(
            probe, probe if same else self.prepare(gallery), probe_visibility, gallery_visibility
        )

    def _compute_similarity_batch(
        self, prob: Tensor, gal: Tensor, prob_occ: Tensor | None = None, gal_occ: Tensor | None = None
    ) -> Tensor:
        """Every probe against every gallery face, in one piece of memory.

        Args:
            prob, gal: prepared maps [P,C,h,w], [G,C,h,w], unit length in every cell.
            prob_occ, gal_occ: visibility [P,1,h,w], [G,1,h,w] in [0,1]; None: all visible.

        Returns:
            logits [P,G]; finite also where nothing is visible in common.
        """
        with torch.autocast(prob.device.type, enabled=False):
            prob, gal = _full_precision(prob).flatten(2), _full_precision(gal).flatten(2)
            visible_p, visible_g = self._visible(prob, prob_occ), self._visible(gal, gal_occ)
            matches = best_matches(*self._match_inputs(prob, gal, visible_p, visible_g), self.bias())
            return self.logits(matches, visible_p[:, None], visible_g[None])

    def _match_inputs(
        self, prob: Tensor, gal: Tensor, visible_p: Tensor, visible_g: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Maps [B,C,cells] and visibility [B,cells] of both sides -> the first four arguments of `best_matches`."""
        if self.method == "scaling":  # V >= 0, so scaling the features scales every correlation
            return prob * visible_p[:, None], gal * visible_g[:, None], None, None
        if self.method == "none":
            return prob, gal, None, None
        return prob, gal, _preference(visible_p), _preference(visible_g)

    def _visible(self, maps: Tensor, visibility: Tensor | None) -> Tensor:
        """[B,1,h,w] or None -> [B,h*w] in the precision of the maps; a map of another size is a ValueError."""
        if visibility is None:
            return maps.new_ones(len(maps), self.height * self.width)
        if visibility.shape != (len(maps), 1, self.height, self.width):
            raise ValueError(
                f"visibility is {tuple(visibility.shape)}, expected [{len(maps)},1,{self.height},{self.width}] like the features"
            )
        return visibility.flatten(1).to(maps.dtype)

    def logits(self, matches: BestMatches, visible_p: Tensor, visible_g: Tensor) -> Tensor:
        """Best matches of [A,B] pairs, visibility broadcastable to [A,B,S] (probe) and [A,B,R] (gallery) -> logits [A,B]."""
        if self.method == "normalized":
            return self._normalized(matches, visible_p, visible_g)
        best = torch.cat([matches.value_s, matches.value_r], dim=-1)
        sides = self.fc(self.bn(best.reshape(-1, 1, self.height * self.width)).squeeze(1))
        return self.logit_bn(sides.view(-1, 2).sum(1, keepdim=True)).view(best.shape[:2])

    def _normalized(self, matches: BestMatches, visible_p: Tensor, visible_g: Tensor) -> Tensor:
        weight_s, weight_r, shared = self._weights(matches, visible_p, visible_g)
        total = weight_s.sum(-1) + weight_r.sum(-1)
        local = (weight_s * matches.value_s).sum(-1) + (weight_r * matches.value_r).sum(-1)
        local = local / (total + 1e-3)
        unseen = (1 - shared).clamp(0, 1)
        k0, k1, k2, k3 = self.confidence
        return self.log_scale.exp() * local * (1 + k1 * unseen) + k0 + k2 * unseen + k3 * unseen**2

    def _weights(
        self, matches: BestMatches, visible_p: Tensor, visible_g: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights w_s [A,B,S] and w_r [A,B,R] of the cells of both faces, and the share of the face that both show [A,B]."""
        pairs = matches.value_s.shape[:2]
        c = F.softplus(self.cell_weight)
        partner_of_s = visible_g.expand(*pairs, -1).gather(2, matches.partner_s.long())
        partner_of_r = visible_p.expand(*pairs, -1).gather(2, matches.partner_r.long())
        shared = ((c * visible_p) * visible_g).sum(-1) / c.sum()
        return c * visible_p * partner_of_s, c * visible_g * partner_of_r, shared

    def bias(self) -> Tensor | None:
        """[R,S] bonus by the offset between the cells r and s, the same for an offset and its opposite (for symmetric scores)."""
        if self.offset_bias is None:
            return None
        tied = (self.offset_bias + self.offset_bias.flip(0, 1)) / 2
        y = torch.arange(self.height, device=tied.device).repeat_interleave(self.width)
        x = torch.arange(self.width, device=tied.device).repeat(self.height)
        return tied[y[None] - y[:, None] + self.height - 1, x[None] - x[:, None] + self.width - 1]

    @torch.inference_mode()
    def match(
        self,
        probe: Tensor,
        gallery: Tensor,
        probe_visibility: Tensor | None = None,
        gallery_visibility: Tensor | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        prepared: bool = False,
        precision: Precision = "float32",
    ) -> Tensor:
        """Score every probe against every gallery face in blocks, so that memory stays bounded whatever P and G are.

        Args:
            probe, gallery: maps of the backbone [P,C,h,w], [G,C,h,w]; visibility [P,1,h,w], [G,1,h,w] or None.
            prepared: the maps have been through `prepare` already, as for faces that are compared more than once.
            chunk_bytes: about what each thread holds besides the maps and the scores.
            precision: of the correlations. bfloat16 keeps three digits of each. Where the processor multiplies matrices of it
                (AMX), this takes a third of the time at 512 channels and half at 128. `match_pairs` would gain nothing: most of its
                time goes into fetching maps.

        Returns:
            logits [P,G]. The module must be in eval mode: in training BN would see one block at a time.
        """
        self._needs_eval()
        block = max(1, int((chunk_bytes / self._bytes_a_pair()) ** 0.5))
        block -= block % 16 if block > 16 else 0  # whole blocks of `best_matches`
        probes = self._blocks(probe, probe_visibility, block, prepared)
        galleries = self._blocks(gallery, gallery_visibility, block, prepared)
        dtype = _rounded(precision)
        bias = self.bias()

        def one_block(pair: tuple[Block, Block]) -> Tensor:
            (p, v_p), (g, v_g) = pair
            matches = best_matches(*self._match_inputs(p, g, v_p, v_g), bias, dtype)
            return self.logits(matches, v_p[:, None], v_g[None])

        scores = spread(one_block, [(p, g) for p in probes for g in galleries], probe.device)
        if not scores:
            return probe.new_zeros(len(probe), len(gallery))
        columns = len(galleries)
        return torch.cat([torch.cat(scores[i : i + columns], 1) for i in range(0, len(scores), columns)])

    @torch.inference_mode()
    def match_pairs(
        self,
        features_a: Tensor,
        features_b: Tensor,
        visibility_a: Tensor | None = None,
        visibility_b: Tensor | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        prepared: bool = False,
    ) -> Tensor:
        """Score row i of a against row i of b: maps [N,C,h,w], visibility [N,1,h,w] or None -> logits [N]; see `match`."""
        self._needs_eval()
        if len(features_a) != len(features_b):
            raise ValueError(
                f"{len(features_a)} faces against {len(features_b)}; pairs are compared row by row"
            )
        block = max(1, chunk_bytes // self._bytes_a_pair())
        bias = self.bias()

        def one_block(pair: tuple[Block, Block]) -> Tensor:
            (a, v_a), (b, v_b) = pair
            matches = paired_best_matches(*self._match_inputs(a, b, v_a, v_b), bias)
            return self.logits(matches, v_a[:, None], v_b[:, None])[:, 0]

        sides = (
            self._blocks(features_a, visibility_a, block, prepared),
            self._blocks(features_b, visibility_b, block, prepared),
        )
        scores = spread(one_block, zip(*sides, strict=True), features_a.device)
        return torch.cat(scores) if scores else features_a.new_zeros(0)

    @torch.inference_mode()
    def match_listed(
        self,
        probe: Tensor,
        gallery: Tensor,
        pairs: tuple[Tensor, Tensor],
        probe_visibility: Tensor | None = None,
        gallery_visibility: Tensor | None = None,
        prepared: bool = False,
    ) -> Tensor:
        """Score listed pairs alone: probe `pairs[0][i]` with gallery face `pairs[1][i]`, int64 [N] each -> logits [N].

        It gives what `match_pairs` gives for `probe[pairs[0]]` and `gallery[pairs[1]]`, but makes no copy of maps that are
        channels last in memory. It is fastest where the pairs of one probe follow each other. Other arguments are those of `match`.
        """
        self._needs_eval()
        if not len(pairs[0]):
            return probe.new_zeros(0)
        sides, blocks = [], []
        for maps, visibility, rows in zip(
            (probe, gallery), (probe_visibility, gallery_visibility), pairs, strict=True
        ):
            # these are copied below: no more than are listed
            if not maps.is_contiguous(memory_format=torch.channels_last):
                listed, rows = rows.unique(return_inverse=True)
                maps, visibility = maps[listed], None if visibility is None else visibility[listed]
            sides += self._blocks(maps, visibility, len(maps), prepared)
            blocks.append(rows.split(PAIRS_AT_A_TIME))
        (p, v_p), (g, v_g) = sides
        matches_of = listed_best_matches(*self._match_inputs(p, g, v_p, v_g), self.bias())

        def one_block(rows: tuple[Tensor, Tensor]) -> Tensor:
            first, second = rows
            return self.logits(matches_of(first, second), v_p[first, None], v_g[second, None])[:, 0]

        return torch.cat(spread(one_block, zip(*blocks, strict=True), probe.device))

    def _blocks(self, maps: Tensor, visibility: Tensor | None, size: int, prepared: bool) -> list[Block]:
        """Maps [B,C,h,w] and visibility [B,1,h,w] or None -> the same in blocks of `size` faces, prepared, in full precision."""
        if visibility is not None and len(visibility) != len(maps):
            raise ValueError(f"{len(visibility)} visibility maps for {len(maps)} faces")
        blocks = []
        for i in range(0, len(maps), size):
            part = maps[i : i + size]
            cells = _full_precision(part if prepared else self.prepare(part)).flatten(2)
            shown = None if visibility is None else visibility[i : i + size]
            blocks.append((cells, self._visible(cells, shown)))
        return blocks

    def _bytes_a_pair(self) -> int:
        """About what scoring holds of a pair: for each cell its best match, its weight and temporary copies of these."""
        return 2 * self.height * self.width * 32

    @torch.inference_mode()
    def explain(
        self,
        probe: Tensor,
        gallery: Tensor,
        probe_visibility: Tensor | None = None,
        gallery_visibility: Tensor | None = None,
        prepared: bool = False,
    ) -> CellMatches:
        """Which cells of one pair matched, and with what weight.

        Args:
            probe, gallery: one map each [C,h,w]; probe_visibility, gallery_visibility: [1,h,w] or None (all visible).
            prepared: the maps have been through `prepare` already.
        """
        self._needs_eval()
        p, g = (x[None] if prepared else self.prepare(x[None]) for x in (probe, gallery))
        v_p, v_g = (None if v is None else v[None] for v in (probe_visibility, gallery_visibility))
        visible_p, visible_g = self._visible(p, v_p), self._visible(g, v_g)
        inputs = self._match_inputs(p.flatten(2), g.flatten(2), visible_p, visible_g)
        matches = best_matches(*inputs, self.bias())
        if self.method == "normalized":
            weight_s, weight_r, _ = self._weights(matches, visible_p[:, None], visible_g[None])
            total = weight_s.sum() + weight_r.sum() + 1e-3
            weight_s, weight_r = weight_s / total, weight_r / total
        else:
            weight_s = weight_r = self.fc.weight[0]
        grid = (self.height, self.width)
        return CellMatches(
            partner_probe=matches.partner_s.long().view(grid),
            similarity_probe=matches.value_s.view(grid),
            weight_probe=weight_s.reshape(grid),
            partner_gallery=matches.partner_r.long().view(grid),
            similarity_gallery=matches.value_r.view(grid),
            weight_gallery=weight_r.reshape(grid),
            score=float(self._compute_similarity_batch(p, g, v_p, v_g)),
        )

    def _needs_eval(self) -> None:
        if self.training:
            raise RuntimeError(
                "the matcher is in training mode; call .eval() first (BN would see one block at a time)"
            )


def _rounded(precision: Precision) -> torch.dtype | None:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision: {precision!r} is neither float32 nor bfloat16")
    return torch.bfloat16 if precision == "bfloat16" else None
