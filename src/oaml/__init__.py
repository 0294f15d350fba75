"""OAML: occlusion-aware face recognition. Compares what both faces show."""

__version__ = "0.2.0"
