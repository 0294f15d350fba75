"""OAML: occlusion-aware face recognition. Compares what both faces show."""

from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"
__all__ = ["Gallery", "Recogniser", "load"]

if TYPE_CHECKING:
    from oaml.gallery import Gallery
    from oaml.recognition.recognise import Recogniser, load


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first used: `import oaml` alone stays light."""
    from importlib import import_module

    modules = {
        "Gallery": "oaml.gallery",
        "Recogniser": "oaml.recognition.recognise",
        "load": "oaml.recognition.recognise",
    }
    if name not in modules:
        raise AttributeError(f"module 'oaml' has no attribute {name!r}")
    return getattr(import_module(modules[name]), name)
