"""A network of one's own: one class, and one line in `BACKBONES`, are all that training, adapting and verifying ask for."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import cast, get_args

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from oaml.data import DataConfig
from oaml.datasets.drawn import draw_face
from oaml.head import HeadConfig
from oaml.main import main
from oaml.model import Model
from oaml.net import BACKBONES, Architecture, Backbone, NetConfig
from oaml.qaconv import QAConvConfig
from oaml.train_val import OptimiserConfig, TrainConfig, train
from oaml.vit import ViT, ViTSize

pytestmark = pytest.mark.usefixtures("one_thread")


class Tiny(Backbone):
    """Two strided convolutions, and an output layer that adds up its cells."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.channels, self.embedding_size = {3: 12, 4: 24}, config.embedding_size
        self.front = nn.Sequential(nn.Conv2d(3, 12, 8, 8), nn.BatchNorm2d(12), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.output = nn.Conv2d(24, config.embedding_size, 1)

    def forward_stage3(self, x: Tensor) -> Tensor:
        return self.front(x)

    def forward_stage4(self, stage3: Tensor) -> Tensor:
        return self.back(stage3)

    def without_front(self, stage4: bool = True) -> Backbone:
        copy = deepcopy(self)
        del copy.front
        if not stage4:
            del copy.back
        return copy

    def forward_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.output(features).float().sum((2, 3))
        norm = raw.norm(dim=1, keepdim=True)
        return F.normalize(raw, dim=1), norm

    def _cells(self, features: Tensor) -> Tensor:
        return self.output(features).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("name", ["tiny", "vit_t"])
def test_a_backbone_is_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A convolutional network of one's own, and a transformer (a small one), from training to templates and answers."""
    made = {"tiny": Tiny, "vit_t": lambda config: ViT(ViTSize(16, 6), config.embedding_size)}
    monkeypatch.setitem(BACKBONES, name, made[name])
    trained = train(
        TrainConfig(
            out=tmp_path / "trained",
            data=DataConfig(
                drawn_people=20, drawn_shots=3, identities=4, images=2, occlusion_batch=4, workers=0
            ),
            net=NetConfig(architecture=cast(Architecture, name), embedding_size=16),
            qaconv=QAConvConfig(adapter=8),
            head=HeadConfig(s=16.0),
            optimiser=OptimiserConfig(kind="adamw", lr=1e-3),
            steps=4,
            validate_every=0,
            picture_every=0,
            accelerator="cpu",
        )
    )
    model = Model.load(trained)
    faces = torch.rand(2, 3, 112, 112)
    templates = model.extract(faces)
    torch.testing.assert_close(
        templates.cell_embeddings.sum(1), templates.embedding * templates.norm[:, None], rtol=1e-4, atol=1e-4
    )

    for person in range(40):
        folder = tmp_path / "people" / f"p{person:02d}"
        folder.mkdir(parents=True)
        for shot in range(2):
            Image.fromarray(draw_face(person, shot)).save(folder / f"{shot}.png")
    adapted, people = tmp_path / "adapted", tmp_path / "people"
    adapt = ["adapt", "--backbone", str(trained), "--people", str(people), "--out", str(adapted)]
    assert main([*adapt, "--occluders_per_view", "1", "--occlusion_steps", "3", "--steps", "3"]) == 0
    capsys.readouterr()
    for changed, value in Model.load(trained).net.backbone.state_dict().items():
        assert torch.equal(value, Model.load(adapted).net.backbone.state_dict()[changed])

    a, b = (str(people / "p00" / f"{shot}.png") for shot in range(2))
    assert main(["verify", a, b, "--model", str(adapted), "--json", "--draw", str(tmp_path / "why.png")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert -1 <= answer["cosine"] <= 1
    assert (tmp_path / "why.png").is_file()
    faces_of_two = tmp_path / "two.safetensors"
    embed = ["embed", str(adapted), "--images", str(people / "p00"), "--out", str(faces_of_two)]
    assert main(embed) == 0
    (tmp_path / "pairs.csv").write_text("path_a,path_b,same\n0.png,1.png,1\n")
    asked = ["--pairs", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "scores.csv")]
    assert main(["score", str(adapted), "--images", str(faces_of_two), *asked]) == 0
    scores = (tmp_path / "scores.csv").read_text().splitlines()[1].split(",")
    assert float(scores[3]) == pytest.approx(answer["cosine"], abs=0.02)  # of int8 templates


def test_the_choices_of_the_command_line_are_the_networks_there_are() -> None:
    assert set(get_args(Architecture)) == set(BACKBONES)
