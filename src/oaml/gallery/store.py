"""Where a gallery lies: one LanceDB table with a row a face, on a disk or in object storage.

Lance never changes a file. Deleting marks rows and leaves their bytes where they are, in old versions, in indices and, until a
tenth of a file is marked, after `optimize` too. A gallery that deletes people has to do better, so every change of rows writes
all rows beside them anew, builds the indices again and removes every older version. What is left to do is written down first, and
the next one who opens the gallery finishes it.

One process writes at a time and others wait for it; any number may read meanwhile. In object storage nothing can be locked: there
it is for whoever runs the writers to have one.
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

from oaml.errors import OamlError, command, missing_package

if TYPE_CHECKING:
    import pyarrow as pa
    from filelock import FileLock
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

T = TypeVar("T")
FACES, UNFINISHED = "faces", "unfinished"
LOCK = ".lock"
WAIT_SECONDS = 10.0
"""Seconds that a writer waits for another one."""
INDEXED_FROM = 20_000
"""Faces from which on an index is worth having: below, a scan of all vectors takes milliseconds."""
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
            import lancedb
        except ImportError as error:
            raise missing_package("lancedb") from error
        # lance keeps two cores free, and of two it uses one: then a first search, which reads an index, takes a half longer
        os.environ.setdefault("LANCE_CPU_THREADS", str(max(4, os.cpu_count() or 1)))
        self.place = str(place)
        self._table: Table | None = None
        self._local = None if "://" in self.place else Path(self.place)
        self._lock: FileLock | None = None
        if self._local is not None and not self._made():
            if self._local.exists() and (
                not self._local.is_dir() or any(path.name != LOCK for path in self._local.iterdir())
            ):
                raise OamlError(f"{place}: exists and is no gallery; choose another name")
            self._database = None
            return
        try:
            self._database = lancedb.connect(self.place, read_consistency_interval=timedelta(0))
            tables = self._database.list_tables().tables
            if FACES in tables:
                self._table = self._database.open_table(FACES)
            if UNFINISHED in tables:
                with suppress(Busy), self.writing(0):
                    pass  # whoever begins to write finishes what is written down
        except (RuntimeError, ValueError, OSError) as error:
            raise OamlError(
                f"{place}: the gallery can't be opened ({_brief(error)}); restore it from an export, or enrol into a new one"
            ) from error

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
        if self._local is None:
            self._finish_others()
            yield
            return
        from filelock import FileLock, Timeout

        new = not self._local.exists()
        try:
            self._local.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = FileLock(self._local / LOCK)
            self._lock.acquire(timeout=WAIT_SECONDS if patience is None else patience)
        except Timeout:
            raise Busy(
                f"{self.place}: another process writes to it; run this again when that one has ended"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if not self and self._made():
                raise Busy(f"{self.place}: another process has just made it; run this again")
            self._finish_others()
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

    def _made(self) -> bool:
        return self._local is not None and (self._local / f"{FACES}.lance").is_dir()

    def _finish_others(self) -> None:
        if self._database is not None and UNFINISHED in self._database.list_tables().tables:
            self._finish()

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
        return json.loads((self.table.schema.metadata or {})[b"oaml"])

    def create(self, schema: pa.Schema, facts: dict[str, Any]) -> None:
        """Make an empty gallery that states some facts."""
        import lancedb

        try:
            self._database = lancedb.connect(self.place, read_consistency_interval=timedelta(0))
            schema = schema.with_metadata({"oaml": json.dumps(facts)})
            self._table = self._database.create_table(FACES, schema=schema)
        except (RuntimeError, ValueError, OSError) as error:
            raise self._unwritable(error) from error

    def add(self, rows: pa.Table) -> None:
        """More faces, all of them or none."""
        try:
            self.table.add(rows)
        except (RuntimeError, OSError) as error:
            raise OamlError(
                f"{self.place}: could not be written ({_brief(error)}); free space and run it again"
            ) from error

    def count(self, where: str | None = None) -> int:
        """Faces, or those that a condition holds for."""
        return self._read(lambda: self.table.count_rows(where))

    def rows(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """Some columns of all faces, or of those that a condition holds for."""
        query = self.table.search().select(list(columns))
        query = query if where is None else query.where(where)
        return self._read(lambda: query.limit(self.table.count_rows()).to_arrow())

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """All faces, so many at a time. Nobody may write meanwhile.

        Raises:
            OamlError: somebody did, or a file is damaged.
        """
        batches = self.table.search().select(list(columns)).limit(self.count()).to_batches(size)
        while (batch := self._read(lambda: next(batches, None), tries=1)) is not None:
            yield batch

    def nearest(self, column: str, vector: Any, count: int, columns: Sequence[str]) -> pa.Table:
        """The faces whose unit vectors are nearest to one, the nearest first."""
        query = cast("LanceVectorQueryBuilder", self.table.search(vector, vector_column_name=column))
        cells = math.ceil(PROBED * self.count() / CELL)
        query = query.distance_type("l2").nprobes(max(1, cells)).refine_factor(REFINED).limit(count)
        return self._read(query.select([*columns, "_distance"]).to_arrow)

    def _read(self, ask: Callable[[], T], tries: int = 5) -> T:
        """An answer of the table; a writer may take away the files it lies in, and then there are newer ones."""
        while True:
            tries -= 1
            try:
                return ask()
            except (RuntimeError, OSError) as error:
                if not tries or "Not found" not in str(error):
                    raise OamlError(
                        f"{self.place}: the gallery can't be read ({_brief(error)}); run it again if another process writes to it, "
                        "or else restore it from an export"
                    ) from error

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
        self._database.create_table(UNFINISHED, [{"task": json.dumps(task)}])
        self._finish()
        return len(numbers)

    def _finish(self) -> None:
        """Do what is written down; every step may have been done before."""
        assert self._database is not None
        try:
            (row,) = self._database.open_table(UNFINISHED).to_arrow().to_pylist()
        except (RuntimeError, ValueError, OSError):
            # written or removed by half: either nothing was begun, or everything is done but for the older versions
            self.tidy()
            self._database.drop_table(UNFINISHED)
            return
        task = json.loads(row["task"])
        if task["values"] is None:
            self.table.delete(task["where"])
        else:
            self.table.update(where=task["where"], values_sql=task["values"])
        # the number of a row begins with that of its file: what is left in the files gets new ones
        ranges = " or ".join(f"(_rowid >= {n << 32} and _rowid < {(n + 1) << 32})" for n in task["files"])
        self.table.update(where=ranges, values_sql={"person": "person"})
        self._index(anew=True)
        self.tidy()
        self._database.drop_table(UNFINISHED)

    def tidy(self) -> None:
        """Put small files together, index what is new, and remove every older version.

        Raises:
            OamlError: older versions stay, for another process writes too.
        """
        self._index()
        with warnings.catch_warnings():  # that other writers would suffer: there are none
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(4):  # indexing comes last in it and leaves a version behind, once
                self.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
                if len(self.table.list_versions()) == 1:
                    return
        raise Busy(f"{self.place}: another process writes to it; end that one and run this again")

    def _index(self, anew: bool = False) -> None:
        """Index every column that is looked for, where the gallery is large enough.

        Args:
            anew: also those that are indexed, since an index keeps what was deleted.
        """
        from lancedb.index import BTree, IvfSq

        known = {column: index.name for index in self.table.list_indices() for column in index.columns}
        faces = self.count()
        large = faces >= INDEXED_FROM
        for column in self.table.schema.names:
            if column != "person" and not column.startswith("vector"):
                continue
            if column in known and anew and not large:
                self.table.drop_index(known[column])
            elif large and (anew or column not in known):
                cells = math.ceil(faces / CELL)
                near = IvfSq(distance_type="l2", num_partitions=cells)
                self.table.create_index(column, config=BTree() if column == "person" else near, replace=True)


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
