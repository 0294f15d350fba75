"""Conditions, numbers and the page of `oaml evaluate`, against loops on made-up trials and on drawn people."""

from __future__ import annotations

import base64
import csv
import json
import re
from dataclasses import fields, is_dataclass, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from conftest import write_drawn_pairs
from oaml.datasets.people import group_of, person_of
from oaml.evaluation import conditions, page, results
from oaml.evaluation.conditions import Measured, MeasuredFaces, Trials
from oaml.evaluation.protocols import Pairs, labels, read_pairs
from oaml.evaluation.report import evaluate
from oaml.evaluation.results import (
    BOTH_OCCLUDED,
    NONE_OCCLUDED,
    ONE_OCCLUDED,
    PAIR_CLASSES,
    SAME_OCCLUDER,
    SCHEMA,
    UNOCCLUDED,
    Report,
)
from oaml.evaluation.summary import PairStatistics
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig
from oaml.occluders import Occluder, occlude, occluder_rng
from oaml.qaconv import QAConvConfig
from oaml.support import metrics
from oaml.support.files import read_image
from oaml.template import COLUMNS, TITLES

PEOPLE, SHOTS = 16, 3  # 1,080 impostor pairs: enough for FAR 1e-2
KINDS = ["niqab", "patch"]
SEED = 4
OWN = 0.25  # the model's own threshold at FAR 1e-3


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a threshold of its own, drawn faces under odd names, and all their pairs."""
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    config = ModelConfig(
        net=NetConfig(architecture="ir_mini", embedding_size=32),
        qaconv=QAConvConfig(adapter=16),
        training={"people": "nobody <i>at all</i>"},
        thresholds={"0.001": OWN},
        licence="Apache-2.0 & more",
    )
    Model(config).eval().save(folder / "model <i>")
    write_drawn_pairs(folder, PEOPLE, SHOTS, "<b>&$x^")
    return folder


def faces_of(work: Path) -> MeasuredFaces:
    model = Model.load(work / "model <i>")
    return MeasuredFaces(model, work / "faces", False, 32, Occluder(SEED, "b"))


@pytest.fixture(scope="module")
def listed(work: Path) -> Pairs:
    return read_pairs(work / "pairs.csv", work / "faces")


@pytest.fixture(scope="module")
def measured(work: Path, listed: Pairs) -> Measured:
    return conditions.measure(faces_of(work), listed, None, KINDS, "b", SEED)


@pytest.fixture(scope="module")
def report(work: Path) -> Report:
    (work / "out").mkdir()
    (work / "out" / "robustness.png").write_bytes(b"of an earlier run")
    return evaluate(
        str(work / "model <i>"),
        images=work / "faces",
        pairs=work / "pairs.csv",
        out=work / "out",
        occlude=",".join(KINDS),
        seed=SEED,
        bootstrap=20,
    )


@pytest.fixture(scope="module")
def out(work: Path, report: Report) -> Path:
    """Where that was written."""
    return Path(str(report.arguments["out"]))


# --- conditions ---


def occluded_by(work: Path, path: str, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    face = read_image(work / "faces" / path)
    return occlude(face, kind, occluder_rng(SEED, kind, name), style="b")


def test_occluded_share_is_that_of_the_more_occluded_face(
    work: Path, listed: Pairs, measured: Measured
) -> None:
    for kind in KINDS:
        for i in range(0, len(listed), 97):
            a, b = (
                1 - occluded_by(work, p, kind, p)[1].astype(float).mean()
                for p in (listed.path_a[i], listed.path_b[i])
            )
            one, both = (measured.classes[c][kind] for c in (ONE_OCCLUDED, BOTH_OCCLUDED))
            assert one.rows[i] == both.rows[i] == i  # the list is short: nothing is left out
            assert one.occluded_share[i] == pytest.approx(b, abs=1e-6)
            assert both.occluded_share[i] == pytest.approx(max(a, b), abs=1e-6)
    assert not measured.asked[UNOCCLUDED].occluded_share.any()


def test_controls_and_common_area_against_a_loop(work: Path, listed: Pairs, measured: Measured) -> None:
    """The pixels of the occluders alone, and the predicted maps, of a few pairs."""
    model = Model.load(work / "model <i>")
    trials = measured.classes[BOTH_OCCLUDED]["niqab"]
    assert trials.occluder_similarity is not None
    assert measured.asked["niqab"].occluder_similarity is None  # one face is unoccluded
    for i in (0, 400, 1127):
        maps, alone = [], []
        for path in (listed.path_a[i], listed.path_b[i]):
            image, _ = occluded_by(work, path, "niqab", path)
            x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
            maps.append(model.extract(x).visibility[0, 0].numpy())
            # the occluder on a black face is the occluder alone
            black = occlude(np.zeros_like(image), "niqab", occluder_rng(SEED, "niqab", path), style="b").image
            alone.append(cv2.resize(black, (28, 28), interpolation=cv2.INTER_AREA).astype(float))
        assert trials.visible_both[i] == pytest.approx((maps[0] * maps[1]).mean(), abs=1e-5)
        assert trials.map_similarity[i] == pytest.approx(-np.abs(maps[0] - maps[1]).mean(), abs=1e-5)
        expected = -np.abs(alone[0] - alone[1]).mean() / 255
        assert trials.occluder_similarity[i] == pytest.approx(expected, abs=0.01)
        assert expected < -0.02


def test_the_same_occluder_is_the_same(work: Path, listed: Pairs, measured: Measured) -> None:
    assert measured.shared_occluders == 1  # a short list: everybody wears one occluder
    for kind in KINDS:
        trials = measured.classes[SAME_OCCLUDER][kind]
        assert trials.occluder_similarity is not None
        np.testing.assert_array_equal(trials.rows, np.arange(len(listed)))
        assert trials.occluder_similarity.min() > -0.005  # rounding of the picture under a soft edge
        assert np.ptp(trials.occluded_share) < 1e-6
        own = measured.classes[BOTH_OCCLUDED][kind].occluder_similarity
        assert own is not None
        assert np.median(own) < -0.03
    one = occluded_by(work, listed.path_a[0], "niqab", "shared cover 0")
    assert measured.classes[SAME_OCCLUDER]["niqab"].occluded_share[0] == pytest.approx(
        1 - one[1].mean(), abs=1e-6
    )


def test_groups_hold_people_together() -> None:
    paths = [f"person {i}/{k}.png" for i in range(400) for k in range(2)]
    groups = np.array([group_of(path, 8) for path in paths])
    assert (groups[::2] == groups[1::2]).all()
    assert set(groups) == set(range(8))
    assert np.bincount(groups).min() > 60  # 100 expected
    assert {group_of(path, 1) for path in paths} == {0}


def test_a_long_list_is_thinned_by_impostor_pairs_only() -> None:
    same = np.random.default_rng(0).random(5000) < 0.1
    rows = np.arange(0, 5000, 2)
    kept = conditions.limited(rows, same, seed=1, limit=300)
    assert (np.diff(kept) > 0).all()
    assert set(kept) <= set(rows)
    assert set(rows[same[rows]]) <= set(kept)
    assert (~same[kept]).sum() == 300
    np.testing.assert_array_equal(kept, conditions.limited(rows, same, seed=1, limit=300))
    assert list(kept) != list(conditions.limited(rows, same, seed=2, limit=300))
    np.testing.assert_array_equal(conditions.limited(rows, same, seed=1, limit=5000), rows)


def test_both_sides_and_a_limit(work: Path, listed: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "limited", lambda rows, same, seed: rows[same[rows] | (rows % 3 == 0)])
    monkeypatch.setattr(conditions, "IMPOSTORS_PER_SHARED", 300)
    found = conditions.measure(faces_of(work), listed, None, ["patch"], "both", SEED)
    same = labels(listed)
    assert found.asked["patch"] is found.classes[BOTH_OCCLUDED]["patch"]
    assert len(found.asked["patch"].rows) == len(listed)
    one = found.classes[ONE_OCCLUDED]["patch"]
    np.testing.assert_array_equal(one.rows, np.flatnonzero(same | (np.arange(len(listed)) % 3 == 0)))
    assert found.shared_occluders == 3
    shared = found.classes[SAME_OCCLUDER]["patch"]
    assert same[shared.rows].sum() == same.sum()  # genuine pairs always share
    for i in shared.rows[::20]:
        assert group_of(listed.path_a[i], 3) == group_of(listed.path_b[i], 3)


def test_examples_are_the_highest_and_the_lowest(listed: Pairs, measured: Measured) -> None:
    same = labels(listed)
    for condition in (UNOCCLUDED, "niqab"):
        trials = measured.asked[condition]
        fused = trials.scores["fused"]
        ends = {
            "genuine, lowest scores": fused[same].min(),
            "genuine, highest scores": fused[same].max(),
            "impostor, highest scores": fused[~same].max(),
            "impostor, lowest scores": fused[~same].min(),
        }
        assert list(trials.examples) == list(ends)
        for group, found in trials.examples.items():
            assert found[0].pair.score == ends[group]
            assert len(found) == 3
            people = [{person_of(e.pair.path_a), person_of(e.pair.path_b)} for e in found]
            assert len(set().union(*people)) == sum(map(len, people))  # nobody twice
            assert all(e.pair.condition_a == UNOCCLUDED and e.pair.condition_b == condition for e in found)


# --- numbers ---


def trials_of(rng: np.random.Generator, same: np.ndarray, rows: np.ndarray, lift: float = 0.0) -> Trials:
    """Made-up scores; the fused ones of impostor pairs rise by `lift` where little is visible."""
    visible = rng.uniform(0.1, 1, len(rows))
    noise = rng.normal(size=(len(COLUMNS), len(rows))) + 2 * same[rows]
    scores = dict(zip(COLUMNS, noise, strict=True))
    scores["fused"] = scores["fused"] + lift * (1 - visible)
    similar = rng.normal(size=(2, len(rows)))
    return Trials(rows, scores, rng.random(len(rows)), visible, similar[0], similar[1], {})


@pytest.fixture(scope="module")
def made_up() -> tuple[Pairs, Measured]:
    rng = np.random.default_rng(0)
    who = rng.integers(0, 60, (2, 30_000))
    who[1, :3000] = who[0, :3000]
    same = who[0] == who[1]
    path_a, path_b = (
        [f"{p}/{side}{i}.png" for i, p in enumerate(w)] for side, w in zip("ab", who, strict=True)
    )
    pairs = Pairs(path_a, path_b, [bool(s) for s in same])
    everything, few = np.arange(30_000), np.arange(0, 30_000, 2)
    unoccluded = replace(trials_of(rng, same, everything), occluded_share=np.zeros(30_000))
    one = {kind: trials_of(rng, same, everything, 0.5) for kind in ("niqab", "mask")}
    classes = {
        NONE_OCCLUDED: {UNOCCLUDED: unoccluded},
        ONE_OCCLUDED: one,
        BOTH_OCCLUDED: {kind: trials_of(rng, same, few, 0.8) for kind in one},
        SAME_OCCLUDER: {kind: trials_of(rng, same, few, 2.0) for kind in one},
    }
    faces: Any = SimpleNamespace()  # nothing is read again
    return pairs, Measured(faces, classes, {UNOCCLUDED: unoccluded, **one}, {}, 1)


def test_one_frozen_threshold_against_a_loop(made_up: tuple[Pairs, Measured]) -> None:
    pairs, measured = made_up
    same = labels(pairs)
    numbers = PairStatistics(pairs, measured, 10, 0)
    found = numbers.frozen({"0.001": 3.0, "0.01": 9.0}).scores
    assert found["fused"].threshold == 3.0
    assert found["fused"].source == "model"
    assert found["cosine"].source == "unoccluded pairs of this list"
    unoccluded = measured.asked[UNOCCLUDED].scores["cosine"]
    accepted = (unoccluded[~same] >= found["cosine"].threshold).sum()
    assert accepted == int((~same).sum() * 1e-3)  # as many as the FAR allows
    refitted = numbers.frozen({}).scores["fused"]
    assert refitted.source == "unoccluded pairs of this list"
    assert refitted.threshold == pytest.approx(
        metrics.tar_at_far(measured.asked[UNOCCLUDED].scores["fused"], same, 1e-3).threshold
    )

    edges = [0, 0.1, 0.3, 0.5, 0.7, 1.0]
    for score, numbers_of in found.items():
        threshold = numbers_of.threshold
        assert threshold is not None
        expected = []
        for name, by_kind in measured.classes.items():
            bins = [None, *range(5)] if name == ONE_OCCLUDED else [None]
            for number in bins:
                trials = accepts = positives = hits = 0
                for t in by_kind.values():
                    for row, value, share in zip(t.rows, t.scores[score], t.occluded_share, strict=True):
                        if number is not None and not edges[number] <= share < edges[number + 1]:
                            continue
                        over = value >= threshold
                        trials, accepts = trials + (not same[row]), accepts + (over and not same[row])
                        positives, hits = positives + same[row], hits + (over and same[row])
                expected.append((name, number, trials, accepts, positives, hits))
        assert len(numbers_of.rows) == len(expected) == 9
        for row, (name, number, trials, accepts, positives, hits) in zip(
            numbers_of.rows, expected, strict=True
        ):
            assert row.pair_class == name
            assert row.bin == (None if number is None else tuple(edges[number : number + 2]))
            assert (row.impostor_pairs, row.genuine_pairs) == (trials, positives)
            assert row.expected_false_accepts == pytest.approx(trials / 1000)
            assert row.tar is not None
            assert row.tar.value == pytest.approx(hits / positives)
            if trials >= 30_000:
                assert row.far is not None
                assert row.far.value == pytest.approx(accepts / trials)
                assert row.ratio == pytest.approx(1000 * accepts / trials)
                assert row.far.interval is not None
                assert row.far.interval.low <= row.far.value <= row.far.interval.high
            else:
                assert row.far is row.ratio is None
    assert any(row.far for row in found["fused"].rows)
    assert any(row.far is None for row in found["fused"].rows)


def test_the_models_own_thresholds_against_a_loop(made_up: tuple[Pairs, Measured]) -> None:
    pairs, measured = made_up
    same, state = labels(pairs), [i % 3 for i in range(len(pairs))]
    numbers = PairStatistics(replace(pairs, occluded=state), measured, 20, 0)
    found = numbers.stored({"0.001": 3.0, "0.01": 2.5, "1e-05": 99.0})
    assert [(stored.far, stored.threshold) for stored in found] == [(0.01, 2.5), (0.001, 3.0), (1e-5, 99.0)]
    unoccluded, classes = measured.asked[UNOCCLUDED], measured.classes
    sets: list[tuple[str, str | None, list[Trials], int | None]] = [
        ("photographed", None, [unoccluded], None),
        ("photographed", NONE_OCCLUDED, [unoccluded], 0),
        ("photographed", ONE_OCCLUDED, [unoccluded], 1),
        ("photographed", BOTH_OCCLUDED, [unoccluded], 2),
        *(
            ("drawn", name, list(classes[name].values()), None)
            for name in (ONE_OCCLUDED, BOTH_OCCLUDED, SAME_OCCLUDER)
        ),
    ]
    for stored in found:
        assert len(stored.rows) == len(sets)
        for row, (occluders, name, chosen, wanted) in zip(stored.rows, sets, strict=True):
            counts = {True: [0, 0], False: [0, 0]}
            for trials in chosen:
                for place, score in zip(trials.rows, trials.scores["fused"], strict=True):
                    if wanted in (None, state[place]):
                        counts[bool(same[place])][0] += 1
                        counts[bool(same[place])][1] += score >= stored.threshold
            assert (row.occluders, row.pair_class) == (occluders, name)
            assert [row.genuine_pairs, row.genuine_accepts] == counts[True]
            assert [row.impostor_pairs, row.false_accepts] == counts[False]
            assert row.far is not None
            assert row.tar is not None
            assert row.far.value == row.false_accepts / row.impostor_pairs
            assert row.tar.value == row.genuine_accepts / row.genuine_pairs
            assert row.far.interval is not None
            assert row.far.interval.low <= row.far.value <= row.far.interval.high
            if stored.threshold == 99:  # nothing accepted doesn't mean a rate of 0
                assert row.far.interval == (0, 3 / row.impostor_pairs)
    # without what the list says, and without drawn occluders
    plain = replace(measured, classes={NONE_OCCLUDED: classes[NONE_OCCLUDED]})
    (one,) = PairStatistics(pairs, plain, 0, 0).stored({"0.01": 2.5})
    assert [(row.occluders, row.pair_class) for row in one.rows] == [("photographed", None)]
    assert one.rows[0].false_accepts == found[0].rows[0].false_accepts
    assert PairStatistics(pairs, measured, 0, 0).stored({}) == []


def test_curves_by_occluded_share_against_a_loop(made_up: tuple[Pairs, Measured]) -> None:
    pairs, measured = made_up
    same = labels(pairs)
    found = PairStatistics(pairs, measured, 0, 0).robustness()
    assert list(found.kinds) == ["niqab", "mask", "all"]
    assert found.unoccluded is not None
    for score in COLUMNS:
        unoccluded = measured.asked[UNOCCLUDED].scores[score]
        threshold = found.thresholds[score]
        assert (unoccluded[~same] >= threshold).sum() == int((~same).sum() * 1e-2)
        assert found.unoccluded.tar[score].value == pytest.approx((unoccluded[same] >= threshold).mean())
        for kind, points in found.kinds.items():
            chosen = ("niqab", "mask") if kind == "all" else (kind,)
            assert [p.bin for p in points] == [(0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 1)]
            for point in points:
                assert point.bin is not None
                low, high = point.bin
                inside = [
                    (value >= threshold, share)
                    for k in chosen
                    for row, value, share in zip(
                        measured.asked[k].rows,
                        measured.asked[k].scores[score],
                        measured.asked[k].occluded_share,
                        strict=True,
                    )
                    if same[row] and low <= share < high
                ]
                assert point.genuine_pairs == len(inside)
                assert point.sufficient
                tar, share = np.mean(inside, axis=0)
                assert point.tar[score].value == pytest.approx(tar)
                assert point.occluded_share == pytest.approx(share)


def test_few_pairs_are_marked_and_a_bin_without_any_is_left_out(made_up: tuple[Pairs, Measured]) -> None:
    pairs, measured = made_up
    same = labels(pairs)
    share = np.where(same, 0.2, 0.95)
    share[np.flatnonzero(same)[:29]] = 0.6
    asked = {
        UNOCCLUDED: measured.asked[UNOCCLUDED],
        "niqab": replace(measured.asked["niqab"], occluded_share=share),
    }
    found = PairStatistics(pairs, replace(measured, asked=asked), 0, 0).robustness().kinds["niqab"]
    assert [(p.bin, p.genuine_pairs, p.sufficient) for p in found] == [
        ((0.1, 0.3), int(same.sum()) - 29, True),
        ((0.5, 0.7), 29, False),
    ]


def test_high_scores_by_common_area(made_up: tuple[Pairs, Measured]) -> None:
    pairs, measured = made_up
    same = labels(pairs)
    tail = PairStatistics(pairs, measured, 0, 0).shortcuts().tails
    assert list(tail) == ["own occluders", "same occluder"]
    chosen = [t for name in list(measured.classes)[:3] for t in measured.classes[name].values()]
    for row, (low, high) in zip(
        tail["own occluders"].rows,
        [(0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1)],
        strict=True,
    ):
        values = np.concatenate(
            [
                t.scores["fused"][(t.visible_both >= low) & (t.visible_both < high) & ~same[t.rows]]
                for t in chosen
            ]
        )
        assert row.bin == (low, high)
        assert row.impostor_pairs == len(values)
        if len(values) < 10_000:
            assert row.score is None
        else:
            assert row.score == pytest.approx(np.sort(values)[int(0.999 * len(values))], abs=0.05)
    assert tail["own occluders"].rises_as_the_area_shrinks is True
    flat = trials_of(np.random.default_rng(1), same, np.arange(len(same)))
    flat = replace(flat, scores={**flat.scores, "fused": flat.visible_both * 2 + flat.scores["fused"]})
    falling = replace(measured, classes={**measured.classes, SAME_OCCLUDER: {"niqab": flat, "mask": flat}})
    again = PairStatistics(pairs, falling, 0, 0).shortcuts().tails["same occluder"]
    assert again.rises_as_the_area_shrinks is False


def test_occluders_alone_are_chance_and_a_leak_would_show(work: Path, listed: Pairs, report: Report) -> None:
    for kind in (*KINDS, "all"):
        assert report.shortcuts is not None
        control = report.shortcuts.controls[kind].occluder_similarity
        assert control.auc.interval is not None
        assert control.auc.interval.low < 0.5 < control.auc.interval.high, kind
        assert control.at_chance is True
    # occluders that depend on the person, as a careless generator would draw them
    faces, draw = faces_of(work), Occluder(SEED, "b")
    faces.occlude = lambda image, kind, name: draw(image, kind, person_of(name))
    leaking = conditions.measure(faces, listed, None, ["patch"], "b", SEED)
    leak = PairStatistics(listed, leaking, 20, 0).shortcuts().controls["patch"].occluder_similarity
    assert leak.auc.value > 0.99
    assert leak.at_chance is False


def test_classes_are_those_of_the_trials(listed: Pairs, measured: Measured, report: Report) -> None:
    """End to end: the report's numbers are those of the conditions measured apart."""
    same = labels(listed)
    assert report.pair_classes is not None
    assert report.verification is not None
    assert report.frozen_threshold is not None
    found = report.pair_classes.classes
    assert list(found) == ["none-occluded", "one-occluded", "both-occluded", "same-occluder"]
    assert list(found[NONE_OCCLUDED]) == [UNOCCLUDED]
    for name, by_kind in measured.classes.items():
        for kind, trials in by_kind.items():
            for score in ("cosine", "fused"):
                numbers = found[name][kind][score]
                assert numbers.auc.value == pytest.approx(
                    metrics.auc(trials.scores[score], same[trials.rows])
                )
                expected = metrics.tar_at_far(trials.scores[score], same[trials.rows], 1e-2)
                point = numbers.tar_at_far[1e-2]
                assert point is not None
                assert point.tar.value == pytest.approx(expected.tar)
    pooled = found[BOTH_OCCLUDED]["all"]["fused"]
    assert pooled.genuine_pairs == 2 * same.sum()
    assert pooled.tar_at_far[1e-3] is None  # two occluders of 1,080 pairs are no 10,000 pairs
    assert found[ONE_OCCLUDED]["niqab"] == report.verification.conditions["niqab"]
    assert report.frozen_threshold.scores["fused"].threshold == OWN
    assert report.frozen_threshold.scores["cosine"].rows == []  # 1,080 pairs fit no FAR of 1e-3


