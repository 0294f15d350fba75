"""The inner loops of `oaml.winners` in C++, compiled on first use where there is a compiler; everything works without.

One pass over correlations that lie in the cache finds both maxima of a pair, of which torch needs eleven; and the
gradient of a winner moves one cell, where torch multiplies whole matrices that are nearly all zero.

The library is kept in the user's cache folder (XDG_CACHE_HOME, by default ~/.cache/oaml) under a name made of the source,
the compiler and the processor's vector instructions, so that it's never used for anything else. OAML_NATIVE=0 leaves it out.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = Path(__file__).with_name("winners.cpp")
LANES = 16  # as in winners.cpp
MARCH = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
"""What torch calls the vector instructions of a processor, and what compilers call them."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled winners.cpp; None without a compiler that can. Its functions run without the interpreter's lock."""
    if os.environ.get("OAML_NATIVE") == "0":
        return None
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.name != "posix":
        return None
    march = MARCH.get(torch.backends.cpu.get_cpu_capability())
    flags = ["-std=c++17", "-O3", "-shared", "-fPIC", *([f"-march={march}"] if march else [])]
    try:
        source = SOURCE.read_bytes()
        told = repr((os.path.realpath(compiler), flags, platform.machine())).encode()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oaml"
        target = folder / f"winners-{hashlib.sha256(source + told).hexdigest()[:16]}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=folder
            ) as work:  # whole or not at all, whoever else compiles
                made = Path(work) / "winners.so"
                subprocess.run(
                    [compiler, *flags, "-o", made, SOURCE], check=True, capture_output=True, timeout=60
                )
                made.replace(target)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no home, no room, too old a compiler
        return None


def picks(x: Tensor) -> bool:
    """Whether `pick` and `pull` can take tensors of this kind."""
    can = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return can and library() is not None


def pick(
    similarity: Tensor,
    log_s: Tensor | None,
    log_r: Tensor | None,
    bias: Tensor | None,
    into: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Winners of a block of pairs.

    Args:
        similarity: [a,R,b,S], float32 or bfloat16.
        log_s, log_r: [a or 1,b,S] and [a,R], what a cell adds to the choice; bias: [R,S].
        into: value [b,a,S], partner [b,a,S], value [b,a,R], partner [b,a,R], parts of contiguous tensors.
    """
    a, r, b, s = similarity.shape
    bias = similarity.new_zeros(r, s, dtype=torch.float32) if bias is None else bias.float().contiguous()
    log_r = bias.new_zeros(a, r) if log_r is None else log_r.float().contiguous()
    log_s = bias.new_zeros(1, b, s) if log_s is None else log_s.float()
    log_s = F.pad(log_s, (0, LANES)).contiguous()  # what is read beyond the last cell of a face
    name = "pick_bfloat16" if similarity.dtype == torch.bfloat16 else "pick_float32"
    _call(
        name,
        similarity.contiguous(),
        *(a, r, b, s),
        *(bias, log_r, log_s),
        0 if len(log_s) == 1 else log_s.stride(0),
        *into,
        *_steps(into[0].transpose(0, 1)),
    )


def pull(
    to: Tensor,
    other: Tensor,
    grad: Tensor,
    partner: Tensor,
    grad_other: Tensor,
    partner_other: Tensor,
    to_bias: Tensor | None,
) -> None:
    """Add to the gradient of some faces what they get from their pairs with others.

    Args:
        to: [A,S,C], the gradient; other: [B,R,C], the cells of the others; both float32 and contiguous.
        grad, partner: [A,B,S], of the values of their cells; grad_other, partner_other: [A,B,R], of the others' cells.
        to_bias: [S,R], the gradient of the bias, or None.
    """
    (a, s, c), (b, r, _) = to.shape, other.shape
    _call(
        "pull_gradients",
        *(to, other),
        *(a, b, s, r, c),
        *(grad, partner, grad_other, partner_other),
        *_steps(grad),
        to_bias,
    )


def _steps(pairs: Tensor) -> tuple[int, int]:
    """Rows from one pair to the next in [A,B,cells], along A and along B."""
    return pairs.stride(0) // pairs.shape[2], pairs.stride(1) // pairs.shape[2]


def _call(name: str, *arguments: Tensor | int | None) -> None:
    function = getattr(library(), name)
    function(
        *(
            ctypes.c_void_p(x.data_ptr())
            if isinstance(x, Tensor)
            else None
            if x is None
            else ctypes.c_long(x)
            for x in arguments
        )
    )
