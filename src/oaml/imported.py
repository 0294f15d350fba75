"""`oaml import`: published weights into a model folder, with what is known of their family."""

from __future__ import annotations

from pathlib import Path

from oaml.errors import OamlError, command


def import_weights(file: Path, *, out: Path, ema: bool = False, licence: str = "") -> Path:
    """Read published weights, whatever a trainer wrote around them, and write a model folder.

    Recognised by what the file holds: AdaFace's IR networks, InsightFace's iresnets, MobileFaceNets and transformers, those of
    CVLface and LVFace, and ONNX files of iresnets and MobileFaceNets. Nothing that the file names is run. The order of the colours,
    mean and deviation of the input come with the family, or from the model.yaml of CVLface.

    The model takes part in everything as it is, but sees no occluder and stores no thresholds: `oaml adapt` makes it
    occlusion-aware.

    Example:
        oaml import checkpoint.pt --out runs/imported

    Args:
        file: a file of weights, or a folder as CVLface publishes them.
        out: model folder to write.
        ema: take the averaged weights (EMA) of a checkpoint that holds both.
        licence: of the weights, written into config.json.

    Returns:
        The model folder.

    Raises:
        OamlError: unreadable, of no known family, incomplete, or `out` is something else. Nothing is written then.
    """
    from oaml.model import Model, is_model_folder
    from oaml.support.files import check_model_folder

    file, out = Path(file), Path(out)
    check_model_folder(out)
    if is_model_folder(file) or (file.name == "model.safetensors" and is_model_folder(file.parent)):
        raise OamlError(
            f"{file}: is a model folder, or part of one, already; every command takes the folder as it is"
        )
    model = Model.from_published(file, ema)
    config = model.config
    if licence:
        config.licence = licence
    feed = config.preprocessing
    mean, std = ("/".join(f"{x:g}" for x in values) for values in (feed.mean, feed.std))
    print(
        f"{config.training['backbone']}: {config.net.architecture}, {config.net.embedding_size} numbers a face; "
        f"{feed.channels}, mean {mean}, deviation {std}"
    )
    if config.training["set_aside"]:
        print(f"set aside: {'; '.join(config.training['set_aside'])}")
    print(f"not trained yet: {', '.join(config.training['untrained'])}")
    model.save(out)
    next_step = command("adapt", "--backbone", out, "--people", "PEOPLE", "--out", "NEW")
    print(f"written to {out}; make it occlusion-aware: {next_step}")
    return out
