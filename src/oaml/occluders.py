"""Covers drawn on aligned faces, each with the exact mask of what it leaves visible.

Two styles keep tuning and judging apart: what is trained on style "a" is judged on style "b". They share no
family of texture and no outline:

| kind | style "a" | style "b" |
| --- | --- | --- |
| niqab | plain dark weave, rounded eye slit | patterned or twill, angular slit, trimmed hem or a cord |
| mask | pleated medical and rounded cloth, ear loops | folded, duckbill and printed, head straps, valves |
| sunglasses | round and softly squared dark lenses | teardrop, angular, one-piece, mirrored |
| scarf | plain or ribbed knit with a soft edge | striped, checked or printed, in straight layers |
| hand | bare, fingers together | spread or bent fingers, back of the hand with nails, cuff or glove |
| patch | ellipses and rectangles, plain or noisy | irregular polygons, patterned |

All positions are pixels of the 112x112 five-point template: eyes (38.3, 51.7) and (73.5, 51.5),
nose (56, 71.7), mouth corners (41.5, 92.4) and (70.7, 92.2).
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from oaml.errors import OamlError
from oaml.files import FACE_SIZE, check_empty, list_images, png_names, read_image, write_file

Style = Literal["a", "b"]
Range = tuple[float, float]
STYLES: tuple[Style, ...] = ("a", "b")

_TWICE = 2  # outlines are drawn at twice the size and averaged down: two pixels of anti-aliasing
_MID = 56.0
_X, _Y = np.meshgrid(np.arange(FACE_SIZE, dtype=np.float32), np.arange(FACE_SIZE, dtype=np.float32))
_EYES = np.array([[38.3, 51.7], [73.5, 51.5]])


class Covered(NamedTuple):
    """A covered face.

    Attributes:
        image: uint8 RGB [112,112,3], equal to `face * mask + cover * (1 - mask)` rounded; where the mask is 1
            the face's own pixels, bit for bit.
        mask: float32 [112,112], 1 where the face shows and 0 where the cover hides it, in steps of 1/255, so
            that an 8-bit file holds it exactly.
    """

    image: np.ndarray
    mask: np.ndarray


def occlude(
    image: np.ndarray,
    kind: str,
    rng: np.random.Generator,
    templates: Sequence[np.ndarray] = (),
    *,
    style: Style = "a",
) -> Covered:
    """Cover one face. The cover and its mask depend on `rng` and the options alone, never on the face.

    Args:
        image: aligned face, uint8 RGB [112,112,3]; it is not modified.
        kind: one of `KINDS`.
        rng: the only source of chance: the same state gives the same bytes.
        templates: RGBA pictures (see `load_templates`). When there are any, kind "mask" fits one of them over
            the lower face instead of drawing a mask, in either style; other kinds take no notice.
        style: "a" or "b", two disjoint families of covers (see the module).

    Raises:
        OamlError: unknown kind or style; an image or a template of another shape or type.

    Example:
        >>> face = np.full((112, 112, 3), 180, np.uint8)
        >>> image, mask = occlude(face, "niqab", np.random.default_rng(0))
        >>> bool((image[mask == 1] == 180).all())
        True
    """
    if kind not in _DRAW:
        raise OamlError(f"no cover is called {kind!r}; choose one of {', '.join(KINDS)}")
    if style not in STYLES:
        raise OamlError(f"no style is called {style!r}; choose one of {', '.join(STYLES)}")
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.shape != (FACE_SIZE, FACE_SIZE, 3)
    ):
        found = (
            f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        )
        raise OamlError(f"a face to cover is uint8 [{FACE_SIZE},{FACE_SIZE},3], this is {found}")
    cover = _Cover()
    if kind == "mask" and len(templates):
        _fitted(rng, cover, templates[int(rng.integers(len(templates)))])
    else:
        _DRAW[kind](rng, style, cover)
    return cover.over(image)


def retexture(
    face: np.ndarray,
    covered: Covered,
    rng: np.random.Generator,
    photographs: Sequence[np.ndarray] = (),
) -> Covered:
    """The same cover in a material of its own: what is learned from it can't be learned by heart.

    Real cloth, printed masks and mirrored lenses come in more patterns than can be drawn, so in training a share of the covers is
    filled with noise of several sizes, a run of colours, cells, or a piece of another photograph, with or without the shading of
    the cover that was drawn. Neither style draws these.

    Args:
        face: the bare face that `covered` was made of, uint8 RGB [112,112,3].
        rng: the only source of chance.
        photographs: uint8 RGB [112,112,3] to take pieces of.
    """
    alpha = 1 - covered.mask
    if not (alpha > 0.5).any():
        return covered
    families = ["noise", "run", "cells", "tint", *(["piece"] * 2 if len(photographs) else [])]
    family = families[int(rng.integers(len(families)))]
    one, two, three = (rng.uniform(0, 255, 3) * rng.uniform(0.3, 1) for _ in range(3))
    drawn = (covered.image - face * covered.mask[..., None]) / np.maximum(alpha, 0.1)[..., None]
    grey = drawn.mean(2)
    level = max(float(grey[alpha > 0.5].mean()), 8.0)
    shade = np.clip(grey / level, 0.4, 1.8)[..., None]
    if family == "noise":
        field = np.zeros((FACE_SIZE, FACE_SIZE), np.float32)
        for cells in (3, 7, 15, 31, 60):
            weight = rng.uniform(0, 1)
            field += weight * smooth_noise(rng, cells, max(2, int(cells * rng.uniform(0.4, 1))))
        t = 1 / (1 + np.exp(-field * rng.uniform(1, 6)))[..., None]
        texture = one * t + two * (1 - t)
    elif family == "run":
        t = _along(rng.uniform(0, 2 * math.pi))[..., None]
        t = (t - t.min()) / (t.max() - t.min())
        texture = np.where(t < 0.5, one + (two - one) * 2 * t, two + (three - two) * (2 * t - 1))
    elif family == "cells":
        count = int(rng.integers(6, 60))
        seeds = rng.uniform(0, FACE_SIZE, (count, 2))
        nearest = ((_X[..., None] - seeds[:, 0]) ** 2 + (_Y[..., None] - seeds[:, 1]) ** 2).argmin(2)
        texture = np.clip(one + rng.normal(0, rng.uniform(10, 90), (count, 3)), 0, 255)[nearest]
    elif family == "tint":
        texture = (drawn - level) * rng.uniform(0.3, 2.0) + one
        shade = np.ones_like(shade)
    else:
        photograph = photographs[int(rng.integers(len(photographs)))]
        zoom, turn = rng.uniform(0.8, 4), rng.uniform(40, 320)  # never an upright face
        matrix = cv2.getRotationMatrix2D(tuple(rng.uniform(25, 87, 2)), turn, zoom)
        texture = cv2.warpAffine(
            photograph, matrix, (FACE_SIZE, FACE_SIZE), borderMode=cv2.BORDER_REFLECT_101
        ).astype(np.float32)
        if rng.random() < 0.5:
            texture = texture[..., rng.permutation(3)] * rng.uniform(0.4, 1.1, 3)
    if rng.random() < 0.6:
        texture = texture * shade
    texture = np.clip(texture, 0, 255)
    image = np.rint(face * covered.mask[..., None] + texture * alpha[..., None]).astype(np.uint8)
    return Covered(image, covered.mask)


def load_templates(folder: str | Path) -> list[np.ndarray]:
    """Pictures of masks with a transparent surround, for `occlude(..., templates=...)`.

    Returns:
        One uint8 RGBA [H,W,4] per picture, in the order of their names, cut to the opaque part.

    Raises:
        OamlError: no folder, no picture in it, an unreadable one, or one not partly transparent.
    """
    from PIL import Image, UnidentifiedImageError

    found = []
    for path in list_images(folder):
        try:
            with Image.open(path) as opened:
                has_alpha = "A" in opened.getbands() or "transparency" in opened.info
                picture = np.asarray(opened.convert("RGBA"))
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            raise OamlError(f"{path}: is not a readable image ({error}); replace or remove it") from error
        if not has_alpha or picture[..., 3].min() == 255:
            raise OamlError(
                f"{path}: has no transparent pixels; cut the mask out and save it as PNG with alpha"
            )
        if picture[..., 3].max() < 128:
            raise OamlError(f"{path}: is transparent everywhere; remove it")
        found.append(_cut(picture))
    return found


def occlude_folder(
    folder: Path,
    *,
    kind: str,
    out: Path,
    seed: int = 0,
    style: Style = "a",
    templates: Path | None = None,
    resize: bool = False,
) -> None:
    """Cover every image below a folder and write the covered images with their exact masks.

    `OUT/images/NAME.png` is the covered face, `OUT/masks/NAME.png` its mask (grey, 255 where the face shows);
    NAME is the path below `folder` without its suffix. A cover depends on the seed, the kind and the image's
    path, not on the other images. All images are read before the first is written, and a mask is written
    before its image, so an image always has its mask.

    Example:
        oaml occlude faces --kind niqab --out faces_niqab --seed 1

    Args:
        folder: aligned faces, 112x112, in any depth of folders.
        kind: niqab, mask, sunglasses, scarf, hand or patch.
        out: a new or an empty folder.
        seed: another seed, other covers.
        style: a or b, two disjoint families of covers: tune on one, judge on the other.
        templates: folder of mask pictures with alpha, for kind mask.
        resize: scale images of another size instead of refusing them.

    Raises:
        OamlError: a wrong option, an `out` that holds files, an unreadable image (named), or two images that
            would be written under one name.
    """
    folder, out = Path(folder), Path(out)
    if kind not in KINDS:
        raise OamlError(f"no cover is called {kind!r}; choose one of {', '.join(KINDS)}")
    if style not in STYLES:
        raise OamlError(f"no style is called {style!r}; choose one of {', '.join(STYLES)}")
    if templates is not None and kind != "mask":
        raise OamlError(
            f"templates are pictures of masks and kind is {kind!r}; leave them out or choose mask"
        )
    check_empty(out)
    pictures = load_templates(templates) if templates is not None else []
    names = png_names(folder, list_images(folder))
    for path in names.values():
        read_image(path, resize=resize)

    from rich.console import Console
    from rich.progress import track

    for name, path in track(names.items(), "covering", console=Console(stderr=True), total=len(names)):
        rng = cover_rng(seed, kind, path.relative_to(folder).as_posix())
        image, mask = occlude(read_image(path, resize=resize), kind, rng, pictures, style=style)
        _write_png(out / "masks" / name, np.rint(mask * 255).astype(np.uint8))
        _write_png(out / "images" / name, image[..., ::-1])


def curve(
    points: np.ndarray | Sequence[Sequence[float]], *, closed: bool = True, steps: int = 6
) -> np.ndarray:
    """A smooth line through points: Catmull-Rom, float64 [steps * N, 2] (open: [steps * (N - 1) + 1, 2])."""
    p = np.asarray(points, np.float64)
    if closed:
        around = np.concatenate([p[-1:], p, p[:2]])
    else:
        around = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    count = len(around) - 3
    line = np.matmul(_basis(steps), around[_fours(count)]).reshape(-1, 2)
    return line if closed else np.concatenate([line, p[-1:]])


def smooth_noise(rng: np.random.Generator, rows: int, columns: int, size: int = FACE_SIZE) -> np.ndarray:
    """Noise in about [-1,1] that varies over `rows` x `columns` cells, float32 [size,size]."""
    cells = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC)


# --- the sheet a cover is drawn on ---


class _Cover:
    """A cover in the making: opacity [112,112] in [0,1] and colour [3,112,112] (0..255) times it.

    Colours are planar throughout, a single one is [3,1,1]: so they broadcast against maps, and fast.
    """

    def __init__(self) -> None:
        self.alpha = np.zeros((FACE_SIZE, FACE_SIZE), np.float32)
        self.colour = np.zeros((3, FACE_SIZE, FACE_SIZE), np.float32)

    def add(self, alpha: np.ndarray, colour: np.ndarray | float) -> None:
        """Lay another piece on top."""
        keep = 1 - alpha
        self.colour = self.colour * keep + colour * alpha
        self.alpha = self.alpha * keep + alpha

    def paint(self, alpha: np.ndarray, colour: np.ndarray | float) -> None:
        """Colour what is there already, without covering more: hems, pleats, reflections."""
        self.colour = self.colour * (1 - alpha) + colour * (alpha * self.alpha)

    def over(self, face: np.ndarray) -> Covered:
        # Opacity in steps of 1/255 first, and the colour to match it: the mask that is returned, or saved
        # with 8 bits, is then the one that was used.
        steps = np.rint(np.clip(self.alpha, 0, 1) * 255)
        alpha = (steps / 255).astype(np.float32)
        colour = self.colour / np.maximum(self.alpha, 1e-6)
        colour = np.clip(colour, 0, 255) * alpha
        mask = ((255 - steps) / 255).astype(np.float32)
        image = np.rint(face * mask[..., None] + colour.transpose(1, 2, 0)).astype(np.uint8)
        return Covered(image, mask)


def _filled(outlines: Iterable[np.ndarray], holes: Iterable[np.ndarray] = ()) -> np.ndarray:
    """Opacity [112,112] of outlines (each filled on its own) less the holes."""
    sheet = np.zeros((FACE_SIZE * _TWICE,) * 2, np.uint8)
    for value, shapes in ((255, outlines), (0, holes)):
        for shape in shapes:
            cv2.fillPoly(sheet, [_fixed(shape)], value, cv2.LINE_AA, 4)
    return _down(sheet)


def _lines(lines: Iterable[np.ndarray], width: float, *, closed: bool = False) -> np.ndarray:
    """Opacity [112,112] of lines, `width` in pixels of the face."""
    sheet = np.zeros((FACE_SIZE * _TWICE,) * 2, np.uint8)
    for line in lines:
        cv2.polylines(sheet, [_fixed(line)], closed, 255, max(1, round(width * _TWICE)), cv2.LINE_AA, 4)
    return _down(sheet)


def _fixed(points: np.ndarray) -> np.ndarray:
    """Face pixels -> the doubled sheet, in sixteenths of a pixel as OpenCV's `shift=4` wants them."""
    return np.rint((points * _TWICE + 0.5) * 16).astype(np.int32)


