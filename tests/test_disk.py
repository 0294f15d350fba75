"""A gallery through power cuts, full disks, wrong clocks and folders that can't be written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from oaml.errors import OamlError
from oaml.gallery import Gallery, store
from oaml.gallery.folder import Entry
from oaml.gallery.gallery import create
from oaml.gallery.rows import Packing, table
from oaml.gallery.store import Store
from oaml.template import Templates
from oaml.templates.quantised import QuantisedTemplates

pytest.importorskip("lancedb")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are asked of /proc"),
]


def faces(count: int, seed: int = 0) -> QuantisedTemplates:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(count, 49, 16, generator=generator)
    raw = cells.sum(1)
    return QuantisedTemplates.of(
        Templates(
            embedding=torch.nn.functional.normalize(raw, dim=1),
            norm=raw.norm(dim=1),
            visibility=torch.ones(count, 1, 7, 7),
            local=torch.nn.functional.normalize(torch.randn(count, 8, 7, 7, generator=generator), dim=1),
            cell_embeddings=cells,
        )
    )


def enrol(place: Path, names: str, first: int = 0) -> None:
    """One face of each, all at a time."""
    made = faces(len(names), first)
    kept = Store(place)
    with kept.writing():
        if not kept:
            create(kept, Packing.of(made), "0123", "runs/m")
        entries = [Entry(name, f"{name}{first + i}", "", "") for i, name in enumerate(names)]
        kept.add(table(entries, made, [None] * len(names), Packing.of(made)))
        kept.tidy()


def names(place: Path) -> str:
    return "".join(person.name * person.faces for person in Gallery(place).people())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A gallery with an index, of A to J."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "INDEXED_FROM", 5)
        enrol(tmp_path / "g", "ABCDEFGHIJ")
    return tmp_path / "g"


OPERATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "make": (lambda place: enrol(place.with_name("new"), "XY"), "ABCDEFGHIJ"),
    "enrol": (lambda place: enrol(place, "X", 50), "ABCDEFGHIJX"),
    "delete": (lambda place: Gallery(place).delete("C"), "ABDEFGHIJ"),
    "rename": (lambda place: Gallery(place).rename("C", "Z"), "ABDEFGHIJZ"),
    "import": (lambda place: Gallery(place).import_(place.with_name("e.safetensors")), "ABCDEFGHIJKL"),
    "export": (lambda place: Gallery(place).export(place.with_name("out") / "o.safetensors"), "ABCDEFGHIJ"),
}


NAMES = ("synced", "both", "latest")
"""Which names a folder holds after a power cut: those when it was last synced, those now, or all of either."""
CUTS = 10**6 if os.environ.get("OAML_STRESS") else 6
"""Steps of an operation at which the power is cut, at most."""


class PowerCut(BaseException):
    """The machine is off."""


class Machine:
    """What of a folder is on the disk: bytes of a file since its last sync, names of a folder since its last sync.

    At a step, which is a sync or a removal, the power is cut: what a disk may hold then is written beside the folder.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, cut_at: int) -> None:
        self.root, self.steps, self.cut_at = root, 0, cut_at
        self.content: dict[int, bytes] = {}
        self.listing: dict[int, dict[str, int]] = {}
        self.held = root.with_name(
            "held"
        )  # links, so that the number of a removed file isn't given to another one
        self.held.mkdir()
        for path in (root, *root.rglob("*")):
            self.note(path)
        fsync, unlink = os.fsync, Path.unlink

        def synced(descriptor: int) -> None:
            self.step()
            fsync(descriptor)
            self.note(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            if path.exists():
                self.step()
            unlink(path, missing_ok)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "unlink", unlinked)

    def note(self, path: Path) -> None:
        number = path.stat().st_ino
        if path.is_dir():
            self.listing[number] = {p.name: p.stat().st_ino for p in path.iterdir()}
            return
        self.content[number] = path.read_bytes()
        if not (self.held / str(number)).exists():
            os.link(path, self.held / str(number))

    def step(self) -> None:
        if self.steps == self.cut_at:
            self.steps += 1
            self.cut()
            raise PowerCut
        self.steps += 1

    def cut(self) -> None:
        for names in NAMES:
            self.lose(self.root.with_name(names), names)

    def lose(self, target: Path, names: str) -> None:
        """Write what a disk holds after a power cut to a new folder: of files that weren't synced the name alone."""

        def write(now: Path | None, number: int, to: Path) -> None:
            to.mkdir()
            synced = self.listing.get(number, {})
            latest = {} if now is None else {p.name: p.stat().st_ino for p in now.iterdir()}
            entries = {"synced": synced, "both": {**synced, **latest}, "latest": latest}[names]
            for name, entry in entries.items():
                below = None if now is None or not (now / name).is_dir() else now / name
                if entry in self.content or (below is None and entry not in self.listing):
                    (to / name).write_bytes(self.content.get(entry, b""))
                else:
                    write(below, entry, to / name)

        write(self.root, self.root.stat().st_ino, target)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_power_cut_at_any_step_leaves_all_as_before_or_as_after(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr(store, "INDEXED_FROM", 5)
    root = tmp_path / "disk"
    root.mkdir()
    enrol(tmp_path / "other", "KL", 90)
    Gallery(tmp_path / "other").export(root / "e.safetensors")
    shutil.move(place, root / "g")
    call, after = OPERATIONS[operation]
    cuts = [-1]  # first without one
    while cuts:
        cut_at = cuts.pop(0)
        work = tmp_path / "work"
        shutil.copytree(root, work)
        with pytest.MonkeyPatch.context() as patch:
            machine = Machine(work, patch, cut_at)
            try:
                call(work / "g")
                done = True
                machine.cut()
            except PowerCut:
                done = False
        if cut_at < 0:
            assert machine.steps > 5
            cuts = sorted(
                set(np.linspace(0, machine.steps - 1, min(CUTS, machine.steps)).astype(int).tolist())
            )
        for kept in NAMES:
            left = tmp_path / kept
            found = names(left / "g")
            assert found == after if done else found in ("ABCDEFGHIJ", after), (cut_at, kept)
            new = left / "new"
            if done and operation == "make":
                assert names(new) == "XY"
            elif new.exists():
                enrol(new, "XY")  # goes on, whatever is there
                assert names(new) in ("XY", "XXYY")
            out = left / "out" / "o.safetensors"
            if operation == "export" and (done or (out.exists() and out.with_suffix(".json").exists())):
                assert Gallery(left / "again").import_(out).added == 10
            enrol(left / "g", "Q", 70)  # and it goes on
            assert names(left / "g") == "".join(sorted(found + "Q"))
            files = {p.name for p in (left / "g").iterdir()}
            assert files == {".lock", "faces.lance"}
            shutil.rmtree(left)
        shutil.rmtree(work)
        shutil.rmtree(tmp_path / "held")


# --- other trouble


def clock(tmp_path: Path) -> Path:
    """A library that sets the clock of a process by OAML_CLOCK seconds."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdlib.h>\n#include <time.h>\n"
        "int clock_gettime(clockid_t which, struct timespec *now) {\n"
        '  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");\n'
        "  int result = real(which, now);\n"
        '  const char *by = getenv("OAML_CLOCK");\n'
        "  if (by && which == CLOCK_REALTIME) now->tv_sec += atol(by);\n"
        "  return result;\n}\n"
    )
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("years", [-1, 1])
def test_a_wrong_clock_changes_nothing(place: Path, tmp_path: Path, years: int) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from test_disk import *\n"
        "now = time.time(); place = Path(sys.argv[2]); enrol(place, 'X', 50); Gallery(place).delete('C')\n"
        "print(int(now)); print(Store(place).table.list_versions()[-1]['timestamp'].timestamp())"
    )
    named = {
        **os.environ,
        "LD_PRELOAD": str(clock(tmp_path)),
        "OAML_CLOCK": str(years * 31_536_000),
    }
    wrong = subprocess.run(
        [sys.executable, "-c", code, Path(__file__).parent, place], env=named, capture_output=True, text=True
    )
    assert wrong.returncode == 0, wrong.stderr
    said, written = map(float, wrong.stdout.split())
    assert abs(said - written) < 3600 * 24  # Lance had the wrong time too
    assert abs(said - time.time()) > 10_000_000
    assert names(place) == "ABDEFGHIJX"
    enrol(place, "Y", 60)
    Gallery(place).rename("A", "Z")
    assert names(place) == "BDEFGHIJXYZ"
    assert len(list(place.rglob("*.manifest"))) == 1


def test_what_a_killed_writer_leaves_is_removed_by_the_next_one(place: Path) -> None:
    table = place / "faces.lance"
    left = [
        table / "data" / ".tmpAb12",
        table / "data" / f"{'0' * 24}{'a' * 26}.lance",
        table / "_versions" / ".tmpX",
    ]
    for path in left:
        path.write_bytes(b"a template")
    before = [path for path in table.rglob("*") if path not in left]
    with Store(place).writing():
        assert not any(path.exists() for path in left)
        left[0].write_bytes(b"a template")
    assert names(place) == "ABCDEFGHIJ"
    assert all(path.exists() for path in before)
    enrol(place, "X", 50)
    assert not left[0].exists()


def full(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the disk be full after so many syncs, which is when it is known that there was no room."""
    real, left = os.fsync, [after]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("operation", ["enrol", "delete", "rename", "import"])
@pytest.mark.parametrize("after", [0, 3, 12])
def test_a_full_disk_leaves_all_as_before(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, after: int
) -> None:
    enrol(tmp_path / "other", "KL", 90)
    Gallery(tmp_path / "other").export(tmp_path / "e.safetensors")
    call, result = OPERATIONS[operation]
    with monkeypatch.context() as patch:
        full(patch, after)
        with pytest.raises(OamlError, match=r"No space left.*free space"):
            call(place)
        assert names(place) == "ABCDEFGHIJ"  # opening and reading need no room
    again = names(place)
    assert again in ("ABCDEFGHIJ", result)  # a change that was written down is finished now
    if again != result:
        call(place)
    assert names(place) == result
    enrol(place, "Q", 70)
    assert {p.name for p in place.iterdir()} == {".lock", "faces.lance"}


def test_a_folder_that_cannot_be_written_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_write_anew", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Gallery(place).delete("C")
    assert (place / "unfinished.lance").exists()
    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", read_only)
        assert names(place) == "ABCDEFGHIJ"  # the deletion waits for somebody who can write
        vector = np.zeros(16, np.float32)
        assert len(Store(place).nearest("vector_all", vector, 3, ["person"])) == 3
        with pytest.raises(OamlError, match="Read-only file system"):
            enrol(place, "X", 50)
    assert names(place) == "ABDEFGHIJ"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_folder_that_is_moved_while_open(place: Path, tmp_path: Path) -> None:
    opened = Gallery(place)
    place.rename(tmp_path / "elsewhere")
    for call in (lambda: opened.delete("A"), lambda: opened.rename("A", "Z"), opened.people):
        with pytest.raises(OamlError, match="moved or removed"):
            call()
    assert not place.exists()
    assert names(tmp_path / "elsewhere") == "ABCDEFGHIJ"


def test_only_the_owner_reads_a_gallery_and_an_export(place: Path, tmp_path: Path) -> None:
    (place / "faces.lance" / "data").chmod(0o755)
    place.chmod(0o755)  # as an older version made it
    enrol(place, "X", 50)
    Gallery(place).delete("C")
    Gallery(place).export(tmp_path / "out" / "o.safetensors")
    paths = [place, *place.rglob("*"), *(tmp_path / "out").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}


def test_small_files_are_put_together_and_large_ones_divided(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> int:
        return len(list((place / "faces.lance" / "data").iterdir()))

    monkeypatch.setattr(store, "SMALL_FILES", 6)
    for i in range(12):
        enrol(place, "X", 50 + i)
        assert files() <= 8
    assert names(place) == "ABCDEFGHIJ" + 12 * "X"
    monkeypatch.setattr(store, "ROWS", 4)
    before = contents(place)
    Gallery(place).delete("C")
    assert files() >= 5
    assert contents(place) == [row for row in before if row["person"] != "C"]


def contents(place: Path) -> list[dict[str, object]]:
    kept = Store(place)
    return sorted(kept.rows(kept.table.schema.names).to_pylist(), key=lambda row: str(row["image"]))
