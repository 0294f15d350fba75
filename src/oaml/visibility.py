"""Where a face shows, on the cells of a feature map; and the share of the face that two faces both show.

Shapes: B faces, N pairs, P probes, G gallery faces; h x w cells of a map: 14x14 after stage 3 of a network, 7x7 after stage 4;
12x12 after both of a transformer. The joint (visibility-masked) embedding compares the R cells of stage 4: 49, or a transformer's
144. Visibility is 1 where the face shows and 0 where something hides it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

GRIDS: dict[int, tuple[int, int]] = {3: (14, 14), 4: (7, 7)}
"""Stage of a network -> cells h x w of its feature map."""
GRID = GRIDS[4]
"""Cells of the joint embedding."""
CELLS = GRID[0] * GRID[1]
TOKENS = (12, 12)
"""Cells of a transformer: of 9x9 pixels each, so that the last 4 rows and columns of 112 belong to none."""
JOINT_GRIDS = {GRIDS[3]: GRID, GRIDS[4]: GRID, TOKENS: TOKENS}
"""Cells h x w of a map of visibility -> those of the joint embedding that it belongs to."""


def mask_to_cells(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mask [B,1,H,W] of any size -> [B,1,h,w]: the share of each cell that shows (area average).

    Where h and w do not divide H and W, a pixel on the border of two cells counts in both, so that the average is exact to
    one pixel; a mask smaller than the grid repeats its pixels. A transformer's cells cover 108 of 112 rows and columns.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask is {tuple(mask.shape)}, expected [B,1,H,W]")
    if grid == TOKENS:
        height, width = (max(1, round(size * 108 / 112)) for size in mask.shape[2:])
        mask = mask[:, :, :height, :width]
    return F.adaptive_avg_pool2d(mask.float(), grid)


def on_grid(visibility: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B,1,h,w] -> the same on a grid of as many or of half as many cells a side (2x2 cells averaged)."""
    return visibility if visibility.shape[2:] == grid else F.avg_pool2d(visibility, 2)


def cell_visibility(visibility: Tensor) -> Tensor:
    """[B,1,h,w] on 7x7, 14x14 or 12x12 cells -> [B,R] on the cells of the joint embedding.

    Raises:
        ValueError: another shape.
    """
    grid = JOINT_GRIDS.get(tuple(visibility.shape[2:]))
    if visibility.dim() != 4 or visibility.shape[1] != 1 or grid is None:
        raise ValueError(
            f"visibility is {tuple(visibility.shape)}, expected [B,1,7,7], [B,1,14,14] or [B,1,12,12]"
        )
    return on_grid(visibility, grid).flatten(1)


def shared_visibility(a: Tensor, b: Tensor) -> Tensor:
    """Maps [N,1,h,w] of two sides (or one of [1,1,h,w] against many) -> float64 [N] in [0,1].

    The share of the face that both show in the same places: the one number that every command prints and decides by.
    """
    return (cell_visibility(a.double()) * cell_visibility(b.double())).mean(1)


def unseen_and_overlap(v_p: Tensor, v_g: Tensor) -> tuple[Tensor, Tensor]:
    """Cells [P,R], [G,R] (see `cell_visibility`) -> [P,G] each, in the precision of the cells.

    Returns:
        the share that the two don't both show; and how much of that share both hide (see `overlap_of`).
    """
    cells = v_p.shape[1]
    unseen = 1 - v_p @ v_g.T / cells
    return unseen, overlap_of((1 - v_p) @ (1 - v_g).T / cells, unseen)


def overlap_of(hidden: Tensor, unseen: Tensor) -> Tensor:
    """The share that both hide, divided by the share that the two don't both show; by .05 at least, so that two faces which hide
    next to nothing hardly overlap."""
    return hidden / unseen.clamp_min(0.05)