# --- report.json ---


def test_the_file_is_the_report(report: Report, out: Path) -> None:
    """Field by field and in their order, with the schema's version; nothing but what JSON has."""
    read = json.loads(
        (out / "report.json").read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} in JSON"),
    )
    assert read["schema"] == SCHEMA == 1
    assert list(read) == [f.name for f in fields(Report)]
    assert report.verification is not None
    point = report.verification.conditions[UNOCCLUDED]["fused"].tar_at_far[1e-2]
    assert point is not None
    assert read["verification"]["conditions"]["unoccluded"]["fused"]["tar_at_far"]["0.01"] == {
        "tar": {"value": point.tar.value, "interval": list(point.tar.interval or ())},
        "threshold": point.threshold,
    }
    endless = replace(report.verification, genuine_pairs=np.inf)  # type: ignore[arg-type]
    unknown = json.loads(replace(report, verification=endless).json())
    assert unknown["verification"] == {**read["verification"], "genuine_pairs": None}


def test_every_field_is_documented() -> None:
    """`docs/report.md` has a table for each dataclass, with all its fields in their order."""
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    documented = {
        name: re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        for name, table in re.findall(r"^### (\w+)\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    }
    assert documented == {
        name: [f.name for f in fields(kind)] for name, kind in vars(results).items() if is_dataclass(kind)
    }
    assert f"schema {SCHEMA}" in text


# --- the page ---


class Links(HTMLParser):
    """Everything that a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.found: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [
            (tag, value or "") for name, value in attrs if name in ("src", "href", "srcset", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    links = Links(text)
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not links.tags & {"script", "link", "iframe", "object", "b", "i", "x"}
    pictures = [value for tag, value in links.found if tag == "img"]
    assert {tag for tag, _ in links.found} == {"img", "a"}
    assert all(value.startswith("#s") for tag, value in links.found if tag == "a")
    head = "data:image/png;base64,"
    assert all(value.startswith(head) for value in pictures)
    shown = {base64.b64decode(value.removeprefix(head)) for value in pictures}
    assert shown == {path.read_bytes() for path in out.glob("*.png")}
    assert {p.name for p in out.glob("*.png")} == {
        "maps.png",
        "pairs.png",
        "robustness.png",
        "roc.png",
        "scores.png",
    }


def test_the_page_escapes_names_and_says_everything(out: Path, report: Report) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;&amp;$x^drawn_" in text
    read = Links(text).text
    for word in (
        "nobody <i>at all</i>",
        "Apache-2.0 & more",
        *TITLES.values(),
        *PAIR_CLASSES.values(),
        "the model's own, fitted on unoccluded faces of other people",
        "What the model's own thresholds accept of this list, by the fused score alone: 0.250 for FAR 1e-3",
        "drawn occluders, both, same occluder",
        "cosine: insufficient data, needs 10,000 impostor pairs",
        "fewer than 30 genuine pairs",
        "everybody wears one occluder of each kind",
        "mean absolute error",
        "Shortcuts",
        "99.9th percentile",
        str(out),
    ):
        assert word in read, word
    for groups in report.examples.values():
        for pairs in groups.values():
            assert all(pair.path_a in read and pair.path_b in read for pair in pairs)


def test_a_page_without_pictures_or_occluders(report: Report) -> None:
    few = replace(
        report,
        occluders=replace(report.occluders, kinds=[]),
        notes=["a <note>"],
        maps={UNOCCLUDED: report.maps[UNOCCLUDED], "<u>": report.maps["patch"]},
        pair_classes=None,
        robustness=None,
        shortcuts=None,
        examples={},
    )
    text = page.html(few, {})
    assert "a &lt;note&gt;" in text
    assert "<u>" not in text
    assert "Evaluation of " + escape(str(Path(report.model))) in text
    for left_out in ("Shortcuts", "Pair classes", "How much may be occluded", "<img"):
        assert left_out not in text


def test_short_lists_say_what_they_lack(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (work / "pairs.csv").open(encoding="utf-8", newline="") as opened:
        header, *rows = csv.reader(opened)
    same = [row for row in rows if row[2] == "1"]
    other = [row for row in rows if row[2] == "0"]
    pairs = tmp_path / "few.csv"
    with pairs.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([header, *same[:20], *other[:50]])
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "robustness.png").write_bytes(b"of an earlier run")
    (folder / "mine.png").write_bytes(b"not of the command")
    found = evaluate(
        str(work / "model <i>"), images=work / "faces", pairs=pairs, out=folder, occlude="patch", bootstrap=3
    )
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(str(folder / "report.html"))
    assert "One threshold, frozen" in printed
    assert "insufficient data, needs 1,000 impostor pairs" in " ".join(printed.split())
    assert "Shortcuts" not in printed  # the rest is in the page
    assert found.robustness is not None
    assert found.robustness.unoccluded is None
    assert found.robustness.kinds == {}
    assert not (folder / "robustness.png").exists()
    assert (folder / "mine.png").exists()
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Insufficient data: a threshold at FAR 1e-2 needs 1,000 impostor pairs." in text
    assert "AUC of the fused score" in text
