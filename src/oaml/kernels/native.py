"""The inner loops of `oaml.kernels.best_matches` and `oaml.joint` in C++, compiled on first use where there is a
compiler; everything works without.

One pass over correlations that lie in the cache finds both maxima of a pair, of which torch needs eleven; the gradient of a best
match moves one cell, where torch multiplies whole matrices that are nearly all zero; and sums over the cells of two faces are
compared while they lie in the first cache, of which torch writes and reads six times as much as it is given.

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
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Room = tuple[Tensor, Tensor, Tensor, Tensor]
Picker = Callable[[Tensor, int, int], None]
SOURCES = [Path(__file__).with_name(name) for name in ("best_matches.cpp", "joint.cpp")]
LANES = 16  # as in the sources
CELLS = 64  # at most, as in joint.cpp
PICK = {torch.float32: "pick_float32", torch.bfloat16: "pick_bfloat16"}
MARCH = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
"""What torch calls the vector instructions of a processor, and what compilers call them."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled sources; None without a compiler that can. Its functions run without the interpreter's lock."""
    if os.environ.get("OAML_NATIVE") == "0":
        return None
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.name != "posix":
        return None
    march = MARCH.get(torch.backends.cpu.get_cpu_capability())
    flags = ["-std=c++17", "-O3", "-shared", "-fPIC", *([f"-march={march}"] if march else [])]
    try:
        source = b"".join(path.read_bytes() for path in SOURCES)
        told = repr((os.path.realpath(compiler), flags, platform.machine())).encode()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oaml"
        target = folder / f"native-{hashlib.sha256(source + told).hexdigest()[:16]}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=folder
            ) as work:  # whole or not at all, whoever else compiles
                made = Path(work) / "native.so"
                subprocess.run(
                    [compiler, *flags, "-o", made, *SOURCES], check=True, capture_output=True, timeout=60
                )
                made.replace(target)
        loaded = ctypes.CDLL(str(target))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no home, no room, too old a compiler
        return None
    array, number = ctypes.c_void_p, ctypes.c_long
    for name in PICK.values():
        getattr(loaded, name).argtypes = [
            array,
            *[number] * 4,
            *[array] * 3,
            number,
            *[array] * 4,
            *[number] * 2,
        ]
    loaded.pick_pairs.argtypes = [*[array] * 4, *[number] * 4, *[array] * 8]
    loaded.joint_cosine.argtypes = [*[array] * 4, *[number] * 4, array, number]
    loaded.pull_gradients.argtypes = [*[array] * 2, *[number] * 5, *[array] * 4, *[number] * 2, array]
    return loaded


def picks(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `picker` and `pull` can take tensors of this kind."""
    return device.type == "cpu" and dtype in PICK and library() is not None


def multiplies(x: Tensor) -> bool:
    """Whether `pair_picker` and `joint_cosine` can take tensors of this kind: without wide vectors they'd be slower than torch."""
    wide = torch.backends.cpu.get_cpu_capability() in MARCH
    return x.device.type == "cpu" and x.dtype == torch.float32 and wide and library() is not None


def picker(
    dtype: torch.dtype,
    log_p: Tensor | None,
    log_g: Tensor | None,
    bias: Tensor | None,
    into: Room,
    paired: bool,
) -> Picker:
    """As `oaml.kernels.best_matches.torch_picker`."""
    loaded = library()
    assert loaded is not None
    pick = getattr(loaded, PICK[dtype])
    (p, g, s), r = into[0].shape, into[2].shape[2]
    beyond = (0, -s % LANES)  # columns that are read and never win
    padded = torch.zeros(r, s) if bias is None else bias.float()
    padded = F.pad(padded, beyond, value=-torch.inf).contiguous()
    log_r = torch.zeros(p if paired else g, r) if log_g is None else log_g.float().contiguous()
    log_s = F.pad(torch.zeros(p, s) if log_p is None else log_p.float(), beyond).contiguous()
    room = [(x.data_ptr(), x.shape[2] * x.element_size()) for x in into]

    def one_block(similarity: Tensor, first_p: int, first_g: int) -> None:
        similarity = similarity.contiguous()
        pair = first_p * g + first_g
        pick(
            similarity.data_ptr(),
            *similarity.shape,
            padded.data_ptr(),
            log_r[first_p if paired else first_g :].data_ptr(),
            log_s[first_p:].data_ptr(),
            log_s.shape[1] if paired else 0,
            *(start + pair * row for start, row in room),
            1,
            g,
        )

    return one_block


def pair_picker(
    probes: Tensor, gallery: Tensor, log_p: Tensor | None, log_g: Tensor | None, bias: Tensor | None
) -> Callable[[Tensor, Tensor, Room], None]:
    """What picks the best matches of some pairs of faces: cells [P,S,C] and [G,R,C]; the rest as in `oaml.kernels.best_matches`.

    Returns:
        a function of int64 [N] twice, which probe with which gallery face, and of where their best matches go.
    """
    loaded = library()
    assert loaded is not None
    probes, gallery = probes.contiguous(), gallery.contiguous()
    (p, s, c), (g, r, _) = probes.shape, gallery.shape
    beyond = (0, -s % LANES)  # columns that are read and never win
    log_s = F.pad(probes.new_zeros(p, s) if log_p is None else log_p, beyond).contiguous()
    log_r = probes.new_zeros(g, r) if log_g is None else log_g.contiguous()
    padded = F.pad(probes.new_zeros(r, s) if bias is None else bias, beyond, value=-torch.inf).contiguous()

    def some(first: Tensor, second: Tensor, into: Room) -> None:
        room = probes.new_empty(r + c, padded.shape[1])
        given = (probes, gallery, first.contiguous(), second.contiguous())
        arrays = (x.data_ptr() for x in (padded, log_r, log_s, room, *into))
        loaded.pick_pairs(*(x.data_ptr() for x in given), len(first), r, s, c, *arrays)

    return some


def joint_cosine(a: Tensor, v_a: Tensor, b: Tensor, v_b: Tensor, into: Tensor) -> None:
    """Cosines of both faces' sums of cells, weighted by the visibility of both.

    Args:
        a: [P,R,E], b: [G,R,E], at most 64 cells, E a multiple of 16; v_a: [P,R], v_b: [G,R]; float32 and contiguous.
        into: [P,G], its rows contiguous.
    """
    loaded = library()
    assert loaded is not None
    arrays = (x.data_ptr() for x in (a, v_a, b, v_b))
    loaded.joint_cosine(*arrays, len(a), len(b), *a.shape[1:], into.data_ptr(), into.stride(0))


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
    loaded = library()
    assert loaded is not None
    (a, s, c), (b, r, _) = to.shape, other.shape
    arrays = (x.data_ptr() for x in (grad, partner, grad_other, partner_other))
    steps = (grad.stride(dim) // s for dim in (0, 1))  # rows from one pair to the next
    where = None if to_bias is None else to_bias.data_ptr()
    loaded.pull_gradients(to.data_ptr(), other.data_ptr(), a, b, s, r, c, *arrays, *steps, where)
