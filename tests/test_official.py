"""Published sets in their own layouts: miniatures with lists written by hand, read, measured, and refused with a reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from conftest import small_model
from oaml.datasets.drawn import draw_face
from oaml.errors import OamlError
from oaml.evaluation import report
from oaml.evaluation.official import SETS, in_folds
from oaml.evaluation.official import read_set as read_any
from oaml.evaluation.protocols import Listed, Pairs
from oaml.main import main
from test_galleries import write_deepface_emd, write_tinyface
from test_ijb import write_set, write_surveillance

pytestmark = pytest.mark.usefixtures("one_thread")
PEOPLE = ("Ann_Lee", "Bela", "Cem")


def read_set(name: str, data: Path) -> Listed:
    listed = read_any(name, data)
    assert listed is not None
    return listed


def pairs_of(listed: Listed) -> Pairs:
    assert listed.pairs is not None
    return listed.pairs


def write(data: Path, *names: str) -> None:
    """Drawn faces below a folder; the person is told by the name."""
    for number, name in enumerate(names):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        person = next((i for i, who in enumerate(PEOPLE) if who in name), number)
        Image.fromarray(draw_face(person, number)).save(path)


def compared(listed: Listed) -> list[tuple[str, str, bool | None]]:
    pairs = pairs_of(listed)
    return list(zip(pairs.path_a, pairs.path_b, pairs.same, strict=True))


def numbered_images(data: Path, suffix: str = ".jpg") -> None:
    write(data, *(f"{who}/{who}_{i:04d}{suffix}" for who in PEOPLE for i in (1, 2)))


@pytest.mark.parametrize("header", ["", "10\t300\n", "300\n"])
@pytest.mark.parametrize("folder", ["", "lfw", "lfw/aligned"])
def test_lfw_by_numbers_with_tabs(header: str, folder: str, tmp_path: Path) -> None:
    numbered_images(tmp_path / folder)
    (tmp_path / "pairs.txt").write_text(
        f"{header}Ann_Lee\t1\t2\nBela\t2\tCem\t1\n\nCem\t1\t2\nAnn_Lee\t1\tBela\t1\n"
    )
    listed = read_set("lfw", tmp_path)
    assert listed.images == tmp_path / folder
    assert sorted(compared(listed)) == [
        ("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg", True),
        ("Ann_Lee/Ann_Lee_0001.jpg", "Bela/Bela_0001.jpg", False),
        ("Bela/Bela_0002.jpg", "Cem/Cem_0001.jpg", False),
        ("Cem/Cem_0001.jpg", "Cem/Cem_0002.jpg", True),
    ]


def test_names_with_spaces_where_words_are_separated_by_tabs(tmp_path: Path) -> None:
    write(tmp_path, "Ann Lee/Ann Lee_0001.jpg", "Ann Lee/Ann Lee_0002.jpg")
    (tmp_path / "pairs.txt").write_text("Ann Lee\t1\t2\n")
    assert compared(read_set("lfw", tmp_path))[0][:2] == (
        "Ann Lee/Ann Lee_0001.jpg",
        "Ann Lee/Ann Lee_0002.jpg",
    )


def test_calfw_and_cplfw_by_two_lines_a_pair(tmp_path: Path) -> None:
    for name, file in (("calfw", "pairs_CALFW.txt"), ("cplfw", "pairs_CPLFW.txt")):
        data = tmp_path / name
        write(data / "aligned images", "Ann_Lee_0001.jpg", "Ann_Lee_0002.jpg", "Bela_0001.jpg")
        (data / file).write_text(
            "Ann_Lee_0001.jpg 3\nAnn_Lee_0002.jpg 3\nBela_0001.jpg 0\nAnn_Lee_0001.jpg 0\n"
        )
        listed = read_set(name, data)
        assert listed.images == data / "aligned images"
        assert compared(listed) == [
            ("Ann_Lee_0001.jpg", "Ann_Lee_0002.jpg", True),
            ("Bela_0001.jpg", "Ann_Lee_0001.jpg", False),
        ]
        assert [pairs_of(listed).person_of(path) for path in ("Ann_Lee_0002.jpg", "Bela_0001.jpg")] == [
            "Ann_Lee",
            "Bela",
        ]


def test_agedb_and_others_by_label_first(tmp_path: Path) -> None:
    write(tmp_path / "agedb_30_112x112", "0_Ann_Lee_20_f.jpg", "1_Ann_Lee_50_f.jpg", "2_Bela_30_m.jpg")
    lines = "1 {0}/0_Ann_Lee_20_f.jpg {0}/1_Ann_Lee_50_f.jpg\n0 {0}/0_Ann_Lee_20_f.jpg {0}/2_Bela_30_m.jpg\n"
    (tmp_path / "agedb_30_ann.txt").write_text(lines.format("agedb_30_112x112"))
    listed = read_set("agedb-30", tmp_path)
    assert listed.images == tmp_path
    assert [same for *_, same in compared(listed)] == [True, False]


def test_xqlfw_by_numbers_and_mlfw_by_paths(tmp_path: Path) -> None:
    numbered_images(tmp_path / "x" / "xqlfw_aligned_112")
    (tmp_path / "x" / "xqlfw_pairs.txt").write_text("10\t300\nAnn_Lee\t1\t2\nBela\t1\tCem\t2\n")
    assert [same for *_, same in compared(read_set("xqlfw", tmp_path / "x"))] == [True, False]
    write(tmp_path / "m" / "aligned", "Ann_Lee_0001_0000.jpg", "Ann_Lee_0002_0001.jpg", "Bela_0001_0000.jpg")
    (tmp_path / "m" / "pairs.txt").write_text(
        "Ann_Lee_0001_0000.jpg\tAnn_Lee_0002_0001.jpg\t1\nAnn_Lee_0001_0000.jpg\tBela_0001_0000.jpg\t0\n"
    )
    listed = read_set("mlfw", tmp_path / "m")
    assert [same for *_, same in compared(listed)] == [True, False]
    assert pairs_of(listed).person_of("Ann_Lee_0002_0001.jpg") == "Ann_Lee"


def cfp(data: Path) -> None:
    """Three people with two frontal images and a profile; ten folds, all with one genuine and one impostor pair."""
    frontal = [f"Data/Images/00{p}/frontal/0{i}.jpg" for p in (1, 2, 3) for i in (1, 2)]
    profile = [f"Data/Images/00{p}/profile/01.jpg" for p in (1, 2, 3)]
    write(data, *frontal, *profile)
    protocol = data / "Protocol"
    for fold in range(1, 11):
        (protocol / "Split" / "FP" / f"{fold:02d}").mkdir(parents=True)
        (protocol / "Split" / "FP" / f"{fold:02d}" / "same.txt").write_text("3,2\n")
        (protocol / "Split" / "FP" / f"{fold:02d}" / "diff.txt").write_text("1,3\n")
    for name, paths in (("F", frontal), ("P", profile)):
        lines = [f"{i} ../{path}" for i, path in enumerate(paths, 1)]
        (protocol / f"Pair_list_{name}.txt").write_text("\n".join(lines) + "\n")


def test_cfp_by_numbers_of_two_lists(tmp_path: Path) -> None:
    cfp(tmp_path)
    listed = read_set("cfp-fp", tmp_path)
    assert compared(listed)[:2] == [
        ("Data/Images/002/frontal/01.jpg", "Data/Images/002/profile/01.jpg", True),
        ("Data/Images/001/frontal/01.jpg", "Data/Images/003/profile/01.jpg", False),
    ]
    assert len(pairs_of(listed)) == 20
    assert pairs_of(listed).person_of("Data/Images/002/profile/01.jpg") == "002"
    (tmp_path / "Protocol" / "Split" / "FP" / "04" / "diff.txt").write_text("1,3\n7,1\n")
    with pytest.raises(
        OamlError, match=r"04/diff\.txt, line 2: '7,1' are no numbers of a frontal and a profile"
    ):
        read_set("cfp-fp", tmp_path)


def mfr2(data: Path) -> None:
    numbered_images(data, ".png")
    (data / "mfr2_labels.txt").write_text(
        "".join(f"{who}, {i}, {kind}\n" for who in PEOPLE for i, kind in ((1, "cloth"), (2, "no-mask")))
    )
    (data / "pairs.txt").write_text(
        "Ann_Lee 1 2\nBela 1 2\nCem 1 2\nAnn_Lee 1 Bela 1\nAnn_Lee 2 Bela 2\nCem 2 Ann_Lee 1\n" * 4
    )


def test_mfr2_by_what_the_labels_say(tmp_path: Path) -> None:
    mfr2(tmp_path)
    listed = read_set("mfr2", tmp_path)
    assert len(pairs_of(listed)) == 24
    by_pair = dict(zip(compared(listed), pairs_of(listed).group, strict=True))
    assert by_pair["Ann_Lee/Ann_Lee_0001.png", "Bela/Bela_0001.png", False] == "masked-masked"
    assert by_pair["Ann_Lee/Ann_Lee_0002.png", "Bela/Bela_0002.png", False] == "unmasked-unmasked"
    assert by_pair["Cem/Cem_0001.png", "Cem/Cem_0002.png", True] == "masked-unmasked"
    assert dict(zip(pairs_of(listed).occluded, pairs_of(listed).group, strict=True)) == {
        2: "masked-masked",
        0: "unmasked-unmasked",
        1: "masked-unmasked",
    }
    (tmp_path / "mfr2_labels.txt").write_text("Ann_Lee, 1, cloth\n")
    with pytest.raises(OamlError, match=r"says nothing of Ann_Lee/Ann_Lee_0002\.png, Bela/Bela_0001\.png"):
        read_set("mfr2", tmp_path)


def test_rmfrd_and_rof_by_folders(tmp_path: Path) -> None:
    masked, bare = "AFDB_masked_face_dataset", "AFDB_face_dataset"
    write(
        tmp_path / "r", f"{bare}/Bela/0.jpg", f"{bare}/Bela/1.jpg", f"{bare}/Cem/0.jpg", f"{masked}/Cem/a.jpg"
    )
    write(tmp_path / "r", f"{masked}/Nobody/a.jpg")
    listed = read_set("rmfrd", tmp_path / "r")
    assert compared(listed) == [
        (f"{bare}/Cem/0.jpg", f"{masked}/Cem/a.jpg", True),
        (f"{bare}/Bela/0.jpg", f"{masked}/Cem/a.jpg", False),
    ]
    assert listed.identification is not None
    assert listed.identification.gallery == [f"{bare}/Bela/0.jpg", f"{bare}/Cem/0.jpg"]
    assert listed.identification.probes == [f"{masked}/Cem/a.jpg"]
    write(tmp_path / "o", "neutral/Bela/0.jpg", "neutral/Bela/1.jpg", "neutral/Cem/0.jpg")
    write(tmp_path / "o", "masked/Bela/0.jpg", "sunglasses/Cem/0.jpg")
    for junk in (
        "neutral/Bela/._0.jpg",
        "neutral/Bela/Thumbs.db",
        "masked/Bela/._0.jpg",
        "masked/@eaDir/0.jpg",
    ):
        (tmp_path / "o" / junk).parent.mkdir(exist_ok=True)
        (tmp_path / "o" / junk).write_bytes(b"put here by a system")
    listed = read_set("rof", tmp_path / "o")
    assert pairs_of(listed).group == ["neutral"] * 2 + ["masked"] * 2 + ["sunglasses"] * 2
    assert pairs_of(listed).occluded == [0, 0, 1, 1, 1, 1]


def test_folds_hold_both_classes_and_a_list_in_folds_stays_in_them() -> None:
    """LFW's list has its folds one after the other; CALFW's has all genuine pairs first."""
    names = [f"{i}" for i in range(60)]
    lfw = Pairs(names, names, [i % 6 < 3 for i in range(60)])
    for fold in range(10):
        rows = slice(6 * fold, 6 * fold + 6)
        assert sorted(in_folds(lfw).path_a[rows]) == sorted(names[rows])
    halves = in_folds(Pairs(names, names, [i < 30 for i in range(60)]))
    assert [sum(map(bool, halves.same[i : i + 6])) for i in range(0, 60, 6)] == [3] * 10
    assert sorted(halves.path_a) == sorted(names)


def test_evaluate_measures_a_set_with_folds_groups_and_its_cosine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mfr2(tmp_path / "mfr2")
    small_model(thresholds={"0.01": 1.0}).save(tmp_path / "model")
    assert main(
        ["evaluate", str(tmp_path / "model"), "--protocol", "mfr2", "--data", str(tmp_path / "mfr2"), "--out",
         str(tmp_path / "report"), "--bootstrap", "0"]
    ) == 0  # fmt: skip
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "10-fold accuracy" in page
    assert "masked-unmasked" in page
    out = capsys.readouterr().out
    assert "cosine" in out
    assert "fused" in out


def test_numbers_of_a_set_worked_out_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are put in: of three genuine and three impostor kinds of pairs one impostor lies above one genuine pair."""
    mfr2(tmp_path / "mfr2")
    small_model().save(tmp_path / "model")
    score = {
        ("Ann_Lee", "Ann_Lee"): 0.9,
        ("Bela", "Bela"): 0.4,
        ("Cem", "Cem"): 0.8,
        ("Ann_Lee", "Bela"): 0.1,
    }
    score[("Cem", "Ann_Lee")] = 0.5

    def scored(
        _: object, __: object, index_a: np.ndarray, *rest: object, **named: object
    ) -> dict[str, np.ndarray]:
        listed = pairs_of(read_set("mfr2", tmp_path / "mfr2"))
        owners = zip(map(listed.person_of, listed.path_a), map(listed.person_of, listed.path_b), strict=True)
        values = np.array([score[pair] for pair in owners])
        return {name: values for name in ("cosine", "qaconv", "qaconv_visibility", "joint", "fused")}

    monkeypatch.setattr("oaml.evaluation.conditions.score_pairs", scored)
    result = report.evaluate(
        str(tmp_path / "model"), protocol="mfr2", data=tmp_path / "mfr2", out=tmp_path / "out", bootstrap=0
    )
    assert result.verification is not None
    measures = result.verification.conditions["unoccluded"]["fused"]
    assert (measures.genuine_pairs, measures.impostor_pairs) == (12, 12)
    assert measures.auc.value == pytest.approx(8 / 9)  # of 3 x 3 kinds of comparisons one is wrong
    assert measures.kfold is not None
    assert len(measures.kfold.accuracy) == 10
    assert result.groups is not None
    assert set(result.groups) == {"masked-unmasked"}  # the others lack genuine pairs
    group = result.groups["masked-unmasked"]["fused"]
    assert (group.genuine_pairs, group.impostor_pairs) == (12, 4)
    assert group.auc.value == pytest.approx(2 / 3)  # 0.9 and 0.8 lie above 0.5, 0.4 below


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mfr2(tmp_path / "mfr2")
    with pytest.raises(OamlError, match="no list of LFW, which LFW, view 2 has; it looks like mfr2"):
        read_set("lfw", tmp_path / "mfr2")
    with pytest.raises(
        OamlError, match=r"no Protocol/Pair_list_F\.txt and .*it looks like mfr2; expected Protocol"
    ):
        read_set("cfp-fp", tmp_path / "mfr2")
    with pytest.raises(OamlError, match=r"none: no such folder; rof is expected as neutral/PERSON"):
        read_set("rof", tmp_path / "none")
    numbered_images(tmp_path / "lfw")
    (tmp_path / "lfw" / "pairs.txt").write_text(
        "Ann_Lee 1 2\n" + "".join(f"Bela {i} {i + 1}\n" for i in range(3, 17))
    )
    with pytest.raises(
        OamlError, match=r"15 images that it names are missing.*Bela_0003, .*Bela_0012 and 5 more;"
    ):
        read_set("lfw", tmp_path / "lfw")
    for text, what in (
        ("Ann_Lee 1 2\nAnn_Lee 1\nBela 1 2\n", r"line 3: 'Bela 1 2' is no pair"),
        ("Ann_Lee 1 2 3 4\n", r"line 1: 'Ann_Lee 1 2 3 4' is no pair"),
        ("Ann_Lee/Ann_Lee_0001.jpg 1\n", "ends in the middle of a pair"),
        ("a.jpg 1\nb.jpg 0\n", r"line 2: 'b.jpg 0' is no pair"),
        ("", "holds no pairs"),
        ("10\t300\n", "holds no pairs"),
        ("Nobody 1 2\n", r"names Nobody/Nobody_0001, which is in no folder"),
        ("Ann_Lee_0001.jpg Ann_Lee_0002.jpg 1\n", "its lines are paths, as MLFW has them"),
    ):
        (tmp_path / "lfw" / "pairs.txt").write_text(text)
        with pytest.raises(OamlError, match=what):
            read_set("lfw", tmp_path / "lfw")
    (tmp_path / "lfw" / "pairs.txt").write_bytes(b"Ann\xff 1 2\n")
    with pytest.raises(OamlError, match="is not UTF-8"):
        read_set("lfw", tmp_path / "lfw")
    for words, what in (
        (["--data", "x"], "which published set is it"),
        (["--protocol", "mfr2"], "name its folder with --data"),
        (
            ["--protocol", "mfr2", "--data", "x", "--images", "y"],
            "leave --images, --pairs and --identification out",
        ),
        (["--pairs", "x.csv"], "name it with --images"),
    ):
        assert main(["evaluate", "starter", "--out", str(tmp_path / "out"), *words]) == 1
        assert what in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def paired(data: Path, file: str, folder: str, line: str) -> None:
    """Ten pairs of each class of flat images, by lines such as `{a} {b} {same}`."""
    write(data / folder, *(f"{who}_{i:04d}.jpg" for who in PEOPLE for i in (1, 2)))
    genuine = [(f"{who}_0001.jpg", f"{who}_0002.jpg", 1) for who in PEOPLE]
    impostor = [(f"{a}_0001.jpg", f"{b}_0002.jpg", 0) for a in PEOPLE for b in PEOPLE if a != b]
    rows = [*(genuine * 4)[:10], *(impostor * 2)[:10]]
    (data / file).write_text("".join(line.format(a=a, b=b, same=same) for a, b, same in rows))


