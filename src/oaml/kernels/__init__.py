"""Inner loops, in torch and, where they exist, in C++ and Triton; threads that share work."""

from typing import Literal

Precision = Literal["float32", "bfloat16"]
"""What convolutions and matrix products compute in."""
