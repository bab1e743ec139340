"""What this machine can do, and what training therefore uses: threads and how they wait, precision, int8, compilation.

Every choice follows from what the processor can do, never from its name, and is the same in every run on it. Nothing
that the user has set is changed. `pckd-nb doctor` prints the choices. torch is imported inside the functions, so that
`prepare` can run before it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# How often a waiting OpenMP thread looks before it sleeps. GNU's default, 300,000, keeps a core busy for milliseconds:
# as soon as a second program runs, threads wait for each other on the very core that the other one needs.
SPIN_COUNT = 300
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")  # what a user may have set

NARROW = ("avx512", "amx")
DENIED = {  # by a value of ONEDNN_MAX_CPU_ISA: how the names of what it denies begin
    "SSE41": ("avx", "amx"),
    "AVX": ("avx2", "avx_", *NARROW),
    "AVX2": ("avx_vnni", *NARROW),
    "AVX2_VNNI": NARROW,
    "AVX2_VNNI_2": NARROW,
    "AVX512_CORE": ("avx512_vnni", "avx512_bf16", "amx"),
    "AVX512_CORE_VNNI": ("avx512_bf16", "amx"),
    "AVX512_CORE_BF16": ("amx",),
}


# ------------------------------------------------------------------------------------------------------- threads


def prepare() -> None:
    """Set what has to be set before torch is loaded: how threads wait.

    Does nothing where torch is loaded already, see `share_cores`, or where the user has chosen.
    """
    if "torch" in sys.modules or any(name in os.environ for name in WAITING):
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)  # GNU OpenMP, in torch's Linux wheels
    os.environ["KMP_BLOCKTIME"] = "1"  # LLVM's and Intel's, in milliseconds


@cache
def share_cores() -> None:
    """Leave other programs their share of the processor from now on. Called before anything is trained or timed.

    Where torch was loaded before this package, GNU OpenMP has read its settings without `prepare`. It still shortens
    the waiting by itself when it manages more threads than there are cores, so a second pool of threads is started,
    which then sleeps. Threads beyond the cores that a container may use are given up.
    """
    import joblib
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > joblib.cpu_count():
        torch.set_num_threads(joblib.cpu_count())
    if any(name in os.environ for name in WAITING) or torch.get_num_threads() == 1:
        return

    def sleep_after_one_parallel_operation() -> None:
        torch.ones(2**20).add_(1)
        started.set()
        threading.Event().wait()

    started = threading.Event()
    threading.Thread(target=sleep_after_one_parallel_operation, name="pckd_nb: waits", daemon=True).start()
    started.wait()


# ----------------------------------------------------------------------------------- what the processor can do


def able() -> dict[str, bool]:
    """What torch finds this processor able to do, by name, less what ATEN_CPU_CAPABILITY or ONEDNN_MAX_CPU_ISA deny."""
    import torch

    found = {name: bool(value) for name, value in torch.cpu.get_capabilities().items()}
    denied = DENIED.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), ())
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT"):
        denied += NARROW
    return {name: value for name, value in found.items() if not name.startswith(denied)}


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware itself computes in bfloat16. Where it is emulated, float32 is faster."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and any(able().get(name) for name in ("avx512_bf16", "amx_bf16"))


def computes_in_int8(device: torch.device) -> bool:
    """Whether convolutions in int8 were measured to be faster than in any other type: on x86 processors with AVX2."""
    return device.type == "cpu" and bool(able().get("avx2"))


def default_precision(device: torch.device) -> str:
    """Of a training that leaves it open: "bf16-mixed" where the hardware computes in bfloat16, else "32-true"."""
    return "bf16-mixed" if computes_in_bfloat16(device) else "32-true"


def instructions() -> str:
    """The vector instructions that this processor has and torch uses, as in "AVX-512, VNNI, bfloat16"."""
    found = able()
    if not found.get("avx2"):
        return platform.machine()
    names = {
        "AVX-512" if found.get("avx512_f") else "AVX2": True,
        "VNNI": found.get("avx512_vnni") or found.get("avx_vnni"),
        "bfloat16": found.get("avx512_bf16"),
        "AMX": found.get("amx_bf16"),
    }
    return ", ".join(name for name, there in names.items() if there)


def describe(device: torch.device) -> str:
    """One line for run.json and captions: "AMD EPYC (AVX2), 2 threads", "NVIDIA A100-SXM4-80GB"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return f"{name} ({instructions()}), {threads} thread{'s' * (threads > 1)}"


# ------------------------------------------------------------------------------------------------------- speed

STEP_SECONDS = 0.025  # of `_small_training` on a laptop on which the whole demo takes five minutes


@cache
def slowness() -> float:
    """How many times longer a small training takes here than on the machine for which times are stated, at least 1.

    Measured once per process, in a second or two, in the default precision of this machine. What else runs meanwhile
    counts: the median of several repetitions is taken.
    """
    share_cores()
    steps = _small_training()
    for _ in range(3):
        next(steps)
    return max(1.0, statistics.median(next(steps) for _ in range(9)) / STEP_SECONDS)


def _small_training() -> Iterator[float]:
    """Seconds of one step after the other of a network like resnet8 on 32 images of 32×32."""
    import torch
    from torch import nn

    def stage(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        return [first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU()]

    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(*stage(3, 16, 1), *stage(16, 32, 2), *stage(32, 64, 2))
        network = network.to(memory_format=torch.channels_last)
        x = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    while True:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16(device)):
            network.zero_grad()
            network(x).float().square().mean().backward()
        yield time.perf_counter() - started


# --------------------------------------------------------------------------------------------------- allocator


def keep_freed_memory() -> None:
    """Let the C library keep memory that tensors free. By default glibc gives large pieces back to the system, which
    has to map and clear them again at every step. Other C libraries are left alone."""
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
