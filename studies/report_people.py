"""What several studies begin with: a model folder from the command line, and the report people of LFW under occluders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from people import reported

from oaml.adaptation.held_out import HeldOut
from oaml.datasets.people import PeopleFolder
from oaml.main import keep_freed_memory
from oaml.model import Model
from oaml.occluders import load_mask_pictures


def asked(description: str | None) -> tuple[Model, Path]:
    """The model and the folder of data that the command line names.

    Args:
        description: what `--help` says.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    keep_freed_memory()
    return Model.load(given.model), given.data


def asked_for(
    description: str | None, kinds: Sequence[str], everybody: bool = False
) -> tuple[Model, HeldOut]:
    """The model that the command line names, and the people under occluders that no training saw.

    Args:
        description: what `--help` says.
        kinds: of occluders.
        everybody: occlude all images; see `HeldOut`.
    """
    model, data = asked(description)
    people = PeopleFolder(data / "lfw", reported)
    pictures = load_mask_pictures(data / "mask_templates")
    return model, HeldOut(model, people, kinds, 0, "b", pictures, everybody=everybody)
