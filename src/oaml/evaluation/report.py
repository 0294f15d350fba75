"""`oaml evaluate`: all scores side by side on the same images, unoccluded and occluded; a page, tables, numbers, pictures."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np

from oaml import __version__
from oaml.datasets.sources import ByName, is_source
from oaml.errors import OamlError, few
from oaml.evaluation import conditions, official, overlap, page
from oaml.evaluation.conditions import IMPOSTOR_LIMIT, Measured, MeasuredFaces
from oaml.evaluation.protocols import (
    Identification,
    Pairs,
    identified_without,
    labels,
    read_identification,
    read_pairs,
    without,
)
from oaml.evaluation.results import PAIR_CLASSES, UNOCCLUDED, DrawnOccluders, Report, Side
from oaml.evaluation.summary import CURVE_FAR, PairStatistics, identification_result, with_all
from oaml.evaluation.tables import all_tables, condition_name, headline, markdown, show, shown
from oaml.inference import BATCH_SIZE, load_model
from oaml.support import metrics
from oaml.support.files import write_file
from oaml.support.names import printable, readable
from oaml.template import COLUMNS, TITLES

Protocol = Literal[
    "pairs",
    "lfw",
    "cfp-fp",
    "agedb-30",
    "calfw",
    "cplfw",
    "xqlfw",
    "mlfw",
    "mfr2",
    "rmfrd",
    "rof",
    "tinyface",
    "deepface-emd",
    "ijbb",
    "ijbc",
    "ijbs",
]


def evaluate(
    model: str,
    *,
    out: Path,
    images: Path | None = None,
    pairs: Path | None = None,
    identification: Path | None = None,
    occlude: str | None = None,
    side: Side = "b",
    seed: int = 0,
    style: Literal["a", "b"] = "b",
    mask_pictures: Path | None = None,
    occluders_from: Path | None = None,
    protocol: Protocol = "pairs",
    data: Path | None = None,
    refine: bool = False,
    baselines: bool = False,
    resize: bool = False,
    skip_damaged: bool = False,
    trained_on: Path | None = None,
    batch_size: int = BATCH_SIZE,
    bootstrap: int = 200,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
) -> Report:
    """Measure a model on people it was not trained on, unoccluded and under drawn occluders.

    Writes OUT/report.html (everything, in one file), OUT/report.json (all numbers, see `docs/report.md`), OUT/table.md,
    OUT/maps.png and, with pairs, OUT/roc.png, OUT/scores.png, OUT/pairs.png and OUT/robustness.png; prints the main tables.
    The same images are measured unoccluded and under every kind asked for. An occluder depends on the seed, the kind and the
    image's path alone, as in `oaml occlude`. Whatever side is asked for, pairs are also measured with one and with both
    images occluded, each by its own occluder and by the same one (see `oaml.evaluation.conditions`); of long lists a fixed
    random part. An interval in brackets covers 95 % of what other people would give (see
    `oaml.support.metrics.summarise`); a person is a folder of images.

    Example:
        oaml evaluate runs/first/best --images faces --pairs pairs.csv --out report --occlude niqab,mask

    Args:
        model: a model folder (config.json + model.safetensors).
        images: folder that the paths in the lists are relative to; or a CSV manifest, a .rec file or tar shards that hold pictures
            of these names (`docs/data.md`); or a .bin verification set, which brings its own pairs; or a file of `oaml embed` by
            the model that holds these paths, so that a large set is embedded once. Its rounding to int8 moves a fused score by .005
            on average, by .04 at most. Only unoccluded faces can be measured then, and maps.png and pairs.png, which show images,
            are left out.
        out: folder for the results; files of these names are replaced, a picture that lacks data is removed.
        pairs: CSV with the columns path_a, path_b and same (1 or 0). With occluded_a and occluded_b (1 where the photograph shows
            an occluded face, 0 where it doesn't) what the model's own thresholds accept is stated by these too.
        identification: CSV with the columns path, person and role (gallery, probe, or stranger for a probe who isn't in the
            gallery), for rank-1 and, with strangers, TPIR at FPIR.
        occlude: kinds of occluder, separated by commas, or all; harvested is one with --occluders_from.
        side: which image of a pair is occluded. In identification a is the gallery and b the probe.
        seed: of occluders and intervals.
        style: family of occluders. b shares no texture and no outline with a, which is for
            training.
        mask_pictures: folder of mask pictures with alpha, for the kind mask.
        occluders_from: folder of occluders that `oaml occlude --harvest` cut out of photographs, for the kind harvested. Style b
            wears those of the photographs that no training may use.
        protocol: a published set, read from --data by its own lists (`oaml evaluate --list` says what is expected there); most add
            the accuracy over 10 folds. With --pairs, lfw adds that to a list of one's own.
        data: folder of the published set, with faces aligned to 112x112, or its .bin file; in the place of --images and --pairs.
        refine: of IJB-B and IJB-C, whose crops are cut by the landmarks of the set: move them to where the face lies beneath its
            occluder. Of other sets `oaml align --refine` makes such crops.
        baselines: measure two published ways beside, with the same network: the cosine of the upper half of the face, and in
            identification the first 100 re-ranked by earth mover's distance (DeepFace-EMD).
        resize: scale images of another size instead of refusing them.
        skip_damaged: read every listed image once beforehand, and leave out and name pairs of those that can't be read.
        trained_on: folder of the people that the model was trained on. Those who are probably in the measured set as well, by their
            faces or their names, are listed. Of a model that keeps the hashes of their names only the people of these count.
        batch_size: faces read at a time; on a GPU also faces a pass.
        bootstrap: resamples for the intervals; 0 leaves them out.
        precision: of QAConv's correlations in identification: float32, or bfloat16, which is two to three times as fast where the
            processor multiplies matrices of it (AMX), and moves a fused score by .001 on average and by .11 at most. Pairs are
            always scored in float32. Of IJB-B, IJB-C and IJB-S also of the network, as in `oaml embed`.
        device: cpu, cuda, or auto for a GPU where there is one.

    Returns:
        All numbers, as report.json holds them.

    Raises:
        OamlError: a wrong option, list, image or model. Nothing is written then.
    """
    arguments = {
        name: readable(str(value)) if isinstance(value, Path | str) else value
        for name, value in locals().items()
    }
    from oaml.occluders import Occluder, load_harvested, load_mask_pictures

    out = Path(out)
    kinds = _kinds(occlude, occluders_from)
    _check(out, images, pairs, identification, data, protocol, mask_pictures, kinds, seed, bootstrap)
    published = None if data is None else official.read_set(protocol, data)
    if refine and protocol not in ("ijbb", "ijbc"):
        raise OamlError(
            "--refine is of IJB-B and IJB-C; write refined crops of another set with oaml align --refine"
        )
    pictures = [] if mask_pictures is None else load_mask_pictures(mask_pictures)
    harvested = None if occluders_from is None else load_harvested(occluders_from)
    if harvested is not None:
        harvested.of(style)  # raises where this style has none
    occluder = Occluder(seed, style, pictures, harvested=harvested)
    drawn = DrawnOccluders(kinds, side, style, seed)
    if data is not None and published is None:
        from oaml.evaluation import ijb
        from oaml.evaluation.template_lists import read_lists

        lists = read_lists(protocol, Path(data))
        loaded = load_model(model, device, batch_size)
        template_sets = ijb.Measured(loaded, lists, protocol, out, refine, baselines, precision)
        sets = template_sets.all(kinds, side, occluder)
        loaded.config.training.pop("people_hashed", None)
        report = Report(
            oaml=__version__,
            model=readable(str(model)),
            config=loaded.config,
            arguments=arguments,
            occluders=drawn,
            maps={},
            template_set=sets.pop(UNOCCLUDED),
            template_set_occluded=sets,
        )
        _write(report, out, None, None)
        return report
    images = published.images if published else Path(images or "")
    if kinds and not is_source(images):
        raise OamlError(
            f"{images}: holds templates, and occluders are drawn on images; leave --occlude out, or give the folder of images"
        )
    if baselines and not is_source(images):
        raise OamlError(f"{images}: holds templates, and --baselines reads images; give the folder of images")
    source = ByName(images) if is_source(images) else images
    listed = None if pairs is None else read_pairs(pairs, source)
    known = None if identification is None else read_identification(identification, source)
    if published is not None:
        listed, known = published.pairs, published.identification
    left_out: list[str] = []
    if isinstance(source, ByName):
        if listed is None and known is None:
            a, b, same = source.pairs() or ([], [], [])
            listed = Pairs(a, b, list(same))
        listed, known, left_out = _readable(source, listed, known, skip_damaged)
    folds = official.SETS[protocol].folds if protocol != "pairs" else False
    if listed is not None:
        _check_pairs(Path(pairs or data or images), listed, folds)
    loaded = load_model(model, device, batch_size)
    trained = set(
        loaded.config.training.pop("people_hashed", [])
    )  # thousands of digits, of no use in a report
    training = None if trained_on is None else overlap.training_people(Path(trained_on), trained, resize)
    faces = MeasuredFaces(loaded, source, resize, batch_size, occluder, baselines)
    measured = conditions.measure(faces, listed, known, kinds, side, seed, precision)
    found = overlap.of_measured(faces, listed, known, training, seed)
    report = Report(
        oaml=__version__,
        model=readable(str(model)),
        config=loaded.config,
        notes=overlap.took_part(trained, listed, known) + overlap.notes(found) + left_out,
        arguments=arguments,
        occluders=drawn,
        maps=faces.maps,
        overlap=found,
    )
    if listed is not None:
        statistics = PairStatistics(listed, measured, bootstrap, seed)
        verification = statistics.verification(folds)
        report = replace(
            report,
            notes=report.notes + _notes(listed, measured),
            verification=verification,
            baselines=statistics.baselines() if baselines else None,
            groups=statistics.groups(listed.group) if listed.group else None,
            frozen_threshold=statistics.frozen(loaded.config.thresholds),
            stored_thresholds=statistics.stored(loaded.config.thresholds),
            pair_classes=statistics.pair_classes(verification) if kinds else None,
            robustness=statistics.robustness() if kinds else None,
            shortcuts=statistics.shortcuts() if kinds else None,
            examples=statistics.examples(verification),
        )
    if known is not None:
        report = replace(
            report,
            identification=identification_result(measured, known, bootstrap, seed, loaded.config.thresholds),
        )
    _write(report, out, measured, listed)
    return report


# --- options ---


def _kinds(occlude: str | None, occluders_from: Path | None) -> list[str]:
    from oaml.occluders import HARVESTED, KINDS

    known = [*KINDS, *([] if occluders_from is None else [HARVESTED])]
    kinds = [] if occlude is None else list(dict.fromkeys(k.strip() for k in occlude.split(",")))
    kinds = known if kinds == ["all"] else kinds
    for kind in kinds:
        if kind == HARVESTED and occluders_from is None:
            raise OamlError(
                f"kind {HARVESTED} comes from a folder of occluders; name it with --occluders_from"
            )
        if kind not in known:
            raise OamlError(f"no occluder is called {kind!r}; choose among {', '.join(known)}, or all")
    if occluders_from is not None and HARVESTED not in kinds:
        raise OamlError(
            f"{occluders_from}: is for the kind {HARVESTED}; add {HARVESTED} to --occlude or leave --occluders_from out"
        )
    return kinds


def _check(
    out: Path,
    images: Path | None,
    pairs: Path | None,
    identification: Path | None,
    data: Path | None,
    protocol: str,
    mask_pictures: Path | None,
    kinds: list[str],
    seed: int,
    bootstrap: int,
) -> None:
    own_pairs = images is not None and images.suffix == ".bin" and identification is None
    if data is not None:
        if images or pairs or identification:
            raise OamlError(
                "--data names a published set with its own lists; leave --images, --pairs and --identification out"
            )
        if protocol == "pairs":
            raise OamlError(
                f"{data}: which published set is it? Name it with --protocol (`oaml evaluate --list`)"
            )
    elif protocol not in ("pairs", "lfw"):
        raise OamlError(f"protocol {protocol} reads a published set; name its folder with --data")
    elif pairs is None and identification is None and not own_pairs:
        raise OamlError(
            "nothing to measure: give --pairs or --identification, or both; or --protocol and --data"
        )
    elif images is None:
        raise OamlError("the lists' paths are relative to a folder; name it with --images")
    elif protocol == "lfw" and pairs is None and not own_pairs:
        raise OamlError("protocol lfw is about pairs; give --pairs, or --data for the published set")
    if mask_pictures is not None and "mask" not in kinds:
        raise OamlError(
            "mask pictures are for the kind mask; add mask to --occlude or leave --mask_pictures out"
        )
    if seed < 0 or bootstrap < 0:
        raise OamlError(f"seed and bootstrap start at 0, these are {seed} and {bootstrap}")
    if out.exists() and not out.is_dir():
        raise OamlError(f"{out}: is a file; name a folder for the results")


def _readable(
    source: ByName, listed: Pairs | None, known: Identification | None, skip_damaged: bool
) -> tuple[Pairs | None, Identification | None, list[str]]:
    """The lists with names that tell the person, without images that can't be read where that is asked for, and a note of these."""
    damaged = dict[str, str]()
    if skip_damaged:
        used = [] if listed is None else [*listed.path_a, *listed.path_b]
        used += [] if known is None else [*known.gallery, *known.probes, *known.strangers]
        damaged = source.damaged(used)
    before = [0 if part is None else len(part) for part in (listed, known)]
    if listed is not None:
        listed = without(listed, damaged)
        a, b = ([source.below_person(path) for path in side] for side in (listed.path_a, listed.path_b))
        listed = replace(listed, path_a=a, path_b=b)
    if known is not None:
        known = identified_without(known, damaged)
        paths = (
            [source.below_person(path) for path in side]
            for side in (known.gallery, known.probes, known.strangers)
        )
        known = replace(known, **dict(zip(("gallery", "probes", "strangers"), paths, strict=True)))
    if not damaged:
        return listed, known, []
    gone = [
        f"{count - (0 if part is None else len(part)):,} of {count:,} {what}"
        for count, part, what in zip(
            before, (listed, known), ("pairs", "gallery images and probes"), strict=True
        )
        if count
    ]
    reasons = few(list(damaged.values()), 10)
    return (
        listed,
        known,
        [f"{' and '.join(gone)} are left out, since {len(damaged):,} images are damaged: {reasons}"],
    )


def _check_pairs(file: Path, pairs: Pairs, folds: bool) -> None:
    same = labels(pairs)
    if same.all() or not same.any():
        lacking = "impostor pair (same = 0)" if same.all() else "genuine pair (same = 1)"
        raise OamlError(f"{file}: holds no {lacking}; measuring needs pairs of both classes")
    if folds and len(pairs) < 10:
        raise OamlError(f"{file}: holds {len(pairs)} pairs; the protocol needs at least 10, one a fold")


def _notes(pairs: Pairs, measured: Measured) -> list[str]:
    notes = []
    person_of = pairs.person_of
    within = [person_of(a) == person_of(b) for a, b in zip(pairs.path_a, pairs.path_b, strict=True)]
    odd = int((np.array(within) != labels(pairs)).sum())
    if odd:
        notes.append(
            f"{odd} of {len(pairs)} pairs disagree with the folders (one person in two of them, or two in one); "
            "the intervals take each folder for one person"
        )
    for name, by_kind in measured.classes.items():
        counts = {int((~labels(pairs)[t.rows]).sum()) for t in by_kind.values()}
        if counts == {IMPOSTOR_LIMIT} and (~labels(pairs)).sum() > IMPOSTOR_LIMIT:
            notes.append(
                f"{PAIR_CLASSES[name]}: a random {IMPOSTOR_LIMIT:,} of the impostor pairs (seeded), all genuine pairs"
            )
    return notes


# --- results ---


def _write(report: Report, out: Path, measured: Measured | None, pairs: Pairs | None) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no width, and 80 would cut numbers
    tables = all_tables(report)
    if first := headline(report):
        console.print(first, style="bold", markup=False, highlight=False, soft_wrap=True)
    show(console, [table for table in tables if shown(table)])
    for note in report.notes:
        console.print(f"note: {printable(note)}", style="yellow", markup=False)
    text = [f"# {report.model}\n", *([f"{first}\n"] if first else []), *map(markdown, tables)]
    text += [f"Note: {note}\n" for note in report.notes]

    pictures = {} if measured is None else _draw(report, out, measured, pairs)
    _write_text(out / "table.md", "\n".join(text))
    _write_text(out / "report.json", report.json())
    written = _write_text(out / "report.html", page.html(report, pictures))
    console.print(f"the page: {printable(str(written))}", markup=False, highlight=False, soft_wrap=True)


def _write_text(path: Path, text: str) -> Path:
    return write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _draw(report: Report, out: Path, measured: Measured, pairs: Pairs | None) -> dict[str, Path]:
    """Write all pictures that there is something for; one of an earlier run that isn't drawn again is removed."""
    from oaml.evaluation import plots

    names = ("roc.png", "scores.png", "robustness.png", "pairs.png", "maps.png")
    readable = isinstance(measured.faces.images, ByName)  # and no file of templates
    drawn = {"maps.png": _draw_maps(out / "maps.png", measured.faces)} if readable else {}
    if pairs is not None:
        same = labels(pairs)
        by_condition = {
            condition_name(condition): {
                TITLES[score]: (
                    np.concatenate([t.scores[score] for t in chosen]),
                    np.tile(same, len(chosen)),
                )
                for score in COLUMNS
            }
            for condition, chosen in with_all(measured.asked).items()
        }
        counts = f"{same.sum():,} genuine and {(~same).sum():,} impostor pairs"
        counts += f"; {page.SIDES[report.occluders.side]} occluded" * (len(measured.asked) > 1)
        curves = {c: {s: metrics.roc(*pair) for s, pair in by.items()} for c, by in by_condition.items()}
        title = f"Who is accepted, by score\n{counts}"
        drawn["roc.png"] = plots.draw_roc(out / "roc.png", curves, title=title)
        lines = _lines(report)
        drawn["scores.png"] = plots.draw_histograms(
            out / "scores.png",
            by_condition,
            title=f"Scores of pairs: {counts}" + "\ndashed: one threshold for all conditions" * bool(lines),
            thresholds=lines,
        )
        if readable:
            drawn["pairs.png"] = _draw_pairs(out / "pairs.png", report, measured)
        if report.robustness is not None and report.robustness.unoccluded is not None:
            drawn["robustness.png"] = plots.draw_robustness(
                out / "robustness.png",
                report.robustness,
                title="Who is accepted by how much is occluded, at the unoccluded threshold of FAR 1e-2\n"
                f"{counts}; hollow: fewer than {metrics.MIN_GENUINE_PAIRS} pairs",
            )
    for name in names:
        if name not in drawn:
            (out / name).unlink(missing_ok=True)
    return {name: drawn[name] for name in names if name in drawn}


def _lines(report: Report) -> dict[str, tuple[float, str]]:
    """The threshold of each score that the histograms show: the model's own, or that of the unoccluded pairs."""
    lines = {}
    if report.verification is not None:
        for score, measures in report.verification.conditions[UNOCCLUDED].items():
            point = measures.tar_at_far[CURVE_FAR]
            if point is not None and isfinite(point.threshold):
                lines[TITLES[score]] = (point.threshold, "FAR 1e-2, unoccluded")
    own = report.frozen_threshold and report.frozen_threshold.scores["fused"]
    if own and own.source == "model" and own.threshold is not None:
        lines[TITLES["fused"]] = (own.threshold, "FAR 1e-3, model's own")
    return lines


def _draw_pairs(path: Path, report: Report, measured: Measured) -> Path:
    from oaml.evaluation.plots import PairRow, draw_pair_sheet

    def face(path: str, condition: str) -> np.ndarray:
        image, occluded = measured.faces.read(path, condition)
        return image if occluded is None else occluded.image

    blocks = {
        condition if condition == UNOCCLUDED else f"{condition} (the hardest occluder)": {
            group: [
                PairRow(
                    face(pair.path_a, pair.condition_a),
                    example.map_a,
                    face(pair.path_b, pair.condition_b),
                    example.map_b,
                    f"fused {pair.score:.2f}\n{_brief(pair.path_a)}\n{_brief(pair.path_b)}",
                )
                for example in examples
                for pair in [example.pair]
            ]
            for group, examples in measured.asked[condition].examples.items()
        }
        for condition in report.examples
    }
    title = "Best and worst pairs: either face and its predicted map (bright = visible, dark = occluded)"
    return draw_pair_sheet(path, blocks, title=title)


def _brief(path: str, length: int = 34) -> str:
    """The end of a path, without characters that can't be printed."""
    shown = "".join(c if c.isprintable() else "?" for c in path)
    return shown if len(shown) <= length else "..." + shown[3 - length :]


def _draw_maps(path: Path, faces: MeasuredFaces) -> Path:
    from oaml.support.maps import draw_map_sheet

    each = max(2, 8 // len(faces.examples))
    rows, names = [], []
    for number, (condition, examples) in enumerate(faces.examples.items()):
        # other faces for every condition: more people are seen
        for name in list(np.roll(list(examples), -number * each))[:each]:
            image, occluded = faces.read(name, condition)
            predicted = examples[name]
            true = None if occluded is None else conditions.on_cells(occluded.mask, predicted.shape)
            rows.append((image if occluded is None else occluded.image, true, predicted))
            names.append(condition)
    return draw_map_sheet(path, rows, title="What the network takes for visible", names=names)
