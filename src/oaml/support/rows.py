"""Tables in CSV: UTF-8 with a first line that names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from oaml.errors import OamlError


def rows(
    file: Path, needed: Iterable[str], wanted: Iterable[str], optional: Iterable[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the values of the wanted and optional columns, stripped, of every line that is not empty.

    Args:
        file: with or without a byte-order mark.
        needed: columns that must be there.
        wanted: columns that a message asks for, those needed among them.
        optional: columns that no message asks for.

    Raises:
        OamlError: missing or unreadable file, missing or repeated column, wrong number of values; with the line and the remedy.
    """
    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise OamlError(f"{file}: is empty; its first line names the columns {','.join(wanted)}")
            for name in (*wanted, *optional):
                if header.count(name) > 1:
                    raise OamlError(f"{file}, line 1: names the column {name} twice; rename one of them")
            missing = [name for name in needed if name not in header]
            if missing:
                raise OamlError(
                    f"{file}, line 1: lacks the column {', '.join(missing)} (found {','.join(header)}); "
                    f"the first line names the columns {','.join(wanted)}"
                )
            places = {name: header.index(name) for name in (*wanted, *optional) if name in header}
            for values in reader:
                line = reader.line_num
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(header):
                    raise OamlError(
                        f"{file}, line {line}: has {len(values)} values for {len(header)} columns; "
                        "put quotes around a value that holds a comma"
                    )
                yield line, {name: values[place].strip() for name, place in places.items()}
    except FileNotFoundError:
        raise OamlError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise OamlError(f"{file}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise OamlError(f"{file}, after line {line}: is not valid CSV ({error}); check the quotes") from None
    except OSError as error:
        raise OamlError(f"{file}: can't be read ({error.strerror or error})") from None
