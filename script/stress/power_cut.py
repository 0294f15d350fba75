"""What `power_cut` does with its disks: operations on a gallery, and what a copy of the disk holds some seconds after each."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from oaml.errors import OamlError
from oaml.gallery import Gallery
from test_disk import enrol, names  # pyright: ignore[reportMissingImports]

SECONDS = (0, 0.1, 2, 6, 12)
"""Between the return of an operation and the power cut; a file system writes by itself after 5 and 30."""

CUTS = 60
"""In the middle of writing."""


def after_a_cut(work: Path) -> str:
    """Who is in the gallery when a copy of the disk is mounted; nobody may write meanwhile."""
    while True:  # a copy that something was written during is of no moment
        shutil.copy(work / "disk", work / "copy")
        time.sleep(0.02)
        if (work / "copy").read_bytes() == (work / "disk").read_bytes():
            break
    subprocess.run(["mount", "-o", "loop", work / "copy", work / "after"], check=True)
    try:
        return names(work / "after" / "g")
    except OamlError as error:
        return f"lost: {error}"
    finally:
        subprocess.run(["umount", work / "after"], check=True)


def main(work: Path) -> None:
    place, lost, cuts = work / "now" / "g", 0, 0
    enrol(place, "ABCDEFGHIJ")
    for seconds in SECONDS:
        for name, operation in (
            ("enrol", lambda: enrol(place, "X", 50)),
            ("rename", lambda: Gallery(place).rename("X", "Y")),
            ("delete", lambda: Gallery(place).delete("Y")),
            ("export", lambda: Gallery(place).export(place.with_name("e.safetensors"))),
        ):
            operation()
            acknowledged = names(place)
            time.sleep(seconds)
            held = after_a_cut(work)
            cuts, lost = cuts + 1, lost + (held != acknowledged)
            print(
                f"{name}, cut {seconds} s later: {'as acknowledged' if held == acknowledged else held}",
                flush=True,
            )
    during, seen = 0, Counter[str]()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(Path(__file__).parents[2] / "tests"), str(place)],
        stdout=subprocess.DEVNULL,
    )
    while during < CUTS:
        time.sleep(random.random())
        writer.send_signal(signal.SIGSTOP)
        seen[after_a_cut(work)] += 1
        writer.send_signal(signal.SIGCONT)
        during += 1
    writer.kill()
    writer.wait()
    lost += during - sum(seen[held] for held in ("ABCDEFGHIJ", "ABCDEFGHIJX", "ABCDEFGHIJY"))
    print(f"{during} cuts in the middle of writing: {dict(seen)}")
    print(f"{lost} of {cuts + during} cuts lost something")
    sys.exit(lost > 0)


WRITER = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_disk import enrol
from oaml.gallery import Gallery
place = Path(sys.argv[2])
while True:
    enrol(place, "X", 50)
    Gallery(place).rename("X", "Y")
    Gallery(place).delete("Y")
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