def _down(sheet: np.ndarray) -> np.ndarray:
    small = cv2.resize(sheet, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


@lru_cache
def _fours(count: int) -> np.ndarray:
    return np.arange(count)[:, None] + np.arange(4)


@lru_cache
def _basis(steps: int) -> np.ndarray:
    t = np.arange(steps)[:, None] / steps
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], axis=1)
    return powers @ (np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2)


def _pose(rng: np.random.Generator, amount: float = 1.0, turn: float = 2.5) -> Callable[..., np.ndarray]:
    """How this cover sits: a little roll, scale and shift; a turn of the head moves the middle sideways."""
    angle, scale = np.radians(rng.normal(0, 3 * amount)), 1 + rng.normal(0, 0.03 * amount)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    shift = rng.normal(0, 1.5 * amount, 2)
    sideways = rng.normal(0, turn)

    def place(points: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
        p = np.asarray(points, np.float64) - (_MID, 64.0)
        p = p + np.stack([sideways * (1 - np.minimum((p[:, 0] / 56) ** 2, 1)), np.zeros(len(p))], axis=1)
        return p @ matrix + (_MID, 64.0) + shift

    return place


def _moved(points: np.ndarray | Sequence[Sequence[float]], x: float, y: float) -> np.ndarray:
    return np.asarray(points, np.float64) + np.array([x, y])


def _mirrored(right: Sequence[Sequence[float]]) -> np.ndarray:
    """Half an outline as (distance from the middle, y), top to bottom -> the whole outline, clockwise."""
    half = np.asarray(right, np.float64)
    left = half[::-1] * (-1, 1)
    return _moved(np.concatenate([half, left]), _MID, 0)


# --- colour and cloth ---


def _hsv(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> np.ndarray:
    """A colour from ranges in [0,1] -> float32 [3,1,1] in 0..255."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, np.float32).reshape(3, 1, 1) * 255


def _cloth_colour(rng: np.random.Generator, style: Style, dark: bool) -> np.ndarray:
    if style == "a":
        if dark and rng.random() < 0.65:
            return _hsv(rng, (0, 1), (0, 0.2), (0.05, 0.16))
        if rng.random() < 0.6:
            return _hsv(rng, (0.52, 0.72), (0.15, 0.7), (0.12, 0.6))
        return _hsv(rng, (-0.02, 0.12), (0.1, 0.5), (0.2, 0.75))
    if dark and rng.random() < 0.45:
        return _hsv(rng, (0.75, 1.02), (0.2, 0.7), (0.06, 0.25))
    if rng.random() < 0.5:
        return _hsv(rng, (0.12, 0.5), (0.1, 0.6), (0.15, 0.75))
    return _hsv(rng, (0.75, 1.1), (0.05, 0.35 if dark else 0.7), (0.3, 0.9))


def _relief() -> tuple[np.ndarray, np.ndarray]:
    """Slope of cloth that lies on a face (nose, cheeks, chin, the roundness of the head), along x and y."""

    def bump(x: float, y: float, sx: float, sy: float) -> np.ndarray:
        return np.exp(-(((_X - x) / sx) ** 2) - ((_Y - y) / sy) ** 2)

    height = 70 * bump(56, 66, 58, 70) + 9 * bump(56, 70, 9, 12) + 5 * bump(34, 76, 13, 13)
    height += 5 * bump(78, 76, 13, 13) + 5 * bump(56, 104, 14, 9) - 3 * bump(56, 92, 16, 6)
    slope_y, slope_x = np.gradient(height)
    return slope_x.astype(np.float32), slope_y.astype(np.float32)


_SLOPE_X, _SLOPE_Y = _relief()


def _along(angle: float) -> np.ndarray:
    """Distance in pixels along a direction, [112,112]."""
    return math.cos(angle) * _X + math.sin(angle) * _Y


def _shade(rng: np.random.Generator, folds: float = 1.0, angle: float | None = None) -> np.ndarray:
    """Light and shadow on draped cloth as a relative change of brightness, [112,112]."""
    light = rng.uniform(0, 2 * math.pi)
    relief = math.cos(light) * _SLOPE_X + (0.4 + math.sin(light)) * _SLOPE_Y
    across = rng.uniform(0, math.pi) if angle is None else angle + rng.normal(0, 0.25)
    bend = smooth_noise(rng, 4, 4)
    wave = np.sin(_along(across) * rng.uniform(0.1, 0.32) + 1.9 * bend)
    # Folds rise gently on one side, fall off on the other and fade out along their length.
    ridge = (wave + 0.5 * np.abs(wave)) * np.maximum(0.35 + 0.8 * smooth_noise(rng, 4, 3), 0)
    return rng.uniform(0.12, 0.3) * relief + folds * rng.uniform(0.2, 0.55) * ridge - 0.06 * bend


def _lit(colour: np.ndarray, shade: np.ndarray, sheen: float = 14.0) -> np.ndarray:
    """Shade a colour ([3,1,1] or [3,112,112]); the sheen keeps folds visible on black cloth."""
    return np.clip(colour * (1 + shade) + (sheen * shade), 0, 255)


def _grain(rng: np.random.Generator, amount: float) -> np.ndarray:
    return rng.standard_normal((FACE_SIZE, FACE_SIZE), np.float32) * amount


def _weave(rng: np.random.Generator) -> np.ndarray:
    """Threads of a plain weave as a change of brightness, with a moire where they are finer than a pixel."""
    angle, step = rng.uniform(0, math.pi), 2 * math.pi / rng.uniform(2.1, 4.5)
    threads = np.sin(_along(angle) * step) * np.sin(_along(angle + math.pi / 2) * step)
    return rng.uniform(0.02, 0.12) * threads


def _pattern(
    rng: np.random.Generator, base: np.ndarray, warp: float = 5.0, contrast: float = 1.0
) -> np.ndarray:
    """Three colours woven or printed on cloth, [3,112,112]; less contrast: all nearer to the base."""
    second = base + contrast * (_hsv(rng, (0, 1), (0, 0.85), (0.05, 1)) - base)
    third = base + contrast * (_hsv(rng, (0, 1), (0, 0.85), (0.1, 0.9)) - base)
    angle = rng.uniform(0, math.pi)
    bend = warp * smooth_noise(rng, 4, 4)
    u = _along(angle) + bend
    v = _along(angle + math.pi / 2) - bend
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


def _cloth(
    rng: np.random.Generator, style: Style, *, dark: bool, folds: float = 1.0, angle: float | None = None
) -> np.ndarray:
    """Draped cloth, [3,112,112]: plain weave in style "a"; pattern or twill in style "b"."""
    colour = _cloth_colour(rng, style, dark)
    shade = _shade(rng, folds, angle)
    if style == "a":
        return _lit(colour, shade + _weave(rng) + _grain(rng, 0.03), rng.uniform(15, 55))
    if rng.random() < 0.7:
        contrast = rng.uniform(0.15, 0.6) if dark else rng.uniform(0.4, 1)
        return _lit(_pattern(rng, colour, contrast=contrast), shade + _grain(rng, 0.04), rng.uniform(8, 25))
    twill = np.sin((_along(rng.uniform(0.6, 1.0)) + 2 * smooth_noise(rng, 5, 5)) * rng.uniform(1.2, 2.0))
    return _lit(colour, shade + rng.uniform(0.1, 0.3) * twill, rng.uniform(15, 45))


# --- the kinds ---


def _head_cloth(rng: np.random.Generator) -> np.ndarray:
    """Outline of cloth that goes round the head and falls over the shoulders, beyond the crop."""
    top, side, flare = rng.uniform(-16, 3), rng.uniform(47, 60), rng.uniform(54, 75)
    return curve(
        _mirrored(
            [(14, top), (0.72 * side, top + 12), (side, 45), (side + 1, 75), (flare, 118), (flare, 150)]
        )
    )


def _niqab(rng: np.random.Generator, style: Style, cover: _Cover) -> None:
    place = _pose(rng)
    cloth = _cloth(rng, style, dark=True, angle=rng.normal(0.2, 0.5))
    rise, drop = (
        (rng.uniform(6.5, 14), rng.uniform(5.5, 12))
        if style == "a"
        else (rng.uniform(9, 15), rng.uniform(7, 13))
    )
    width = rng.uniform(30, 43)
    arch, dip, slant = rng.uniform(-1, 5), rng.uniform(-3, 5), rng.normal(0, 1.2)
    upper, lower = 51.6 - rise, 51.6 + drop
    if style == "a":
        slit = [
            (-width, 52 + slant),
            (-0.72 * width, upper + 0.55 * arch + 2),
            (-0.3 * width, upper),
            (0, upper - 0.3 * arch),
            (0.3 * width, upper),
            (0.72 * width, upper + 0.55 * arch + 2),
            (width, 52 - slant),
            (0.72 * width, lower - 1.5),
            (0.3 * width, lower),
            (0, lower + dip),
            (-0.3 * width, lower),
            (-0.72 * width, lower - 1.5),
        ]
        hole = place(curve(_moved(slit, _MID, 0)))
    else:
        inner = width * rng.uniform(0.8, 1.05)
        slit = [
            (-inner, upper + slant),
            (0, upper - 0.6 * arch),
            (inner, upper - slant),
            (width + 1, 52),
            (width - 3, lower - slant),
            (8, lower),
            (0, lower + 1.2 * dip),
            (-8, lower),
            (3 - width, lower + slant),
            (-width - 1, 52),
        ]
        hole = place(_moved(slit, _MID, 0))
    head = place(_head_cloth(rng))
    shape = rng.random()
    if shape < 0.72:
        alpha = _filled([head], [hole])
    else:  # a veil tied across the nose: the forehead shows, with a head scarf above it or hair
        ends = rng.uniform(40, 52)
        edge = [(-60, ends), (-30, lower - 2), (0, lower + min(dip, 2)), (30, lower - 2), (60, ends)]
        line = _moved(edge, _MID, 0)
        line = curve(line, closed=False) if style == "a" else line
        veil = place(np.concatenate([line, [[130, 150], [-18, 150]]]))
        alpha = _filled([veil])
        if shape < 0.93:
            brow = rng.uniform(14, 34)
            face = _mirrored([(12, brow - 3), (30, brow + 3), (44, brow + 26), (43, 75), (30, 140)])
            scarf = _filled([head], [place(curve(face) if style == "a" else face)])
            shadow = _blur(scarf, 3) * 0.8
            cover.add(scarf, cloth * 0.85 if rng.random() < 0.6 else _cloth(rng, style, dark=True))
            cloth = cloth * (1 - 0.35 * shadow * (_Y < 60))
        hole = place(line)
    cover.add(alpha, cloth)
    inside = _blur(alpha, 2.5)
    cover.paint(np.clip(1.0 - inside, 0, 1) * 0.5, 0.0)  # the edge turns away from the light
    if shape < 0.72 or style == "b":
        trim = cloth * 0.55 + 25 if style == "a" else _hsv(rng, (0, 1), (0, 0.8), (0.1, 1))
        for offset in (0.0, 2.2) if style == "b" and rng.random() < 0.6 else (0.7,):
            cover.paint(
                _lines([_moved(hole, 0, offset)], rng.uniform(0.7, 1.8), closed=shape < 0.72) * 0.7, trim
            )
    if style == "b" and shape < 0.72 and rng.random() < 0.25:
        cord = place([(_MID, upper - 6), (_MID + rng.normal(0, 1), lower + 8)])
        cover.add(_lines([cord], rng.uniform(1.2, 2.5)), cloth * 0.8)


def _mask(rng: np.random.Generator, style: Style, cover: _Cover) -> None:
    place = _pose(rng, turn=4.0)
    top, wing, side = rng.uniform(54, 64), rng.uniform(60, 68), rng.uniform(36, 46)
    chin, low = rng.uniform(108, 120), rng.uniform(90, 102)
    jaw = side * rng.uniform(0.72, 0.95)
    ear = rng.uniform(47, 56)
    strap = (
        _hsv(rng, (0, 1), (0, 0.15), (0.7, 1))
        if rng.random() < 0.75
        else _hsv(rng, (0, 1), (0, 0.9), (0, 0.9))
    )
    shade = _shade(rng, 0.45)
    seams: list[np.ndarray] = []
    if style == "a":
        outline = place(
            curve(
                _mirrored(
                    [
                        (7, top),
                        (22, top + 5),
                        (side, wing),
                        (side + 2, 80),
                        (jaw, low),
                        (20, chin - 2),
                        (7, chin),
                    ]
                )
            )
        )
        ends = [
            ((side, wing + 1), (ear, wing - rng.uniform(2, 12))),
            ((jaw, low), (ear, rng.uniform(74, 90))),
        ]
        if rng.random() < 0.6:  # medical: pleats, pale
            hues = ((0.5, 0.58), (0.25, 0.5), (0.9, 1.0), (0, 1))
            tint = int(rng.choice(4, p=[0.5, 0.15, 0.1, 0.25]))
            colour = _hsv(rng, hues[tint], (0.0, 0.12) if tint == 3 else (0.1, 0.45), (0.72, 1.0))
            if rng.random() < 0.12:
                colour = _hsv(rng, (0, 1), (0, 0.1), (0.08, 0.2))
            bow = rng.uniform(1, 6)
            seams = [
                place(curve([(8, y - bow), (_MID, y + bow), (104, y - bow)], closed=False))
                for y in (75, 84, 93)
            ]
            texture = _lit(colour, shade + _grain(rng, 0.015), 6)
        else:  # cloth: one seam down the middle
            texture = _cloth(rng, "a", dark=rng.random() < 0.4, folds=0.4)
            seams = [place(curve([(_MID, top), (_MID + 1, 80), (_MID, chin)], closed=False))]
    else:
        ends = [
            ((side - 1, wing + 2), (ear, rng.uniform(38, 54))),
            ((jaw, low - 3), (ear, rng.uniform(84, 98))),
        ]
        family = rng.integers(3)
        colour = (
            _hsv(rng, (0, 1), (0, 0.7), (0.15, 1))
            if rng.random() < 0.5
            else _hsv(rng, (0.1, 0.16), (0, 0.12), (0.75, 1))
        )
        if family == 0:  # folded in the middle, two flat halves
            outline = place(_mirrored([(1, top - 4), (side, wing + 2), (jaw + 2, low), (1, chin + 2)]))
            tilt = np.where(_along(rng.normal(0, 0.05)) > _MID + rng.normal(0, 4), 1.0, -1.0).astype(
                np.float32
            )
            texture = _lit(colour, shade + _blur(tilt, 0.8) * rng.uniform(0.04, 0.15) + _grain(rng, 0.02), 8)
            seams = [place([(14, wing + 8), (40, wing + 13)]), place([(98, wing + 8), (72, wing + 13)])]
        elif family == 1:  # duckbill: a beak with an edge across
            beak = rng.uniform(80, 92)
            outline = place(
                _mirrored(
                    [
                        (6, top),
                        (24, top + 6),
                        (side - 3, wing + 3),
                        (side - 6, beak),
                        (26, chin - 3),
                        (20, chin),
                    ]
                )
            )
            fall = np.where(beak < _Y, -1.0, 1.0).astype(np.float32)
            texture = _lit(colour, shade + _blur(fall, 0.8) * rng.uniform(0.06, 0.16) + _grain(rng, 0.02), 8)
            seams = [place([(_MID - side + 6, beak), (_MID + side - 6, beak)])]
        else:
            outline = place(
                _mirrored(
                    [
                        (2, top - 3),
                        (26, top + 7),
                        (side, wing),
                        (side - 1, low - 6),
                        (jaw, low + 2),
                        (16, chin),
                    ]
                )
            )
            texture = _lit(_pattern(rng, colour, 3), shade, 12)
    straps = [place([(_MID + s * x, y) for x, y in line]) for s in (-1, 1) for line in ends]
    cover.add(_lines(straps, rng.uniform(0.9, 2.4)), strap * rng.uniform(0.75, 1))
    cover.add(_filled([outline]), texture)
    cover.paint(np.clip(1 - _blur(cover.alpha, 2.5), 0, 1) * 0.4, texture * 0.3)
    hem = _blur(_lines([outline], 3.0, closed=True), 0.6)
    cover.paint(hem * rng.uniform(0, 0.35), texture * 1.15 + 8)
    if seams:
        cover.paint(
            _lines([_moved(s, 0, 1.2) for s in seams], 1.2) * 0.4, np.minimum(texture * 1.15 + 12, 255)
        )
        cover.paint(_blur(_lines(seams, 1.3), 0.6) * rng.uniform(0.25, 0.6), texture * 0.6)
    if style == "b" and rng.random() < 0.3:
        middle = place([(_MID + rng.choice([-20, 0, 20]), rng.uniform(82, 94))])
        round_valve = middle + rng.uniform(5, 8) * _circle()
        valve = _hsv(rng, (0, 1), (0, 0.2), (0.1, 1))
        cover.paint(_filled([_moved(round_valve, 0.8, 1.2)]) * 0.4, 0.0)
        cover.paint(_filled([round_valve]), _lit(valve, 0.1 * np.sin(_along(rng.uniform(0, 3)) * 2)))


@lru_cache
def _circle(count: int = 24) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _fitted(rng: np.random.Generator, cover: _Cover, template: np.ndarray) -> None:
    """Warp the opaque box of a mask picture onto the lower face."""
    if (
        template.dtype != np.uint8
        or template.ndim != 3
        or template.shape[2] != 4
        or template[..., 3].max() < 128
    ):
        raise OamlError(
            f"a template is uint8 RGBA [H,W,4] with opaque pixels, "
            f"this is {template.dtype} {list(template.shape)}"
        )
    # Colours weighted by opacity, so that what a picture holds under its transparent pixels can't bleed in.
    rgba = _cut(template).astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    shrink = 2.0 * FACE_SIZE / max(rgba.shape[:2])
    if shrink < 1:
        rgba = cv2.resize(rgba, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        rgba = np.ascontiguousarray(rgba[:, ::-1])
    height, width = rgba.shape[:2]
    place = _pose(rng, turn=3.0)
    left, right = _MID - rng.uniform(38, 46), _MID + rng.uniform(38, 46)
    top, bottom = rng.uniform(57, 66), rng.uniform(109, 119)
    corners = place(
        [(left, top), (right, top), (right - rng.uniform(0, 3), bottom), (left + rng.uniform(0, 3), bottom)]
    )
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
    matrix = cv2.getPerspectiveTransform(source, (corners * _TWICE + 0.5).astype(np.float32))
    drawn = cv2.warpPerspective(rgba, matrix, (FACE_SIZE * _TWICE,) * 2)
    drawn = cv2.resize(drawn, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
    light = 1 + rng.uniform(-0.15, 0.1) + rng.uniform(-0.15, 0.15) * (_X / _MID - 1)
    alpha = drawn[..., 3] / 255
    cover.add(alpha, drawn[..., :3].transpose(2, 0, 1) / np.maximum(alpha, 1e-3) * light)


def _cut(template: np.ndarray) -> np.ndarray:
    """The box of what is more than faintly opaque."""
    x, y, width, height = cv2.boundingRect((template[..., 3] > 8).astype(np.uint8))
    return template[y : y + height, x : x + width]


def _sunglasses(rng: np.random.Generator, style: Style, cover: _Cover) -> None:
    place = _pose(rng, 0.7)
    w, h, sink = rng.uniform(15, 19), rng.uniform(11, 16), rng.uniform(0, 4)
    apart = max(0.0, w + rng.uniform(1.2, 4) - 17.6)
    family = rng.integers(3) if style == "b" else -1
    h *= 1.15 if style == "b" else 1.0
    if style == "a":
        power = rng.uniform(0.6, 1.0)  # 1 is an ellipse, less is squarer
        round_ = _circle()
        unit = np.sign(round_) * np.abs(round_) ** power
        unit[:, 0] *= 1 - rng.uniform(0, 0.15) * unit[:, 1]
    elif family == 0:  # teardrop
        unit = curve(
            [
                (-0.85, -0.75),
                (0, -0.9),
                (0.95, -0.8),
                (1.05, -0.1),
                (0.6, 0.9),
                (0, 1.1),
                (-0.6, 0.6),
                (-0.95, -0.2),
            ]
        )
    else:  # angular, the outer corner drawn up
        up = rng.uniform(-1.35, -0.7)
        unit = np.array(
            [(-0.9, -0.75), (0.3, -0.9), (1.15, up), (1.0, 0.1), (0.75, 0.85), (-0.55, 0.95), (-0.9, 0.3)]
        )
    outlines = []
    for sign, eye in zip((-1, 1), _EYES, strict=True):
        outlines.append(place(unit * (sign * w, h) + eye + (sign * apart, sink)))
    if family == 2:  # one piece across both eyes
        half = w + 17.6 + apart
        brow, base = 51.6 + sink - h, 51.6 + sink + h
        shield = [
            (8, brow),
            (half * 0.7, brow - 1),
            (half, brow + 6),
            (half * 0.85, base - 2),
            (18, base),
            (5, base - 0.8 * h),
        ]
        outlines = [place(_mirrored(shield))]
    alpha = np.minimum(_filled(outlines), 1)
    opacity = rng.uniform(0.85, 1.0) if rng.random() < 0.6 else 1.0
    down = np.clip((_Y - (51.6 + sink - h)) / (2 * h), 0, 1)
    if style == "a":
        tint = _hsv(rng, (0, 1), (0, 0.35), (0.02, 0.22))
        lens = tint * (1 + rng.uniform(0, 1.5) * down)
    else:
        one, two = _hsv(rng, (0, 1), (0.2, 0.9), (0.1, 0.9)), _hsv(rng, (0, 1), (0.2, 0.9), (0.05, 0.5))
        lens = one * (1 - down) + two * down
    lens = lens + 25 * np.maximum(smooth_noise(rng, 6, 8), 0)
    frame = (
        _hsv(rng, (0, 1), (0, 0.3), (0.02, 0.2))
        if rng.random() < 0.65
        else _hsv(rng, (0, 1.0), (0.2, 0.8), (0.2, 0.9))
    )
    thick = rng.uniform(0.8, 3.2) if style == "a" else rng.uniform(0.6, 2.2)
    ear = rng.uniform(46, 56)
    outer, height = 17.6 + apart + w * 0.95, 51.6 + sink - h * rng.uniform(0.2, 0.7)
    arms = [
        place([(_MID + s * outer, height), (_MID + s * ear, height - rng.uniform(-1, 3))]) for s in (-1, 1)
    ]
    cover.add(_lines(arms, rng.uniform(1.5, 4.5)), frame)
    if family != 2:
        nose = 17.6 + apart - w * 0.9
        rise = 51.6 + sink - h * rng.uniform(0.1, 0.6)
        bridge = curve(
            [(_MID - nose, rise), (_MID, rise - rng.uniform(0.5, 3)), (_MID + nose, rise)], closed=False
        )
        cover.add(_lines([place(bridge)], max(1.5, thick)), frame)
        if style == "b" and rng.random() < 0.5:  # a second bar above
            cover.add(_lines([place(_moved(bridge, 0, -0.35 * h))], 1.2), frame)
    cover.add(alpha * opacity, lens)
    if rng.random() < 0.7:
        angle, at, wide = rng.uniform(0.4, 1.2), rng.uniform(-12, 12), rng.uniform(1.5, 7)
        for eye in _EYES:  # both lenses mirror the same window
            offset = np.abs(_along(angle) - (math.cos(angle) * eye[0] + math.sin(angle) * eye[1]) - at)
            streak = np.clip((wide - offset) / 1.5, 0, 1) * (np.abs(_X - eye[0]) < 20) * alpha
            cover.paint(streak * rng.uniform(0.08, 0.4), _hsv(rng, (0, 1), (0, 0.2), (0.7, 1)))
    if family != 2 or rng.random() < 0.3:
        cover.add(_lines(outlines, thick, closed=True), frame)
        cover.paint(_lines([_moved(o, -0.3, -0.5) for o in outlines], 0.6, closed=True) * 0.35, frame + 90)


def _scarf(rng: np.random.Generator, style: Style, cover: _Cover) -> None:
    place = _pose(rng)
    edge = rng.uniform(60, 84)
    ends = edge - rng.uniform(-2, 16)
    count = int(rng.integers(1, 4))
    hooded = rng.random() < 0.4
    dark = bool(rng.random() < 0.3)
    angle = math.pi / 2 + rng.normal(0, 0.25)
    if hooded:
        brow, side = rng.uniform(8, 30), rng.uniform(38, 46)
        face = _mirrored([(12, brow - 3), (30, brow + 4), (side, brow + 26), (side - 1, 78), (28, 140)])
        alpha = _filled([place(_head_cloth(rng))], [place(curve(face) if style == "a" else face)])
        cover.add(alpha, _cloth(rng, style, dark=dark))
        cover.paint(np.clip(1 - _blur(alpha, 3), 0, 1) * 0.6, 0.0)
    wide = rng.uniform(46, 66)
    cloth = _cloth(rng, style, dark=dark, angle=angle)
    ribs = 2 * math.pi / rng.uniform(3, 8)
    for layer in range(count):  # each turn of the scarf lies on the one above it
        y = edge + layer * rng.uniform(12, 22)
        sag, tilt = rng.uniform(-4, 6), rng.normal(0, 3)
        line = [
            (-wide, ends + layer * 12 + tilt),
            (-28, y - 1 + tilt / 2),
            (0, y + sag),
            (28, y - 1 - tilt / 2),
            (wide, ends + layer * 12 - tilt),
        ]
        points = _moved(line, _MID, 0)
        if style == "a":
            points = curve(points + np.stack([np.zeros(5), rng.normal(0, 1.2, 5)], axis=1), closed=False)
        outline = place(np.concatenate([points, [[_MID + wide + 6, 150], [_MID - wide - 6, 150]]]))
        alpha = _filled([outline])
        piece = cloth * rng.uniform(0.85, 1.1)
        if style == "a" and layer == 0 and rng.random() < 0.5:
            knit = np.sin(_along(angle + math.pi / 2) * ribs + 2 * smooth_noise(rng, 4, 4)) * rng.uniform(
                0.1, 0.35
            )
            cloth = _lit(cloth, knit, 10)
            piece = cloth
        cover.add(_blur(alpha, 0.5) if style == "a" else alpha, piece)
        # Darkest just below the edge it tucks under, and a lighter rim on top.
        cover.paint(np.clip(1 - _blur(alpha, 4), 0, 1) * alpha * 0.9, piece * 0.4)
        cover.paint(_lines([_moved(place(points), 0, 0.8)], 1.4) * 0.45, np.minimum(piece * 1.25 + 12, 255))
        if style == "b" and rng.random() < 0.5:
            cover.paint(
                _lines([_moved(place(points), 0, rng.uniform(3, 6))], rng.uniform(1, 3)),
                _hsv(rng, (0, 1), (0, 0.8), (0.1, 1)),
            )


_SKIN = np.array([(246, 214, 190), (226, 180, 148), (192, 138, 104), (140, 92, 64), (84, 54, 40)], np.float64)


def skin_colour(tone: float) -> np.ndarray:
    """A skin colour, RGB float64 [3] in 0..255, from light (tone 0) to dark (tone 1)."""
    place = np.clip(tone, 0, 1) * (len(_SKIN) - 1)
    return np.array([np.interp(place, range(len(_SKIN)), _SKIN[:, channel]) for channel in range(3)])


def _hand(rng: np.random.Generator, style: Style, cover: _Cover) -> None:
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
        colour = _hsv(rng, (0, 1), (0, 0.7), (0.08, 0.95))

    side = FACE_SIZE * _TWICE
    shape, light = np.zeros((side, side), np.uint8), np.full((side, side), 128, np.uint8)

    def tube(points: np.ndarray, width: float) -> None:
        # Rings from wide and dark to narrow and light, blurred later, read as a round finger with a crease.
        fixed = _fixed(place(points))
        full = width * size * _TWICE
        cv2.polylines(shape, [fixed], False, 255, max(1, round(full)), cv2.LINE_AA, 4)
        for part, level in ((1.0, 70), (0.86, 112), (0.62, 140), (0.34, 156)):
            cv2.polylines(light, [fixed], False, level, max(1, round(full * part)), cv2.LINE_AA, 4)

    palm = [
        (-0.5, -0.1),
        (-0.53, -0.5),
        (-0.5, -0.9),
        (0, -1.04),
        (0.5, -0.9),
        (0.53, -0.5),
        (0.4, 0.05),
        (0.34, 0.6),
        (0.36, 5),
        (-0.36, 5),
        (-0.34, 0.6),
    ]
    outline = _fixed(place(curve(palm)))
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
    tube(
        np.array([start, joint, joint + 0.36 * np.array([np.sin(bend), -np.cos(bend)])]),
        rng.uniform(0.27, 0.31),
    )

    shade = (_down(light) * 255 - 128) / 128
    shade = _blur(shade, 0.9) * rng.uniform(0.5, 0.9)
    direction = rng.uniform(0, 2 * math.pi)
    shade += (
        rng.uniform(0, 0.25)
        * (_along(direction) - math.cos(direction) * target[0] - math.sin(direction) * target[1])
        / 56
    )
    shade += 0.06 * smooth_noise(rng, 9, 9) + _grain(rng, 0.02)
    skin = _lit(colour, shade, 5)
    skin[0] += 9 * np.maximum(smooth_noise(rng, 7, 7), 0) * (1 - tone)
    cover.add(_down(shape), skin)
    if back and not bent:
        for tip, angle in nails:
            along = np.array([np.sin(angle), -np.cos(angle)])
            nail = (
                tip
                + 0.02 * along
                + _circle(12) * 0.075 * np.array([1, 1])
                + np.outer(_circle(12) @ along, along) * 0.03
            )
            cover.paint(_filled([place(nail)]) * 0.75, np.minimum(colour * 1.15 + 25, 255))
    elif not back:
        creases = [
            curve([(-0.42, -0.62), (-0.1, -0.66), (0.3, -0.78)], closed=False),
            curve([(-0.4, -0.5), (0, -0.45), (0.35, -0.25)], closed=False),
        ]
        cover.paint(_blur(_lines([place(c) for c in creases], 0.9), 0.5) * 0.35, colour * 0.45)
    if style == "b" and rng.random() < 0.6:
        cuff = rng.uniform(0.15, 0.6)
        sleeve = place([(-0.46, cuff), (0.46, cuff), (0.62, 5), (-0.62, 5)])
        cover.add(_filled([sleeve]), _cloth(rng, style, dark=False))


def _patch(rng: np.random.Generator, style: Style, cover: _Cover) -> None:
    if style == "a":
        square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
        unit = square if rng.random() < 0.5 else _circle()
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
    colour = _hsv(rng, (0, 1), (0, 1), (0, 1))
    if style == "b":
        texture = _lit(
            _pattern(rng, colour, rng.uniform(0, 12)), rng.uniform(0, 0.3) * smooth_noise(rng, 3, 3)
        )
    elif rng.random() < 0.4:
        texture = _lit(colour, 0.25 * smooth_noise(rng, 3, 3) + _grain(rng, 0.03), 20)
    else:
        cells = rng.uniform(0, 255, (*rng.integers(2, 28, 2), 3)).astype(np.float32)
        noise = cv2.resize(cells, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
        texture = colour + (noise - colour) * rng.uniform(0.3, 1)
    cover.add(_filled([shape]), np.clip(texture, 0, 255))


_DRAW: dict[str, Callable[[np.random.Generator, Style, _Cover], None]] = {
    "niqab": _niqab,
    "mask": _mask,
    "sunglasses": _sunglasses,
    "scarf": _scarf,
    "hand": _hand,
    "patch": _patch,
}
KINDS: tuple[str, ...] = tuple(_DRAW)


def cover_rng(seed: int, kind: str, name: str) -> np.random.Generator:
    """The generator of one image's cover: by seed, kind and relative path alone, whatever other images there are."""
    digest = hashlib.sha256(f"{seed}\n{kind}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _write_png(path: Path, picture: np.ndarray) -> None:
    """Write grey or BGR uint8 as PNG."""
    written, data = cv2.imencode(".png", picture)
    if not written:
        raise OamlError(f"{path}: could not be encoded as PNG")
    write_file(path, lambda temporary: temporary.write_bytes(data.tobytes()))
