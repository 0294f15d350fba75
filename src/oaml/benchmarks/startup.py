"""The first answer of `oaml verify` in a fresh process, against what importing torch alone takes there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2

from oaml.benchmarks.joint import fastest
from oaml.datasets.drawn import draw_face
from oaml.model import Model, ModelConfig
from oaml.net import NetConfig

ROUNDS = 5


def run() -> dict[str, object]:
    """Seconds from the start of a process to its end, and their ratios (here less is better)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Model(ModelConfig(NetConfig("ir_mini", 128), thresholds={"0.001": 0.0})).save(folder / "model")
        faces = [folder / "a.png", folder / "b.png"]
        for shot, path in enumerate(faces):
            cv2.imwrite(str(path), draw_face(0, shot)[..., ::-1])
        verify = ["-m", "oaml.main", "verify", *map(str, faces), "--model", str(folder / "model"), "--json"]
        seconds = fastest(
            {
                "empty": partial(_process, "-c", ""),
                "help": partial(_process, "-m", "oaml.main", "--help"),
                "import torch": partial(_process, "-c", "import torch"),
                "verify": partial(_process, *verify),
            },
            ROUNDS,
        )
    return {
        "seconds": seconds,
        "verify_over_import_torch": seconds["verify"] / seconds["import torch"],
        "help_over_empty": seconds["help"] / seconds["empty"],
    }


def _process(*arguments: str) -> None:
    # as the command line sets it for itself: threads of this process must not shape those of that one
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment, timeout=60
    )
