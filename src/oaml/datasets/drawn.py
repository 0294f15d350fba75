"""Drawn people: a test pattern with as many identities and images as wanted, and no photograph in it.

It is a test pattern and not a model of human faces: it exists so that training, matching and visibility can
be tried and tested without any data, and no figure measured on it says anything about people.

What makes it useful:

- A person is a point in a continuous space (bones, eyes, brows, nose, mouth, hair, skin, marks), spread over
  the upper and the lower face, so that whatever part shows still tells something.
- An image of a person varies in pose, light, expression, hair, make-up, beard, background, sharpness and
  compression, by more than people differ: raw pixels and colour statistics do little better than chance.
- Faces lie nearly on the standard landmarks of a 112x112 face, as an aligner would leave them.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from oaml.errors import OamlError
from oaml.occluders.canvas import curve
from oaml.occluders.texture import skin_colour, smooth_noise
from oaml.support.files import FACE_SIZE, check_empty, write_file

_TWICE = 2
_SIDE = FACE_SIZE * _TWICE
_STANDARD_LANDMARKS = np.array([(38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2)])
_WARM = np.array([18.0, -6.0, -8.0])
_CAMERA = 420.0  # distance of the viewer in the units of a face, for a mild perspective


def draw_face(person: int, shot: int, seed: int = 0) -> np.ndarray:
    """Draw one image of one person, uint8 RGB [112,112,3].

    The same three numbers give the same bytes; `person` and `seed` alone decide who it is.

    Raises:
        OamlError: a negative number.
    """
    if min(person, shot, seed) < 0:
        raise OamlError(f"person, shot and seed start at 0, these are {person}, {shot} and {seed}")
    # The leading number keeps the two streams apart: numpy pads short seeds with zeros.
    who = _Person(np.random.default_rng([1, seed, person]))
    return _Shot(who, np.random.default_rng([2, seed, person, shot])).draw()


class DrawnPeople:
    """A data set of drawn people, `shots` images each, ordered by person.

    Args:
        people: how many, at least 1.
        shots: images of each, at least 1.
        seed: another seed, other people.
        first_person: number of the first; sets with disjoint numbers share no person, as training and test
            sets need.

    Raises:
        OamlError: counts below 1 or negative numbers.

    Example:
        >>> people = DrawnPeople(2, 3)
        >>> len(people), people.labels.tolist(), people.names[5]
        (6, [0, 0, 0, 1, 1, 1], 'drawn_0001/shot_002')
    """

    def __init__(self, people: int, shots: int, seed: int = 0, first_person: int = 0) -> None:
        if people < 1 or shots < 1:
            raise OamlError(f"drawn people need at least 1 person and 1 shot, these are {people} and {shots}")
        if seed < 0 or first_person < 0:
            raise OamlError(f"seed and first_person start at 0, these are {seed} and {first_person}")
        self.people, self.shots, self.seed, self.first_person = people, shots, seed, first_person
        self.labels = np.repeat(np.arange(people), shots)
        self.names = [
            f"drawn_{first_person + person:04d}/shot_{shot:03d}"
            for person in range(people)
            for shot in range(shots)
        ]
        self._rendered: np.ndarray | None = None

    def __len__(self) -> int:
        return self.people * self.shots

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Image uint8 RGB [112,112,3] and label (0 to people - 1)."""
        index = range(len(self))[index]
        if self._rendered is not None:
            return self._rendered[index].copy(), index // self.shots
        person, shot = divmod(index, self.shots)
        return draw_face(self.first_person + person, shot, self.seed), person

    def render(self) -> np.ndarray:
        """All images, uint8 [N,112,112,3], kept in memory (37 kB each); treat as read-only."""
        if self._rendered is None:
            rendered = np.stack([self[index][0] for index in range(len(self))])
            rendered.flags.writeable = False
            self._rendered = rendered
        return self._rendered


def write(folder: str | Path, people: int, shots: int, seed: int = 0) -> None:
    """Write a folder per person with its images, `FOLDER/drawn_0007/shot_003.png`.

    Raises:
        OamlError: a folder that holds files, or counts below 1.
    """
    folder = Path(folder)
    drawn = DrawnPeople(people, shots, seed)
    check_empty(folder)
    for index, name in enumerate(drawn.names):
        image = drawn[index][0]
        data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        write_file(folder / f"{name}.png", lambda temporary, data=data: temporary.write_bytes(data))


