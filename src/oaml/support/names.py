"""Names of files and people: which count as one, how they are shown, and which are no file of the user's."""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress

SYSTEM_NAMES = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "zbthumbnail.info", "picasa.ini"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "msocache", "found.000"),
        *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
        *("lost+found", "aquota.user", "aquota.group", "__pycache__"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "~snapshot"),
    )
)  # fmt: skip
"""What systems, disk stations and tools put into folders, in lower case. Names that begin with a dot need no list."""
UNFINISHED_ENDINGS = (
    *("~", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".filepart", ".opdownload"),
    *(".swp", ".swo", ".bak", ".orig", ".aria2", ".!ut"),
)
"""Of copies that editors keep, and of what is still being copied or downloaded; in lower case."""


def is_system(name: str) -> bool:
    """Whether a file or folder is one of the system's or hidden: nothing that a user put there to be read."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_unfinished(name: str) -> bool:
    """Whether a file or folder is an editor's copy, or is still being written."""
    return name.startswith("~$") or name.lower().endswith(UNFINISHED_ENDINGS)


def person_name(text: str) -> str:
    """What a person is called whose folder has this name: text that any file can hold, the same however it was typed.

    Composed and decomposed letters are one (Unicode's form NFC), spaces around it don't count, and bytes that are no UTF-8 are
    escaped as `printable` shows them: `J\\udcfcrgen` where a folder of an old disk is named in Latin-1.
    """
    return unicodedata.normalize("NFC", readable(text)).strip()


def readable(text: str) -> str:
    """The name of a file as text that any file can hold: bytes that are no UTF-8 are escaped, and nothing else is changed."""
    return _decoded(text).encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    """The text as a terminal can show it, on one line, each character to be seen.

    Escaped are control characters, line ends, spaces other than the common one, what changes the direction of writing or has no
    width, and bytes of no known character, as a file name on Linux may hold them.
    """
    return "".join(map(_shown, _decoded(text)))


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    if character != " " and (kind[0] == "Z" or kind in ("Cc", "Cf", "Cs", "Co")):
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character


def shortened(path: str, most: int = 300) -> str:
    """A path for a message, without its middle where it is longer."""
    return path if len(path) <= most else f"{path[: most // 2]}...{path[-most // 2 :]}"


_BYTES = {0xDC00 + byte: 0xF700 + byte for byte in range(0x80, 0x100)}
_BACK = {stored: byte for byte, stored in _BYTES.items()}


def storable(path: str) -> str:
    """A path as text that a database can hold, whatever the locale: bytes that are no UTF-8 become characters for private use."""
    with suppress(UnicodeEncodeError):  # no path of this system
        path = os.fsencode(path).decode("utf-8", "surrogateescape")
    return path.translate(_BYTES)


def restored(path: str) -> str:
    """The path that `storable` gave."""
    return os.fsdecode(path.translate(_BACK).encode("utf-8", "surrogateescape"))


def _decoded(text: str) -> str:
    """A name that the system gave, read as UTF-8 where the locale has another encoding."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text
