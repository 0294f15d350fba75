"""The inner loops of `oaml.kernels.best_matches` and `oaml.joint` in C++, compiled on first use where there is a
compiler; everything works without.

- Best matches: one pass over correlations in the cache finds both maxima of every pair; torch needs eleven.
- Their gradients: each best match adds one cell to another; torch multiplies whole matrices that are nearly all zero.
- Joint embedding: the masked sums of two faces are compared in the first cache; torch writes and reads six times its input.

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

Output = tuple[Tensor, Tensor, Tensor, Tensor]
"""Fields of `oaml.kernels.best_matches.BestMatches`, contiguous, to be filled."""
Picker = Callable[[Tensor, int, int], None]
"""See `oaml.kernels.best_matches.torch_picker`."""
SOURCES = [Path(__file__).with_name(name) for name in ("best_matches.cpp", "joint.cpp")]
LANES = 16  # as in the sources
PICK = {torch.float32: "pick_float32", torch.bfloat16: "pick_bfloat16"}
"""Type of similarities -> the function that picks the best of them."""
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
        key = repr((os.path.realpath(compiler), flags, platform.machine())).encode()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oaml"
        target = folder / f"native-{hashlib.sha256(source + key).hexdigest()[:16]}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # renamed when it is complete: another process may compile at the same time
            with tempfile.TemporaryDirectory(dir=folder) as work:
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
    """Whether `picker` and `pull` can take tensors of this device and type."""
    return device.type == "cpu" and dtype in PICK and library() is not None


def multiplies(x: Tensor) -> bool:
    """Whether `listed_picker` and `joint_cosine` can take tensors like x, and are faster than torch: they need AVX2 or AVX-512."""
    vectors = torch.backends.cpu.get_cpu_capability() in MARCH
    return x.device.type == "cpu" and x.dtype == torch.float32 and vectors and library() is not None


def compares(cells: Tensor) -> bool:
    """Whether `joint_cosine` can take per-cell embeddings like these [N,R,E]."""
    return multiplies(cells) and cells.shape[1] <= 64 and cells.shape[2] % LANES == 0


def picker(
    dtype: torch.dtype,
    log_p: Tensor | None,
    log_g: Tensor | None,
    bias: Tensor | None,
    into: Output,
    paired: bool,
) -> Picker:
    """As `oaml.kernels.best_matches.torch_picker`."""
    loaded = library()
    assert loaded is not None
    pick = getattr(loaded, PICK[dtype])
    (p, g, s), r = into[0].shape, into[2].shape[2]
    beyond = (0, -s % LANES)  # columns that are read and are never the best match
    padded = torch.zeros(r, s) if bias is None else bias.float()
    padded = F.pad(padded, beyond, value=-torch.inf).contiguous()
    log_r = torch.zeros(p if paired else g, r) if log_g is None else log_g.float().contiguous()
    log_s = F.pad(torch.zeros(p, s) if log_p is None else log_p.float(), beyond).contiguous()
    outputs = [(x.data_ptr(), x.shape[2] * x.element_size()) for x in into]

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
            *(start + pair * row for start, row in outputs),
            1,
            g,
        )

    return one_block


def listed_picker(
    probes: Tensor, gallery: Tensor, log_p: Tensor | None, log_g: Tensor | None, bias: Tensor | None
) -> Callable[[Tensor, Tensor, Output], None]:
    """A function that picks the best matches of listed pairs of faces.

    Args:
        probes, gallery: cells [P,S,C] and [G,R,C]; the rest as in `oaml.kernels.best_matches.best_matches`.

    Returns:
        a function of int64 [N] twice, the probe and the gallery face of each pair, and of their best matches, to be filled.
    """
    loaded = library()
    assert loaded is not None
    probes, gallery = probes.contiguous(), gallery.contiguous()
    (p, s, c), (g, r, _) = probes.shape, gallery.shape
    beyond = (0, -s % LANES)  # columns that are read and are never the best match
    log_s = F.pad(probes.new_zeros(p, s) if log_p is None else log_p, beyond).contiguous()
    log_r = probes.new_zeros(g, r) if log_g is None else log_g.contiguous()
    padded = F.pad(probes.new_zeros(r, s) if bias is None else bias, beyond, value=-torch.inf).contiguous()

    def pick(first: Tensor, second: Tensor, into: Output) -> None:
        scratch = probes.new_empty(r + c, padded.shape[1])
        faces = (probes, gallery, first.contiguous(), second.contiguous())
        arrays = (x.data_ptr() for x in (padded, log_r, log_s, scratch, *into))
        loaded.pick_pairs(*(x.data_ptr() for x in faces), len(first), r, s, c, *arrays)

    return pick


def joint_cosine(a: Tensor, v_a: Tensor, b: Tensor, v_b: Tensor, into: Tensor) -> None:
    """The cosine of the joint embeddings of every pair.

    Args:
        a, b: per-cell embeddings [P,R,E] and [G,R,E], R at most 64, E a multiple of 16; float32 and contiguous.
        v_a, v_b: visibility [P,R] and [G,R]; float32 and contiguous.
        into: [P,G], to be filled; its rows are contiguous.
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
    """Add to the gradient of A faces the part that comes from their pairs with B other faces.

    Args:
        to: [A,S,C], the gradient that is added to; other: [B,R,C], the other faces' cells; both float32 and contiguous.
        grad, partner: [A,B,S], of the best matches of their cells, the gradient of the value, and the partner; grad_other,
            partner_other: [A,B,R], the same of the other faces' cells.
        to_bias: [S,R], the gradient of the bias, that is added to as well, or None.
    """
    loaded = library()
    assert loaded is not None
    (a, s, c), (b, r, _) = to.shape, other.shape
    arrays = (x.data_ptr() for x in (grad, partner, grad_other, partner_other))
    steps = (grad.stride(dim) // s for dim in (0, 1))  # rows from one pair to the next
    where = None if to_bias is None else to_bias.data_ptr()
    loaded.pull_gradients(to.data_ptr(), other.data_ptr(), a, b, s, r, c, *arrays, *steps, where)