# --- who it is ---


# Mean and deviation of each measure; two deviations at most, so that nobody is a caricature.
_MEASURES: dict[str, tuple[float, float]] = {
    "eye_apart": (17.6, 1.5), "eye_w": (7.4, 0.9), "eye_h": (3.1, 0.6),
    "eye_tilt": (-0.3, 1.1), "eye_round": (0.0, 0.35), "iris": (3.0, 0.35), "lid": (2.6, 0.9),
    "lash": (1.1, 0.45), "bag": (0.5, 0.35), "brow_y": (10.2, 1.7), "brow_l": (9.8, 1.3),
    "brow_t": (2.5, 0.9), "brow_arch": (1.8, 1.3), "brow_tilt": (0.0, 1.5), "brow_in": (7.8, 1.6),
    "brow_dark": (0.6, 0.25), "nose_l": (20.2, 2.2), "nose_w": (7.6, 1.3), "nose_tip": (4.2, 0.9),
    "nose_bridge": (2.9, 0.8), "nostril": (1.3, 0.4), "nose_hook": (0.0, 1.2), "nose_bend": (0.0, 0.8),
    "mouth_y": (40.7, 2.0), "mouth_w": (13.6, 2.0), "lip_up": (2.6, 0.8), "lip_low": (3.6, 1.0),
    "bow": (1.0, 0.6), "mouth_turn": (0.0, 1.0), "lip_red": (0.32, 0.15), "philtrum": (0.5, 0.3),
    "top": (-52.0, 5.0), "brow_width": (40.0, 2.6), "cheek": (42.0, 3.0), "cheek_y": (14.0, 3.0),
    "jaw": (33.5, 3.8), "jaw_y": (46.0, 3.0), "chin_w": (13.0, 3.2), "chin": (63.5, 3.6),
    "ear": (9.5, 1.8), "ear_y": (8.0, 2.5), "ear_out": (4.5, 1.6), "fold": (0.4, 0.35),
    "freckle": (-0.2, 0.5), "blush": (0.3, 0.25), "socket": (0.4, 0.25), "chin_shade": (0.4, 0.25),
    "hairline": (-31.0, 5.0), "peak": (0.0, 3.0), "hair_side": (3.5, 3.0), "hair_down": (10.0, 26.0),
    "hair_up": (8.0, 4.0), "parting": (0.0, 10.0), "beard": (-0.3, 0.7),
}  # fmt: skip