def numbered(data: Path, file: str) -> None:
    numbered_images(data)
    genuine, impostor = [f"{who}\t1\t2\n" for who in PEOPLE], "Ann_Lee\t1\tBela\t2\nCem\t1\tBela\t1\n"
    (data / file).write_text("".join((genuine * 4)[:10]) + impostor * 5)


def by_folder(data: Path, gallery: str, *probes: str) -> None:
    write(data, *(f"{gallery}/{who}/{i}.jpg" for who in PEOPLE for i in (0, 1)))
    write(data, *(f"{folder}/{who}/9.jpg" for folder in probes for who in PEOPLE))


MINIATURES: dict[str, Callable[[Path], object]] = {
    "lfw": lambda data: numbered(data, "pairs.txt"),
    "cfp-fp": cfp,
    "agedb-30": lambda data: paired(data, "agedb_30_ann.txt", "", "{same} {a} {b}\n"),
    "calfw": lambda data: paired(data, "pairs_CALFW.txt", "aligned images", "{a} {same}\n{b} {same}\n"),
    "cplfw": lambda data: paired(data, "pairs_CPLFW.txt", "aligned images", "{a} {same}\n{b} {same}\n"),
    "xqlfw": lambda data: numbered(data, "xqlfw_pairs.txt"),
    "mlfw": lambda data: paired(data, "pairs.txt", "aligned", "{a}\t{b}\t{same}\n"),
    "mfr2": mfr2,
    "rmfrd": lambda data: by_folder(data, "AFDB_face_dataset", "AFDB_masked_face_dataset"),
    "rof": lambda data: by_folder(data, "neutral", "masked", "sunglasses"),
    "tinyface": write_tinyface,
    "deepface-emd": write_deepface_emd,
    "ijbb": lambda data: write_set(data, "ijbb"),
    "ijbc": lambda data: write_set(data, "ijbc"),
    "ijbs": write_surveillance,
}
COMMANDS = re.findall(
    r"`(oaml evaluate runs/adapted --protocol [^`]+)`",
    (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"),
)


def test_the_readme_has_a_command_for_every_set() -> None:
    assert sorted(command.split()[4] for command in COMMANDS) == sorted(SETS) == sorted(MINIATURES)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_measure_miniatures(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command.split()[1:]
    name, data, out = (words[words.index(flag) + 1] for flag in ("--protocol", "--data", "--out"))
    MINIATURES[name](tmp_path / data)
    small_model(thresholds={"0.01": 1.0}).save(tmp_path / "runs" / "adapted")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "_draw", lambda *_: {})  # other tests look at the pictures
    assert main([*words, "--bootstrap", "0"]) == 0
    measured = json.loads((tmp_path / out / "report.json").read_text())
    if measured["verification"] is None and measured["identification"] is not None:
        assert {"5", "10", "20"} == set(measured["identification"]["rank"]["unoccluded"]["fused"])
    elif name == "ijbs":
        assert {"plain", "cosine", "fused"} <= set(measured["template_set"]["identification_mean"])
    elif measured["template_set"] is None:
        scores = measured["verification"]["conditions"]["unoccluded"]
        assert set(scores) == {"cosine", "qaconv", "qaconv_visibility", "joint", "fused"}
        assert (scores["fused"]["kfold"] is not None) is SETS[name].folds
    else:
        assert {"plain", "cosine", "fused"} <= set(measured["template_set"]["verification"])


def test_the_list_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--list"]) == 0
    listed = capsys.readouterr().out
    assert {line.split("  ")[0] for line in listed.splitlines() if line and line[0] not in " e"} == set(SETS)
    assert set(get_args(report.Protocol)) == {"pairs", *SETS}
