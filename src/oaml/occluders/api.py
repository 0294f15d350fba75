"""One face and its occluder: by a generator, or by a name as everything does that must come out the same again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oaml.errors import OamlError
from oaml.occluders.canvas import STYLES, Canvas, Occluded, Style
from oaml.occluders.cutout import lay
from oaml.occluders.harvested import HARVESTED, Harvested
from oaml.occluders.kinds_fabric import mask, niqab, scarf
from oaml.occluders.kinds_other import hand, patch, sunglasses
from oaml.occluders.material import retexture
from oaml.occluders.pictures import fit_picture
from oaml.support.files import FACE_SIZE

_DRAW: dict[str, Callable[[np.random.Generator, Style, Canvas], None]] = {
    "niqab": niqab,
    "mask": mask,
    "sunglasses": sunglasses,
    "scarf": scarf,
    "hand": hand,
    "patch": patch,
}
KINDS: tuple[str, ...] = tuple(_DRAW)
"""Kinds that are drawn. `HARVESTED` is one more where there is a folder of such occluders."""


def occlude(
    image: np.ndarray,
    kind: str,
    rng: np.random.Generator,
    mask_pictures: Sequence[np.ndarray] = (),
    *,
    style: Style = "a",
    harvested: Harvested | None = None,
) -> Occluded:
    """Cover one face. The occluder and its mask depend on `rng` and the options alone, never on the face; only the light on a
    harvested one is that of the face.

    Args:
        image: aligned face, uint8 RGB [112,112,3]; it is not modified.
        kind: one of `KINDS`, or `HARVESTED`.
        rng: the only source of chance: the same state gives the same bytes.
        mask_pictures: RGBA pictures (see `load_mask_pictures`). When there are any, kind "mask" fits one of them over
            the lower face instead of drawing a mask, in either style; other kinds take no notice.
        style: "a" or "b", two disjoint families of occluders (see the package).
        harvested: what kind `HARVESTED` chooses from, by the part that belongs to the style.

    Raises:
        OamlError: unknown kind or style; an image or a picture of a mask of another shape or type; no harvested occluders for this
            style.

    Example:
        >>> face = np.full((112, 112, 3), 180, np.uint8)
        >>> image, mask = occlude(face, "niqab", np.random.default_rng(0))
        >>> bool((image[mask == 1] == 180).all())
        True
    """
    check_kind(kind, style, harvested)
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.shape != (FACE_SIZE, FACE_SIZE, 3)
    ):
        is_array = isinstance(image, np.ndarray)
        shown = f"{image.dtype} {list(image.shape)}" if is_array else type(image).__name__
        raise OamlError(f"a face to occlude is uint8 [{FACE_SIZE},{FACE_SIZE},3], this is {shown}")
    if harvested is not None and kind == HARVESTED:
        cutouts = harvested.of(style)
        return lay(image, cutouts[int(rng.integers(len(cutouts)))], rng)
    canvas = Canvas()
    if kind == "mask" and len(mask_pictures):
        fit_picture(rng, canvas, mask_pictures[int(rng.integers(len(mask_pictures)))])
    else:
        _DRAW[kind](rng, style, canvas)
    return canvas.over(image)


def check_kind(kind: str, style: str, harvested: Harvested | None = None) -> None:
    """Raise OamlError where there is no occluder of this name."""
    if kind == HARVESTED and harvested is None:
        raise OamlError(f"kind {HARVESTED} comes from a folder of occluders; name it with --occluders_from")
    if kind not in (*KINDS, HARVESTED):
        raise OamlError(f"no occluder is called {kind!r}; choose one of {', '.join(KINDS)}")
    if style not in STYLES:
        raise OamlError(f"no style is called {style!r}; choose one of {', '.join(STYLES)}")


def occluder_rng(seed: int, kind: str, name: str) -> np.random.Generator:
    """The generator of one image's occluder: by seed, kind and name alone, whatever other images there are."""
    digest = hashlib.sha256(f"{seed}\n{kind}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


@dataclass(frozen=True)
class Occluder:
    """Covers faces by name: the same seed, kind and name always draw the same occluder.

    Attributes:
        seed: another seed, other occluders.
        style: "a" or "b", two disjoint families of occluders.
        mask_pictures: as of `occlude`.
        retexture_share: share of the drawn occluders that get another material (see `retexture`), 0 to 1. Harvested ones keep
            theirs, which is what they are for.
        photographs: what `retexture` may take pieces of.
        harvested: as of `occlude`.
    """

    seed: int = 0
    style: Style = "a"
    mask_pictures: Sequence[np.ndarray] = ()
    retexture_share: float = 0.0
    photographs: Sequence[np.ndarray] = ()
    harvested: Harvested | None = None

    def __call__(self, image: np.ndarray, kind: str, name: str) -> Occluded:
        """Cover a face.

        Args:
            name: what the occluder depends on. An image's own occluder has the image's path below its folder, so that it is the
                same wherever the folder lies and however its path is written.
        """
        return self.draw(image, kind, occluder_rng(self.seed, kind, Path(name).as_posix()))

    def draw(self, image: np.ndarray, kind: str, rng: np.random.Generator) -> Occluded:
        """Cover a face by chance from a generator of the caller's."""
        occluded = occlude(image, kind, rng, self.mask_pictures, style=self.style, harvested=self.harvested)
        if kind != HARVESTED and self.retexture_share and rng.random() < self.retexture_share:
            occluded = retexture(image, occluded, rng, self.photographs)
        return occluded
