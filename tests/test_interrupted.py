"""Ctrl-C and SIGTERM: one line that says what is kept, and the exit code that a shell expects."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from oaml.datasets.drawn import draw_face

STARTER = Path(__file__).parents[1] / "src" / "oaml" / "starter"


def stopped(
    code: str, begun: Callable[[], bool], number: signal.Signals, *arguments: object
) -> tuple[int, str]:
    """Exit code and stderr of `oaml ARGUMENTS` in a process that first runs some code, stopped once it has begun."""
    script = f"import sys, time\nfrom oaml.main import main\n{code}\nsys.exit(main())"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        end = time.monotonic() + 90
        while time.monotonic() < end and not begun():
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
    return run.returncode, said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_embed_says_what_is_kept(tmp_path: Path, number: signal.Signals, code: int) -> None:
    for shot in range(3):
        (tmp_path / "faces").mkdir(exist_ok=True)
        Image.fromarray(draw_face(0, shot)).save(tmp_path / "faces" / f"{shot}.png")
    slow = (
        "import oaml.datasets.sources as e\n"
        "read = e.read_image\n"
        f"e.read_image = lambda path, **o: (open({str(tmp_path / 'begun')!r}, 'w').close(), time.sleep(2), read(path, **o))[2]"
    )
    words = ["embed", STARTER, "--images", tmp_path / "faces", "--out", tmp_path / "out.safetensors"]
    returned, said = stopped(slow, (tmp_path / "begun").exists, number, *words)
    assert returned == code
    line = said.strip().splitlines()[-1]
    assert (
        line
        == "oaml embed: interrupted; the faces embedded so far are kept, and the same command goes on with them"
    )
    assert "Traceback" not in said


def test_a_training_says_how_it_goes_on(tmp_path: Path) -> None:
    words = ["train", "--out", tmp_path / "run", "--data.drawn_people", 8, "--data.drawn_shots", 2]
    words += ["--data.identities", 2, "--data.images", 2, "--data.occlusion_batch", 2, "--data.workers", 0]
    words += [
        "--net.architecture",
        "ir_mini",
        "--net.embedding_size",
        16,
        "--steps",
        100000,
        "--validate_every",
        0,
    ]
    words += ["--picture_every", 0, "--checkpoint_every", 1, "--accelerator", "cpu"]
    returned, said = stopped("", (tmp_path / "run" / "checkpoint.ckpt").exists, signal.SIGTERM, *words)
    assert returned == 143
    assert "oaml train: interrupted; the last checkpoint is kept, and --resume goes on from it" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "checkpoint.ckpt").is_file()
