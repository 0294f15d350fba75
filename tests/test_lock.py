"""One process at a time: who holds a lock, what it leaves, and that a killed process holds none."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from oaml.errors import OamlError
from oaml.support.lock import alone

HOLDER = """
import sys, time
from pathlib import Path
from oaml.support.lock import alone
with alone(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "held\n"
        with pytest.raises(OamlError, match=r"^it is busy$"), alone(lock, "it is busy"):
            pass
        assert lock.exists()
        run.send_signal(signal.SIGKILL)
    with alone(lock, "it is busy"):  # the file of a killed process holds nobody off
        pass
    assert not lock.exists()


def test_nothing_is_left_but_what_came_into_the_folder(tmp_path: Path) -> None:
    for content in (False, True):
        folder = tmp_path / f"new_{content}"
        with suppress(ZeroDivisionError), alone(folder / ".lock", "busy"):
            assert (folder / ".lock").exists()
            if content:
                (folder / "a").write_text("")
            raise ZeroDivisionError
        assert [path.name for path in folder.glob("*")] == (["a"] if content else [])
        assert folder.exists() == content
    (tmp_path / "old").mkdir()
    with alone(tmp_path / "old" / ".lock", "busy"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OamlError, match=f"^{tmp_path / 'file'}: could not be written"),
        alone(tmp_path / "file" / ".lock", "busy"),
    ):
        pass
