"""Where a gallery lies: one LanceDB table with a row a face, on a disk or in object storage.

Lance never changes a file. Deleting marks rows and leaves their bytes where they are: in old versions, in indices and in the files
of the rows beside them. A gallery that deletes people has to do better, so a change of rows writes those files anew that hold them,
drops the indices and removes every older version. What is left to do is written down first, and the next one who opens the gallery
finishes it.

Whatever was written is on the disk before this says so, and before anything older is removed (`disk.py`). One process writes at a
time and others wait for it; any number may read meanwhile. In object storage nothing can be locked or has to be synced: there it is
for whoever runs the writers to have one.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from oaml.errors import OamlError, command, missing_package
from oaml.gallery import disk
from oaml.gallery.digests import damaged, digest, needed
from oaml.support.files import is_empty, make_folder, need_utf8, sync
from oaml.support.names import printable

if TYPE_CHECKING:
    import pyarrow as pa
    from filelock import FileLock
    from lancedb.db import DBConnection
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

T = TypeVar("T")
FACES, UNFINISHED = "faces", "unfinished"
LOCK = ".lock"
WAIT_SECONDS = 10.0
"""Seconds that a writer waits for another one."""
INDEXED_FROM = 20_000
"""Faces from which on an index is worth having: a scan of so many vectors takes milliseconds."""
INDEXED_AT_ONCE = 100_000
"""Faces up to which an index is built while somebody waits: it takes seconds."""
ROWS = 4096
"""Faces a file: a deletion writes one of them anew."""
SMALL_FILES = 64
"""Files more than needed from which on small ones are put together."""
CELL = 4096
"""Faces a cell of the index."""
PROBED = 0.85
"""Share of the cells that a search looks into. Faces lie in no clusters: fewer cells lose people (`benchmarks/README.md`)."""
REFINED = 2
"""The index keeps a byte a number; so many times the faces asked for are compared again by the vectors themselves."""


class Busy(OamlError):
    """Another process writes."""


class Store:
    """Rows of faces.

    Args:
        place: a folder, or an address such as `s3://bucket/gallery`. It need not exist: `create` makes it.

    Raises:
        OamlError: lancedb isn't installed; the place holds something else, or something damaged.
    """

    def __init__(self, place: str | Path) -> None:
        try:
            import lancedb  # noqa: F401
        except ImportError as error:
            raise missing_package("lancedb") from error
        # lance keeps two cores free, and of two it uses one: then a first search, which reads an index, takes a half longer
        os.environ.setdefault("LANCE_CPU_THREADS", str(max(4, os.cpu_count() or 1)))
        need_utf8(place)
        self.place = str(place)
        self._table: Table | None = None
        self._local = None if "://" in self.place else Path(self.place)
        if self.place.startswith("file://"):
            self._local = Path(self.place.removeprefix("file://"))
        self._lock: FileLock | None = None
        self._database: DBConnection | None = None
        if self._local is not None and not self._made():
            if self._local.exists() and (not self._local.is_dir() or not is_empty(self._local)):
                raise OamlError(f"{place}: exists and is no gallery; choose another name")
            return
        try:
            if self._unfinished():
                with (
                    suppress(OamlError),
                    self._locked(0),
                ):  # else whoever writes does it, or can do it another time
                    self._recover()
            if self._local is None or self._made():
                self._open()
        except Exception as error:
            if not _of_lance(error):
                raise
            raise OamlError(
                f"{place}: the gallery can't be opened ({_brief(error)}); restore it from an export, or enrol into a new one"
            ) from error

    def _open(self) -> None:
        import lancedb

        self._database = lancedb.connect(self.place, read_consistency_interval=timedelta(0))
        if FACES in self._database.list_tables().tables:
            self._table = self._database.open_table(FACES)

    def __bool__(self) -> bool:
        """Whether there is a gallery yet."""
        return self._table is not None

    @contextmanager
    def writing(self, patience: float | None = None) -> Iterator[None]:
        """Hold off every other writer, of this process too, and first finish what one of them left unfinished.

        Args:
            patience: seconds to wait for another one; by default `WAIT_SECONDS`.

        Raises:
            Busy: another one still writes.
            OamlError: the place can't be written to.
        """
        with self._locked(WAIT_SECONDS if patience is None else patience):
            opened = bool(self)
            self._recover()
            if self._local is not None and self and not opened:
                self._table = None
                raise Busy(f"{self.place}: another process has just made it; run this again")
            with self._or_as_before():
                yield

    @contextmanager
    def _locked(self, patience: float) -> Iterator[None]:
        if self._local is None:
            yield
            return
        from filelock import FileLock, Timeout

        new = not self._local.exists()
        self._check_place()
        try:
            make_folder(self._local, 0o700)
            if self._lock is None:
                self._lock = FileLock(self._local / LOCK, mode=0o600)
            self._lock.acquire(timeout=patience)
        except Timeout:
            raise Busy(
                f"{self.place}: another process writes to it; run this again when that one has ended"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            self._lock.release()
            if not self and not self._made():  # nothing came of it
                (self._local / LOCK).unlink(missing_ok=True)
                if new:
                    with suppress(OSError):  # there is something in it again
                        self._local.rmdir()

    def _unwritable(self, error: Exception) -> OamlError:
        return OamlError(
            f"{self.place}: could not be written ({_brief(error)}); free space or choose another place"
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Turn what Lance and the disk say into one line."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            raise self._unwritable(error) from error

    def _made(self) -> bool:
        return self._local is not None and self._folder.is_dir()

    def _check_place(self) -> None:
        if self._local is not None and self and not self._made():
            raise OamlError(f"{self.place}: was moved or removed meanwhile; open it where it is now")

    @property
    def _folder(self) -> Path:
        assert self._local is not None
        return self._local / f"{FACES}.lance"

    def _unfinished(self) -> bool:
        """Whether somebody writes, or was interrupted."""
        if self._local is None:
            self._open()
            return self._database is not None and UNFINISHED in self._database.list_tables().tables
        return disk.unsettled(self._folder) or (self._local / f"{UNFINISHED}.lance").is_dir()

    def _recover(self) -> None:
        """Under the lock: take back what somebody began and came to no end with, or finish it where it is written down."""
        self._take_back()
        if self._database is not None and UNFINISHED in self._database.list_tables().tables:
            with self._or_as_before():
                self._finish()

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """Take everything back where something fails."""
        try:
            yield
        except BaseException:
            with suppress(OamlError, OSError, RuntimeError, ValueError):
                self._take_back()
            raise

    def _take_back(self) -> None:
        """Under the lock: make everything what it was when it was last on the disk."""
        if self._local is None or not self._made():
            return
        with self._changing():
            try:
                disk.roll_back(self._folder)
            finally:  # on a full disk too: reading goes on
                self._table = None
                if self._made():
                    self._open()
            if self:
                self._settle()

    def _settle(self) -> None:
        """Bring everything to the disk, then remove every older version."""
        if self._local is not None:
            disk.settle(self._folder, self._total("data_files"))
            return
        with warnings.catch_warnings():  # that other writers would suffer: there are none
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(4):  # indexing comes last in it and leaves a version behind, once
                self.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
                if len(self.table.list_versions()) == 1:
                    return
        raise Busy(f"{self.place}: another process writes to it; end that one and run this again")

    @property
    def table(self) -> Table:
        """The table of faces.

        Raises:
            OamlError: there is no gallery yet.
        """
        if self._table is None:
            raise OamlError(
                f"{self.place}: no such gallery; make one with {command('enroll', 'FOLDER', '--gallery', self.place)}"
            )
        return self._table

    @property
    def facts(self) -> dict[str, Any]:
        """What `create` was given."""
        kept = self._read(lambda: self.table.schema).metadata or {}
        try:
            text = kept[b"oaml"]
            if (
                kept.get(b"oaml_digest", digest(text).hex().encode()) != digest(text).hex().encode()
            ):  # older galleries have none
                raise ValueError("other facts than were written")
            return json.loads(text)
        except (ValueError, KeyError) as error:
            raise self._damaged(error) from error

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        return self._read(lambda: self.table.schema).names

    @property
    def version(self) -> int:
        """Another number after every change."""
        return self._read(lambda: self.table.version)

    def create(self, schema: pa.Schema, facts: dict[str, Any]) -> None:
        """Make an empty gallery that states some facts."""
        import lancedb

        with self._changing():
            self._database = lancedb.connect(self.place, read_consistency_interval=timedelta(0))
            text = json.dumps(facts).encode()
            schema = schema.with_metadata({b"oaml": text, b"oaml_digest": digest(text).hex().encode()})
            self._table = self._database.create_table(FACES, schema=schema)
            if self._local is not None:
                disk.make_durable(self._folder)

    def add(self, rows: pa.Table) -> None:
        """More faces, all of them or none; on the disk when this returns."""
        with self._changing():
            self.table.add(rows.select(self.columns))  # a gallery of an older version has fewer
            if self._local is not None:
                self._settle()

    def count(self, where: str | None = None) -> int:
        """Faces, or those that a condition holds for."""
        return self._read(lambda: self.table.count_rows(where))

    def rows(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """Some columns of all faces, or of those that a condition holds for.

        Raises:
            OamlError: a file can't be read, or a template or thumbnail isn't what was written.
        """
        checked = [*columns, *needed(columns, self.columns)]

        def ask() -> pa.Table:
            query = self.table.search().select(checked)
            query = query if where is None else query.where(where)
            return query.limit(self.table.count_rows()).to_arrow()

        found = self._read(ask)
        self._check(found)
        return found.select(list(columns))

    def _check(self, rows: pa.Table | pa.RecordBatch) -> None:
        wrong = damaged(rows)
        if wrong:
            names = rows["person"].to_pylist() if "person" in rows.schema.names else []
            who = (
                f"of {printable(names[wrong[0]])}" if names else f"{len(wrong)} of {len(rows)} that were read"
            )
            raise OamlError(
                f"{self.place}: is damaged (faces: {who}); {command('gallery', self.place, '--check')} lists what is"
            )

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """All faces, so many at a time. Nobody may write meanwhile.

        Raises:
            OamlError: somebody did, or a file is damaged.
        """
        checked = [*columns, *needed(columns, self.columns)]
        batches = self._read(lambda: self.table.search().select(checked).limit(self.count()).to_batches(size))
        while (batch := self._read(lambda: next(batches, None), tries=1)) is not None:
            self._check(batch)
            yield batch.select(list(columns))

    def nearest(self, column: str, vector: Any, count: int, columns: Sequence[str]) -> pa.Table:
        """The faces whose unit vectors are nearest to one, the nearest first."""

        def ask() -> pa.Table:
            query = cast("LanceVectorQueryBuilder", self.table.search(vector, vector_column_name=column))
            cells = math.ceil(PROBED * self.table.count_rows() / CELL)
            query = query.distance_type("l2").nprobes(max(1, cells)).refine_factor(REFINED).limit(count)
            return query.select([*columns, "_distance"]).to_arrow()

        return self._read(ask)

    def _read(self, ask: Callable[[], T], tries: int = 5) -> T:
        """An answer of the table; a writer may take away the files it lies in, and then there are newer ones."""
        while True:
            tries -= 1
            try:
                return ask()
            except Exception as error:
                if not _of_lance(error):
                    raise
                self._check_place()
                if not tries or "Not found" not in str(error):
                    raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> OamlError:
        return OamlError(
            f"{self.place}: the gallery can't be read ({_brief(error)}); run it again if another process writes to it, "
            f"or else see what is left with {command('gallery', self.place, '--check')} and restore it from an export"
        )

    def change(self, where: str, values: dict[str, str] | None = None) -> int:
        """Change or delete faces so that nothing of what they were stays in any file; returns how many they were.

        Args:
            where: SQL condition on the columns.
            values: column -> SQL expression of its new value; None deletes the rows.
        """
        rows = self.table.search().where(where).with_row_id(True).select(["person"]).limit(self.count())
        numbers = rows.to_arrow()["_rowid"].to_pylist()
        if not numbers:
            return 0
        assert self._database is not None
        task = {"where": where, "values": values, "files": sorted({number >> 32 for number in numbers})}
        with self._changing():
            self._database.create_table(UNFINISHED, [{"task": json.dumps(task)}])
            if self._local is not None:
                disk.make_durable(self._local / f"{UNFINISHED}.lance")
        self._finish()
        return len(numbers)

    def _finish(self) -> None:
        """Do what is written down; all of it may have been done before."""
        assert self._database is not None
        try:
            (row,) = self._database.open_table(UNFINISHED).to_arrow().to_pylist()
            task = json.loads(row["task"])
        except (RuntimeError, ValueError, OSError):
            task = None  # half written, so nothing was begun; or half removed, and all is done
        with self._changing():
            if task is not None:
                for index in self.table.list_indices():  # they keep what was deleted
                    self.table.drop_index(index.name)
                if task["values"] is None:
                    self.table.delete(task["where"])
                else:
                    self.table.update(where=task["where"], values_sql=task["values"])
                self._write_anew(task["files"])
            self.tidy()
            self._database.drop_table(UNFINISHED)
            if self._local is not None:
                sync(self._local)

    def _total(self, what: str) -> int:
        """How many files or fragments the newest version has."""
        return int(self.table.list_versions()[-1]["metadata"][f"total_{what}"])

    def tidy(self, slow: bool = False) -> None:
        """Put small files together where there are many, index what is new, and remove every older version.

        Args:
            slow: build indices in a gallery too where that takes more than seconds; without them a search takes longer.

        Raises:
            OamlError: no room; or, in object storage, older versions stay, for another process writes too.
        """
        with self._changing():
            self._put_together()
            self._index(slow)
            self._settle()

    def _put_together(self) -> None:
        if self._total("fragments") - self.count() // ROWS > SMALL_FILES:
            numbers, counts = np.unique(self._row_numbers() >> 32, return_counts=True)
            self._write_anew(numbers[counts < ROWS // 2].tolist())

    def _row_numbers(self, where: str | None = None) -> np.ndarray:
        """Of all rows or some, int64, sorted: the file's number times 2^32, and the place in the file."""
        query = self.table.search().with_row_id(True).select(["person"])
        query = query if where is None else query.where(where)
        return np.sort(query.limit(self.count()).to_arrow()["_rowid"].to_numpy().astype(np.int64))

    def _write_anew(self, files: Sequence[int]) -> None:
        """Write the rows of some files into new ones of `ROWS` each; the old ones belong to no version then."""
        if not files:
            return
        numbers = self._row_numbers(" or ".join(_between(n << 32, ((n + 1) << 32) - 1) for n in files))
        for start in range(0, len(numbers), ROWS):
            part = numbers[start : start + ROWS]
            ends = np.flatnonzero(np.diff(part >> 32)) + 1
            ranges = " or ".join(_between(rows[0], rows[-1]) for rows in np.split(part, ends))
            self.table.update(where=ranges, values_sql={"person": "person"})

    def _index(self, slow: bool) -> None:
        """Index every column that is looked for, where the gallery is large enough."""
        from lancedb.index import BTree, IvfSq

        known = {column: index.name for index in self.table.list_indices() for column in index.columns}
        faces = self.count()
        for column in self.table.schema.names:
            if column != "person" and not column.startswith("vector"):
                continue
            if faces < INDEXED_FROM:
                if column in known:
                    self.table.drop_index(known[column])
            elif (slow or faces <= INDEXED_AT_ONCE) and self._unindexed(known.get(column)) >= INDEXED_FROM:
                cells = math.ceil(faces / CELL)
                near = IvfSq(distance_type="l2", num_partitions=cells)
                self.table.create_index(column, config=BTree() if column == "person" else near, replace=True)

    def _unindexed(self, index: str | None) -> int:
        """Rows that an index doesn't know, all of them where there is none: a search scans them."""
        stats = None if index is None else self.table.index_stats(index)
        return self.count() if stats is None else stats.num_unindexed_rows


def _between(first: int, last: int) -> str:
    return f"(_rowid >= {first} and _rowid <= {last})"


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _of_lance(error: Exception) -> bool:
    """Whether Lance said so; a panic in it is a class that can't be imported."""
    return isinstance(error, RuntimeError | ValueError | OSError) or type(error).__name__ == "RustPanic"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
