"""What tells damage: every face keeps a digest of its person's name, its template and its thumbnail, each in a column of its own.

Galleries of older versions have no such columns, and nothing of theirs is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

DIGESTED = {name: f"digest_{name}" for name in ("person", "template", "thumbnail")}
"""Column -> the column of its digest."""
SIZE = 8


def digest(value: str | bytes | None) -> bytes:
    """8 bytes of BLAKE2b; of nothing where there is no value."""
    data = value.encode() if isinstance(value, str) else value or b""
    return hashlib.blake2b(data, digest_size=SIZE).digest()


def needed(columns: Iterable[str], present: Iterable[str]) -> list[str]:
    """The columns of digests to read with others: with a template or a thumbnail, what is read is checked."""
    asked = set(columns)
    if not asked & {"template", "thumbnail"}:
        return []  # no face is decided by a name alone
    return [column for name, column in DIGESTED.items() if name in asked and column in {*present} - asked]


def damaged(rows: pa.Table | pa.RecordBatch) -> list[int]:
    """Numbers of the rows in which something isn't what was written."""
    wrong: set[int] = set()
    for name, column in DIGESTED.items():
        if name in rows.schema.names and column in rows.schema.names:
            pairs = zip(rows[name].to_pylist(), rows[column].to_pylist(), strict=True)
            wrong.update(i for i, (value, kept) in enumerate(pairs) if digest(value) != kept)
    return sorted(wrong)
