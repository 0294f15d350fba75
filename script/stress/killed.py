"""Writers of a gallery that are killed, and ten of them at once: what was acknowledged is there afterwards, and nothing else.

    .venv/bin/python script/stress/killed.py [--seconds 300]

Half of the time one process enrols, renames and deletes, and is killed by SIGKILL after a moment of chance; the gallery must then
be as after its last acknowledged operation, or as after the one that it was at. The other half ten processes do the same to a
person each, until they are asked to stop; in the end every person is as their process said last.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from oaml.gallery import Gallery
from test_disk import enrol, names  # pyright: ignore[reportMissingImports]

TESTS = Path(__file__).parents[2] / "tests"
OTHERS = "ABCDEFGHIJ"
STATES = ("", "X", "Y")
"""Who is there besides the others: after a deletion, an enrolment, a renaming."""
WRITER = """
import signal, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_disk import enrol
from oaml.errors import OamlError
from oaml.gallery import Gallery
place, x, y, state = Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
while going:
    try:
        if state == 0:
            enrol(place, x, 50)
        elif state == 1:
            Gallery(place).rename(x, y)
        else:
            Gallery(place).delete(y)
    except OamlError as error:
        if "another process" not in str(error):
            raise
        continue
    state = (state + 1) % 3
    print(state, flush=True)
"""


def writer(place: Path, x: str, y: str, state: int, said: Path) -> subprocess.Popen[bytes]:
    """A process that goes on from a state and writes each one to a file when it is acknowledged."""
    command = [sys.executable, "-c", WRITER, str(TESTS), str(place), x, y, str(state)]
    with said.open("wb") as file:
        return subprocess.Popen(command, stdout=file)


def wait_for(run: subprocess.Popen[bytes], said: Path) -> None:
    """Return when something is acknowledged, or the process has ended."""
    while run.poll() is None and not said.stat().st_size:
        time.sleep(0.01)


def one_is_killed(place: Path, seconds: float) -> tuple[int, int, int]:
    """Kills, acknowledged operations, and galleries that were neither as before nor as after the last one."""
    chance, kills, acknowledged, wrong, state = random.Random(0), 0, 0, 0, 0
    said, end = place.with_name("said"), time.monotonic() + seconds
    while time.monotonic() < end:
        run = writer(place, "X", "Y", state, said)
        wait_for(run, said)
        time.sleep(chance.random())
        run.kill()
        run.wait()
        lines = said.read_text().split()
        state = int(lines[-1]) if lines else state
        found = names(place)
        kills, acknowledged = kills + 1, acknowledged + len(lines)
        if found not in [OTHERS + STATES[s] for s in (state, (state + 1) % 3)]:
            wrong += 1
            print(f"after {STATES[state]!r} was acknowledged: {found}", flush=True)
        if found.removeprefix(OTHERS) in STATES:
            state = STATES.index(found.removeprefix(OTHERS))
    return kills, acknowledged, wrong


def ten_at_once(place: Path, seconds: float) -> tuple[int, int]:
    """Acknowledged operations, and people who are not as their process said last."""
    people = [(x, y, place.with_name(f"said-{x}")) for x, y in zip("abcdefghij", "klmnopqrst", strict=True)]
    runs = [writer(place, x, y, 0, said) for x, y, said in people]
    for run, (*_, said) in zip(runs, people, strict=True):
        wait_for(run, said)
    time.sleep(seconds)
    for run in runs:
        run.send_signal(signal.SIGTERM)
    codes = [run.wait() for run in runs]
    there = {person.name: person.faces for person in Gallery(place).people()}
    acknowledged = 0
    wrong = len(dict.fromkeys(OTHERS, 1).items() - there.items())
    for code, (x, y, said) in zip(codes, people, strict=True):
        lines = said.read_text().split()
        acknowledged += len(lines)
        expected = {0: {}, 1: {x: 1}, 2: {y: 1}}[int((lines or ["0"])[-1])]
        wrong += code != 0 or {name: there[name] for name in (x, y) if name in there} != expected
    return acknowledged, wrong


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "g"
        enrol(place, OTHERS)
        kills, acknowledged, lost = one_is_killed(place, given.seconds / 2)
        print(f"{kills} kills, {acknowledged} acknowledged operations: {lost} galleries lost something")
        if "X" in names(place) or "Y" in names(place):
            Gallery(place).delete("X" if "X" in names(place) else "Y")
        acknowledged, wrong = ten_at_once(place, given.seconds / 2)
        print(
            f"ten processes at once, {acknowledged} acknowledged operations: {wrong} people are not as said"
        )
        damaged = Gallery(place).check(label=None)
        print(f"damaged afterwards: {damaged or 'nobody'}")
    sys.exit(bool(lost or wrong or damaged))


if __name__ == "__main__":
    main()
