"""The model card of a hub repository (Mitchell et al., Model Cards for Model Reporting, 2019), written from config.json alone."""

from __future__ import annotations

from typing import Any


def card_text(config: dict[str, Any]) -> str:
    """Markdown of what a model states about itself.

    Args:
        config: `oaml.model.ModelConfig` as a dictionary. What it doesn't state, the card says is unstated.
    """
    net, pixels, training = config["net"], config["preprocessing"], config["training"]
    facts = [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in training.items()]
    thresholds = [
        f"| {float(far):g} | {value:.3f} | {_behind(config.get('evidence', {}).get(far))} |"
        for far, value in sorted(config["thresholds"].items(), key=lambda item: -float(item[0]))
    ]
    return "\n".join(
        [
            "---",
            "license: other",
            "library_name: oaml",
            "tags: [face-recognition, occlusion]",
            "---",
            "# Occlusion-aware face recognition",
            "",
            f"A network of architecture {net['architecture']} with embeddings of {net['embedding_size']} numbers, an occlusion "
            f"head, QAConv ({config['qaconv']['method']}) and a joint embedding, for aligned faces of 112x112. RGB in [0,1] goes "
            f"in; the weights themselves take {pixels['channels']} less {pixels['mean']} divided by {pixels['std']}, which the "
            "model does." + (" Faces are averaged with their mirror images." if config["flip"] else ""),
            "",
            f"Licence: {config['licence']}",
            "",
            "```python",
            "from oaml.model import Model",
            "",
            'model = Model.from_pretrained("NAME/OF-THIS-REPOSITORY")',
            "templates = model.extract(faces)  # RGB [N,3,112,112] in [0,1]",
            'scores = model.compare_all(templates, templates)["fused"]  # higher is more similar',
            "```",
            "",
            "## Training",
            "",
            *(["| what | stated |", "| --- | --- |", *facts] if facts else ["Unstated."]),
            "",
            "## Thresholds",
            "",
            *(
                [
                    "| false-accept rate | fused score | measured on what it was fitted on, 95 % by person |",
                    "| --- | --- | --- |",
                    *thresholds,
                ]
                if thresholds
                else ["None: fit them with `oaml calibrate`."]
            ),
            "",
            "A threshold holds for faces like those it was fitted on. Measure before deciding anything about people: "
            "`oaml evaluate`; and fit them to your own faces: `oaml calibrate`.",
            "",
        ]
    )


def _behind(evidence: dict[str, Any] | None) -> str:
    if evidence is None:
        return "unstated"
    shares = f"{evidence['far']:.2g} ({evidence['far_low']:.2g} to {evidence['far_high']:.2g})"
    return f"{shares}: {evidence['pairs']:,} pairs of {evidence['people']:,} people"


def _cell(value: Any) -> str:
    if isinstance(value, list):  # names of people, by digits of their hashes
        return f"{len(value):,} entries"
    return " ".join(str(value).replace("|", "\\|").split())