class _Person:
    """One identity: lengths in pixels of the aligned face, colours RGB in 0..255, everything else relative.

    `v[name]` holds what `_MEASURES` lists.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        spread = np.clip(rng.standard_normal(len(_MEASURES)), -2, 2)
        self.v = {
            name: mean + deviation * z
            for (name, (mean, deviation)), z in zip(_MEASURES.items(), spread, strict=True)
        }
        self.tone = float(rng.beta(1.3, 1.5) * 0.85)
        self.skin = skin_colour(self.tone) * rng.uniform(0.96, 1.04, 3)
        fair = np.clip(rng.beta(1.2, 2.2) + 0.15 - 0.4 * self.tone, 0, 1)
        black, blond = np.array([32, 25, 22]), np.array([196, 158, 104])
        self.hair = (1 - fair) * black + fair * blond + rng.normal(0, 8, 3)
        eye = np.array([(70, 44, 26), (104, 78, 44), (92, 112, 84), (96, 128, 160)], np.float64)
        at = np.clip(rng.beta(1, 1.3) * 3 * (1.1 - self.tone), 0, 2.999)
        self.iris = eye[int(at)] * (1 - at % 1) + eye[int(at) + 1 if at < 2 else 3] * (at % 1)
        self.marks = np.stack(
            [rng.uniform(-36, 36, 5), rng.uniform(-28, 56, 5), rng.uniform(-1.2, 1.7, 5)], axis=1
        )
        self.freckles = np.stack([rng.normal(0, 19, 40), rng.normal(16, 11, 40)], axis=1)


# --- one image of it ---


class _Shot:
    """One image of a person: everything that changes from image to image, and the drawing."""

    def __init__(self, who: _Person, rng: np.random.Generator) -> None:
        self.who, self.rng = who, rng
        self.sheet = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        self.open = max(0.0, rng.normal(-1.0, 3.2))
        self.smile = rng.normal(0.4, 1.5)
        self.lids = float(np.clip(rng.normal(1, 0.2), 0.45, 1.35))
        self.raise_ = rng.normal(0, 1.3)
        self.skin = np.clip(who.skin * (1 + rng.normal(0, 0.05)) + rng.normal(0, 4, 3), 0, 255)
        # Hair is dyed, wet or lit from behind: less of an identity than its owner thinks.
        self.hair = np.clip(who.hair * rng.uniform(0.65, 1.5) + rng.normal(0, 14, 3), 5, 245)
        yaw, pitch = np.clip(rng.normal(0, (0.2, 0.13)), -0.45, 0.45)
        cos, sin, cos2, sin2 = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        nod = np.array([[1, 0, 0], [0, cos2, -sin2], [0, sin2, cos2]])
        self.turn = (turn @ nod).T
        self.yaw = yaw
        self._align()

    def _align(self) -> None:
        """Lay the five landmarks on the standard ones by the best similarity transform, with a small error, as aligners do."""
        v, rng = self.who.v, self.rng
        points = np.array(
            [
                (-v["eye_apart"], 0), (v["eye_apart"], 0), (0, v["nose_l"]),
                (-v["mouth_w"] - self.smile, v["mouth_y"]), (v["mouth_w"] + self.smile, v["mouth_y"]),
            ],
            np.float64,
        )  # fmt: skip
        flat = self._flat(points, None) @ (1, 1j)
        goal = _STANDARD_LANDMARKS @ (1, 1j)
        centred = flat - flat.mean()
        scale = np.vdot(centred, goal - goal.mean()) / np.vdot(centred, centred)
        scale *= (1 + rng.normal(0, 0.025)) * np.exp(1j * rng.normal(0, 0.035))
        shift = goal.mean() - scale * flat.mean() + complex(*rng.normal(0, 1.1, 2))
        self.matrix = np.array([[scale.real, scale.imag], [-scale.imag, scale.real]])
        self.shift = np.array([shift.real, shift.imag])

    def _flat(self, points: np.ndarray, depth: float | None) -> np.ndarray:
        """Turn points [N,2] of the face with the head and look at them: [N,2], not yet aligned.

        Without a depth they lie on the face: an ellipsoid with a nose on it.
        """
        if depth is None:
            x, y = points[:, 0], points[:, 1]
            head = np.sqrt(np.maximum(1 - (x / 46) ** 2 - ((y - 10) / 72) ** 2, 0))
            z = 42 * head + 11 * np.exp(-((x / 6) ** 2) - ((y - self.who.v["nose_l"] + 3) / 9) ** 2)
            turned = points @ self.turn[:2] + z[:, None] * self.turn[2]
        else:
            turned = points @ self.turn[:2] + depth * self.turn[2]
        return turned[:, :2] * (_CAMERA / (_CAMERA - turned[:, 2:]))

    def _project(self, points: np.ndarray, depth: float | None = None) -> np.ndarray:
        """Face coordinates (origin between the eyes, y down) -> pixels of the aligned crop, [N,2]."""
        return self._flat(points, depth) @ self.matrix + self.shift

    # Painting, in face coordinates.

    def _fixed(self, points: np.ndarray, depth: float | None) -> np.ndarray:
        return np.rint((self._project(np.asarray(points, np.float64), depth) * _TWICE + 0.5) * 16).astype(
            np.int32
        )

    def _fill(self, points: np.ndarray, colour: np.ndarray, depth: float | None = None) -> None:
        cv2.fillPoly(self.sheet, [self._fixed(points, depth)], colour.tolist(), cv2.LINE_AA, 4)

    def _line(self, points: np.ndarray, colour: np.ndarray, width: float) -> None:
        fixed = self._fixed(points, None)
        cv2.polylines(
            self.sheet, [fixed], False, colour.tolist(), max(1, round(width * _TWICE)), cv2.LINE_AA, 4
        )

    def _skin(self, change: float, warm: float = 0.0) -> np.ndarray:
        """The skin darker (negative) or lighter, and redder."""
        return np.minimum(np.maximum(self.skin * (1 + change) + _WARM * warm, 0), 255)

    def draw(self) -> np.ndarray:
        self._background()
        self._hair_behind()
        self._head()
        self._soften()
        self._nose()
        self._mouth()
        for side in (-1, 1):
            self._eye(side)
        self._marks()
        self._hair_before()
        return self._photograph()

    def _background(self) -> None:
        rng = self.rng
        near, far = rng.uniform(0, 255, (2, 1)) + rng.normal(0, 40, (2, 3))
        near, far = np.clip(near, 0, 255), np.clip(far, 0, 255)
        rows, columns = rng.integers(2, 7, 2)
        mix = np.clip(0.5 + 0.7 * smooth_noise(rng, int(rows), int(columns), size=28), 0, 1)[..., None]
        coarse = (near + (far - near) * mix).astype(np.uint8)
        self.sheet = cv2.resize(coarse, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
        cloth = np.clip(rng.uniform(0, 255) + rng.normal(0, 50, 3), 0, 255)
        width = rng.uniform(48, 80)
        shoulders = np.array([(-width, 140), (-width, 88), (-20, 70), (20, 70), (width, 88), (width, 140)])
        self._fill(shoulders, cloth, -20)

    def _hair_behind(self) -> None:
        v, rng = self.who.v, self.rng
        reach = v["brow_width"] + max(0.5, v["hair_side"] + rng.normal(0, 1.5))
        down = v["hair_down"] + rng.normal(0, 9)
        up = v["top"] - max(1.0, v["hair_up"] + rng.normal(0, 2.5))
        half = [
            (16, up),
            (0.8 * reach, up + 13),
            (reach + 1, -14),
            (reach + 2, 0.6 * down),
            (reach - 2, down + 14),
        ]
        outline = np.array(half + [(-x, y) for x, y in half[::-1]], np.float64)
        self._fill(curve(outline), self.hair * 0.75, -8)

    def _head(self) -> None:
        v = self.who.v
        for side in (-1, 1):
            centre = np.array([side * (v["cheek"] + v["ear_out"] - 3), v["ear_y"]])
            ear = centre + np.array([(0, -1), (0.5, -0.9), (0.62, -0.2), (0.3, 0.6), (0, 1), (-0.5, 0.4)]) * (
                side * 8,
                v["ear"],
            )
            self._fill(curve(ear), self._skin(-0.12, 0.4), 2)
            self._fill(curve(centre + (ear - centre) * 0.55), self._skin(-0.3, 0.4), 2)
        neck = 0.74 * v["jaw"]
        self._fill(
            np.array([(-neck, 40), (neck, 40), (neck + 3, 110), (-neck - 3, 110)]), self._skin(-0.28), -4
        )
        drop = 0.55 * self.open
        half = [
            (14, v["top"]), (0.78 * v["brow_width"], v["top"] + 12), (v["brow_width"], -20),
            (v["cheek"], v["cheek_y"]), (v["jaw"], v["jaw_y"] + 0.3 * drop),
            (v["chin_w"] + 5, v["chin"] - 5 + drop), (0.55 * v["chin_w"], v["chin"] + drop),
        ]  # fmt: skip
        outline = np.array(half + [(-x, y) for x, y in half[::-1]], np.float64)
        # A flat outline, pushed to the side that shows as the head turns.
        self._fill(curve(outline), self.skin, 12)

    def _soften(self) -> None:
        """Broad shadows (sockets, cheeks, nose, under the lip, beard), drawn coarse and blurred."""
        v, rng = self.who.v, self.rng
        change = np.zeros((56, 56), np.float32)
        red = np.zeros((56, 56), np.float32)

        def blot(target: np.ndarray, x: float, y: float, rx: float, ry: float, amount: float) -> None:
            centre = np.rint(self._project(np.array([(x, y)], np.float64))[0] * 8).astype(int)
            cv2.ellipse(
                target, centre.tolist(), (round(rx * 8), round(ry * 8)), 0, 0, 360, amount, -1, shift=4
            )

        beard = float(np.clip(v["beard"] + rng.normal(0, 0.35), 0, 1))
        if beard > 0:
            blot(change, 0, v["mouth_y"] + 11, 27, 15, -0.35 * beard)
            blot(change, 0, v["mouth_y"] - 6, 14, 4, -0.4 * beard)
        for side in (-1, 1):
            blot(change, side * v["eye_apart"], -2, 10, 6.5, -0.22 * v["socket"])
            blot(change, side * (0.72 * v["cheek"]), v["cheek_y"] + 14, 9, 13, -0.1 - 0.1 * v["chin_shade"])
            blot(change, side * (v["nose_bridge"] + 3), 0.5 * v["nose_l"], 3, 9, -0.12)
            blot(red, side * 22, 20, 9, 7, max(0.0, v["blush"]) * rng.uniform(0, 1.6))
        blot(change, 0, v["mouth_y"] + v["lip_low"] + 4 + 0.5 * self.open, 9, 3, -0.25 * v["chin_shade"])
        blot(change, 0, -26, 22, 10, 0.06)
        blot(change, 0, v["chin"] - 8, 8, 6, 0.08)
        change = cv2.GaussianBlur(change, (0, 0), 2.2)
        red = cv2.GaussianBlur(red, (0, 0), 2.5)
        gain = cv2.merge([1 + change + 0.3 * red, 1 + change - 0.12 * red, 1 + change - 0.12 * red])
        gain = cv2.resize(gain, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
        self.sheet = cv2.multiply(self.sheet, gain, dtype=cv2.CV_8U)

    def _nose(self) -> None:
        v = self.who.v
        long, half, tip, bridge = v["nose_l"], v["nose_w"], v["nose_tip"], v["nose_bridge"]
        bend = v["nose_bend"]
        for side in (-1, 1):
            edge = [
                (side * (bridge + 1.5), -4),
                (side * bridge + bend, 0.45 * long),
                (side * (tip + 0.5), long - 6),
            ]
            shaded = -0.2 if side * self.yaw > 0 else -0.1
            self._line(curve(np.array(edge), closed=False), self._skin(shaded), 1.2)
            wing = np.array(
                [
                    (side * (tip + 1), long - 5),
                    (side * half, long - 2.5),
                    (side * (half - 0.5), long + 1.5),
                    (side * (tip - 1), long + 3),
                ]
            )
            self._line(curve(wing, closed=False), self._skin(-0.3, 0.3), 1.0)
            nostril = np.array([side * (0.55 * half), long + 1.5]) + curve(
                np.array([(-2, 0), (0, -1), (2, 0), (0, 0.8)])
            ) * (0.8, v["nostril"])
            self._fill(nostril, self._skin(-0.6, 0.3))
        light = [
            (-0.6 * bridge, 0),
            (0.6 * bridge, 0),
            (0.6 * bridge + bend, 0.5 * long),
            (0.5 * tip, long - 4),
            (0, long - 2),
            (-0.5 * tip, long - 4),
            (-0.6 * bridge + bend, 0.5 * long),
        ]
        self._fill(curve(np.array(light)), self._skin(0.08))
        under = [(-tip, long + 2), (0, long + 3 + v["nose_hook"]), (tip, long + 2)]
        self._line(curve(np.array(under), closed=False), self._skin(-0.28, 0.3), 1.2)
        mouth = v["mouth_y"]
        for x in (-1.3, 1.3):
            self._line(
                np.array([(x, long + 5), (1.5 * x, mouth - v["lip_up"] - 1)]),
                self._skin(-0.12 * v["philtrum"]),
                1,
            )
        fold = max(0.0, v["fold"] + 0.25 * max(self.smile, 0))
        for side in (-1, 1):
            line = [
                (side * (half + 2), long),
                (side * (v["mouth_w"] + 3.5), 0.5 * (long + mouth) + 2),
                (side * (v["mouth_w"] + 5), mouth + 2),
            ]
            self._line(curve(np.array(line), closed=False), self._skin(-0.2 * min(fold, 1.2)), 1)

    def _mouth(self) -> None:
        v, rng = self.who.v, self.rng
        y, half, gape = v["mouth_y"], v["mouth_w"] + self.smile, self.open
        corner = y - 0.8 * self.smile - v["mouth_turn"] + 0.4 * gape
        up, low, bow = (
            max(0.6, v["lip_up"] - 0.2 * self.smile),
            max(0.9, v["lip_low"] - 0.2 * self.smile),
            v["bow"],
        )
        paint = rng.uniform(0, 0.6) if rng.random() < 0.25 else 0.0
        red = np.array([150, 45, 60]) * rng.uniform(0.6, 1.2)
        lips = self._skin(-0.16, 2 * v["lip_red"]) * (1 - paint) + red * paint
        top = y - 0.3 * gape
        bottom = y + 0.7 * gape
        upper = [
            (-half, corner),
            (-0.45 * half, top - up),
            (-0.13 * half, top - up - bow),
            (0, top - up),
            (0.13 * half, top - up - bow),
            (0.45 * half, top - up),
            (half, corner),
            (0.5 * half, bottom + 0.5 * low),
            (0, bottom + low),
            (-0.5 * half, bottom + 0.5 * low),
        ]
        self._fill(curve(np.array(upper), steps=4), lips * 0.92)
        lower = [
            (-0.92 * half, corner + 0.3),
            (-0.4 * half, bottom + 0.5),
            (0, bottom + 0.6),
            (0.4 * half, bottom + 0.5),
            (0.92 * half, corner + 0.3),
            (0.5 * half, bottom + 0.55 * low),
            (0, bottom + low),
            (-0.5 * half, bottom + 0.55 * low),
        ]
        self._fill(curve(np.array(lower), steps=4), np.minimum(lips * 1.06, 255))
        line = np.array(
            [(-half, corner), (-0.4 * half, top), (0, top + 0.4), (0.4 * half, top), (half, corner)]
        )
        if gape > 0.7:
            inside = np.concatenate(
                [line * (0.9, 1), np.array([(0.4 * half, bottom), (0, bottom + 0.3), (-0.4 * half, bottom)])]
            )
            self._fill(curve(inside, steps=4), np.array([62.0, 22, 26]))
            teeth = np.array(
                [
                    (-0.6 * half, 0.6 * top + 0.4 * corner),
                    (0, top + 0.3),
                    (0.6 * half, 0.6 * top + 0.4 * corner),
                    (0.4 * half, top + 0.45 * gape),
                    (-0.4 * half, top + 0.45 * gape),
                ]
            )
            self._fill(teeth, np.array([226.0, 220, 208]))
        else:
            self._line(curve(line, closed=False), lips * 0.5, 0.8)

    def _eye(self, side: int) -> None:
        v = self.who.v
        x, half, tilt = side * v["eye_apart"], v["eye_w"], v["eye_tilt"]
        high = v["eye_h"] * self.lids
        peak = v["eye_round"] * half * 0.5
        # From the inner corner to the outer one, so that both eyes share their shape mirrored.
        lid = np.array(
            [
                (-half, 0.5 * tilt + 0.8),
                (-0.4 * half + peak, -0.85 * high),
                (0.3 * half + peak, -high - 0.1 * tilt),
                (half, -tilt),
            ]
        )
        under = np.array([(half, -tilt), (0.4 * half, 0.75 * high - 0.5 * tilt), (-0.4 * half, 0.7 * high)])

        def at(points: np.ndarray) -> np.ndarray:
            return points * (side, 1) + (x, 0.0)

        top, low = curve(lid, closed=False), curve(under, closed=False)
        white = at(np.concatenate([top, low]))
        before = self.sheet.copy()
        self._fill(white, np.array([228.0, 222, 216]))
        gaze = self.yaw * -3
        centre = np.array([x + gaze, -0.25 * high])
        for radius, colour in ((v["iris"], self.who.iris), (0.45 * v["iris"], np.array([16.0, 14, 14]))):
            ring = centre + curve(np.array([(-1, 0), (0, -1), (1, 0), (0, 1)])) * radius
            self._fill(ring, colour)
        self._fill(
            centre + np.array([(-1.4, -1.4), (-0.4, -1.4), (-0.4, -0.4), (-1.4, -0.4)]),
            np.array([240.0, 240, 240]),
        )
        # What of the ball lies outside the lids is skin again.
        inside = np.zeros((_SIDE, _SIDE), np.uint8)
        cv2.fillPoly(inside, [self._fixed(white, None)], 255, cv2.LINE_AA, 4)
        box = cv2.boundingRect(
            self._fixed(at(np.array([(-half - 9, -high - 9), (half + 9, high + 9)])), None) // 16
        )
        part = np.s_[max(0, box[1]) : box[1] + box[3], max(0, box[0]) : box[0] + box[2]]
        alpha = inside[part].astype(np.float32)[..., None] / 255
        self.sheet[part] = self.sheet[part] * alpha + before[part] * (1 - alpha)
        self._line(at(top), self._skin(-0.75), max(0.5, v["lash"]))
        self._line(at(low), self._skin(-0.35, 0.3), 0.6)
        if v["lid"] > 0.8:
            self._line(at(top * (0.95, 1) + (0.2, -v["lid"] * self.lids)), self._skin(-0.32), 0.7)
        self._line(at(low * (0.8, 1) + (0, 2.6)), self._skin(-0.18 * max(v["bag"], 0)), 0.8)
        base = -v["brow_y"] - self.raise_ + 1.0
        inner, long, thick = v["brow_in"] - v["eye_apart"], 2 * v["brow_l"], max(0.8, v["brow_t"])
        arch, turn = v["brow_arch"], v["brow_tilt"]
        up = [(inner, base + turn), (inner + 0.6 * long, base - arch), (inner + long, base - turn + 1.5)]
        down = [(inner + 0.55 * long, base - arch + 0.8 * thick), (inner + 0.05 * long, base + turn + thick)]
        colour = self.hair * 0.7 * v["brow_dark"] + self._skin(-0.35) * (1 - v["brow_dark"])
        self._fill(
            at(np.concatenate([curve(np.array(up), closed=False), curve(np.array(down), closed=False)])),
            np.clip(colour, 0, 255),
        )

    def _marks(self) -> None:
        who = self.who
        freckles = who.v["freckle"]
        if freckles > 0:
            spots = self._fixed(who.freckles[: int(40 * min(freckles, 1))], None)
            for spot in spots:
                cv2.circle(self.sheet, spot.tolist(), 20, self._skin(-0.2, 0.5).tolist(), -1, cv2.LINE_AA, 4)
        for x, y, radius in who.marks:
            if radius > 0.5:
                ring = (
                    np.array([x, y]) + curve(np.array([(-1, 0), (0, -1), (1, 0), (0, 1)]), steps=3) * radius
                )
                self._fill(ring, self._skin(-0.55))

    def _hair_before(self) -> None:
        v, rng = self.who.v, self.rng
        line = min(v["hairline"] + rng.normal(0, 2.5), -22)
        half = v["brow_width"] + 1.5
        part = v["parting"] + rng.normal(0, 4)
        side = -8 + 0.4 * np.clip(v["hair_down"], -20, 30)
        edge = np.array([
            (half + 3, side), (half - 4, -18), (0.75 * half, line + 5), (0.35 * half, line - 1),
            (part, line + v["peak"]),
            (-0.35 * half, line - 1), (-0.75 * half, line + 5), (4 - half, -18), (-half - 3, side),
        ])  # fmt: skip
        up = v["top"] - max(1.0, v["hair_up"])
        crown = np.array(
            [
                (-half - 3, -25),
                (-0.8 * half, up + 14),
                (-15, up + 1),
                (15, up + 1),
                (0.8 * half, up + 14),
                (half + 3, -25),
            ]
        )
        self._fill(np.concatenate([curve(edge, closed=False), curve(crown, closed=False)]), self.hair, 14)
        strands = rng.uniform(-1, 1, (7, 2))
        for x, bright in strands:
            strand = np.array(
                [
                    (part + 0.2 * x * half, up + 4),
                    (0.7 * x * half, 0.5 * (up + line)),
                    (x * 0.95 * half, line + 6 * abs(x)),
                ]
            )
            self._line(curve(strand, closed=False), np.clip(self.hair * (1 + 0.28 * bright), 0, 255), 1.4)

    def _photograph(self) -> np.ndarray:
        """Light, lens and file: what happens to a face on its way into an image."""
        rng = self.rng
        small = cv2.resize(self.sheet, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.linspace(-1, 1, FACE_SIZE, dtype=np.float32)
        light = np.float32(np.cos(angle)) * ramp[None] + np.float32(np.sin(angle)) * ramp[:, None]
        light = (
            1
            + np.float32(rng.uniform(0, 0.5)) * light
            + np.float32(rng.uniform(0, 0.25)) * smooth_noise(rng, 3, 3)
        )
        cast = np.exp(rng.normal(0, 0.1, 3) + rng.normal(0, 0.18)).astype(np.float32)
        gain = cv2.merge([light * cast[0], light * cast[1], light * cast[2]])
        image = cv2.multiply(small, gain, dtype=cv2.CV_32F)
        contrast = float(np.exp(rng.normal(0, 0.2)))
        level = float(cv2.mean(image)[1])
        image = image * contrast + (level * (1 - contrast) + rng.normal(0, 12))
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.4))
        image += rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 9)
        image = np.clip(image, 0, 255, out=image)
        gamma = np.exp(rng.normal(0, 0.18))
        table = (np.linspace(0, 1, 256) ** gamma * 255).astype(np.uint8)
        image = cv2.LUT(image.astype(np.uint8), table)
        if rng.random() < 0.6:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))]
            image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        return np.ascontiguousarray(image)
