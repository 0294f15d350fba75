"""One process at a time for a folder that a command fills for minutes or days."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from oaml.errors import OamlError
from oaml.support.files import make_folder


@contextmanager
def alone(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock while the block runs; nobody waits for it.

    Args:
        lock: its file. It goes with the lock, and so does the folder it lies in, if that is new and nothing else came into it.
        refusal: what to say where another process holds the lock.

    Raises:
        OamlError: another process holds it, or the file can't be made.
    """
    new = not lock.parent.exists()
    held = FileLock(lock)
    try:
        make_folder(lock.parent)
        held.acquire(timeout=0)
    except Timeout:
        raise OamlError(refusal) from None
    except OSError as error:
        raise OamlError(
            f"{lock.parent}: could not be written ({error.strerror or error}); free space or choose another place"
        ) from error
    except NotImplementedError:  # a file system without locks, where only the user can see to it
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # removed first: who opens it now opens a new one
            lock.unlink()
        held.release()
        if new:
            with suppress(OSError):  # it isn't empty
                lock.parent.rmdir()
