"""Choose threads, precision and int8 for the hardware of this machine.

The choices depend on the features of the processor, not on its name, so they are the same in every run on a machine.
Environment variables of the user are never changed. `pckd-nb doctor` prints the choices. torch is imported inside the
functions, because `limit_openmp_spinning` has to run before torch is imported.
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

# How often a waiting OpenMP thread checks for work before it sleeps. The default of GNU, 300,000, keeps a core busy for
# milliseconds. If a second program runs, its threads then have to wait for that core.
SPIN_COUNT = 300
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

AVX512_AND_AMX = ("avx512", "amx")
DISABLED_FEATURES = {  # value of ONEDNN_MAX_CPU_ISA → prefixes of the processor features that it disables
    "SSE41": ("avx", "amx"),
    "AVX": ("avx2", "avx_", *AVX512_AND_AMX),
    "AVX2": ("avx_vnni", *AVX512_AND_AMX),
    "AVX2_VNNI": AVX512_AND_AMX,
    "AVX2_VNNI_2": AVX512_AND_AMX,
    "AVX512_CORE": ("avx512_vnni", "avx512_bf16", "amx"),
    "AVX512_CORE_VNNI": ("avx512_bf16", "amx"),
    "AVX512_CORE_BF16": ("amx",),
}


# ------------------------------------------------------------------------------------------------------- threads


def limit_openmp_spinning() -> None:
    """Let waiting OpenMP threads sleep early. This can be set only before torch is imported.

    It does nothing if torch is already imported (see `share_cores`), or if the user has set one of `WAIT_VARIABLES`.
    """
    if "torch" in sys.modules or any(name in os.environ for name in WAIT_VARIABLES):
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)  # for GNU OpenMP, in the Linux wheels of torch
    os.environ["KMP_BLOCKTIME"] = "1"  # for LLVM and Intel OpenMP, in milliseconds


@cache
def share_cores() -> None:
    """Avoid slowing down other programs. It is called before training and before measuring times.

    The number of threads is reduced to the number of cores that this process may use, for example in a container.

    If torch was imported before this package, it is too late for `limit_openmp_spinning`. But idle threads of GNU
    OpenMP also sleep early if there are more threads than cores. So a second pool of threads is started here, which
    then sleeps.
    """
    import joblib
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > joblib.cpu_count():
        torch.set_num_threads(joblib.cpu_count())
    if any(name in os.environ for name in WAIT_VARIABLES) or torch.get_num_threads() == 1:
        return

    def sleep_after_one_parallel_operation() -> None:
        torch.ones(2**20).add_(1)
        started.set()
        threading.Event().wait()

    started = threading.Event()
    threading.Thread(target=sleep_after_one_parallel_operation, name="pckd_nb: waits", daemon=True).start()
    started.wait()


# ----------------------------------------------------------------------------------- features of the processor


def cpu_features() -> dict[str, bool]:
    """Return the features of the processor, as torch finds them.

    Features that ATEN_CPU_CAPABILITY or ONEDNN_MAX_CPU_ISA disable are left out.

    Returns
    -------
    dict of str to bool
        Names are those of `torch.cpu.get_capabilities()`, such as "avx512_bf16".
    """
    import torch

    found = {name: bool(value) for name, value in torch.cpu.get_capabilities().items()}
    disabled = DISABLED_FEATURES.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), ())
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT"):
        disabled += AVX512_AND_AMX
    return {name: value for name, value in found.items() if not name.startswith(disabled)}


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware supports bfloat16. If it is only emulated, float32 is faster."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and any(cpu_features().get(name) for name in ("avx512_bf16", "amx_bf16"))


def computes_in_int8(device: torch.device) -> bool:
    """Return whether int8 convolutions are the fastest ones. In our measurements they are on processors with AVX2."""
    return device.type == "cpu" and bool(cpu_features().get("avx2"))


def default_precision(device: torch.device) -> str:
    """Return the precision that "auto" means: "bf16-mixed" if the hardware supports bfloat16, otherwise "32-true"."""
    return "bf16-mixed" if computes_in_bfloat16(device) else "32-true"


def vector_instructions() -> str:
    """Return the vector instructions that torch uses on this processor, such as "AVX-512, VNNI, bfloat16".

    Without AVX2, return the type of the machine, such as "arm64".
    """
    found = cpu_features()
    if not found.get("avx2"):
        return platform.machine()
    names = {
        "AVX-512" if found.get("avx512_f") else "AVX2": True,
        "VNNI": found.get("avx512_vnni") or found.get("avx_vnni"),
        "bfloat16": found.get("avx512_bf16"),
        "AMX": found.get("amx_bf16"),
    }
    return ", ".join(name for name, present in names.items() if present)


def describe(device: torch.device) -> str:
    """Return one line of text about a device: "AMD EPYC (AVX2), 2 threads" or "NVIDIA A100-SXM4-80GB"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return f"{name} ({vector_instructions()}), {threads} thread{'s' * (threads > 1)}"


# ------------------------------------------------------------------------------------------------------- speed

STEP_SECONDS = 0.025  # one step of `_small_training` on a laptop where the whole demo takes five minutes


@cache
def slowness() -> float:
    """Measure how much slower this machine is than the one for which the documentation states times.

    It takes one or two seconds, and is done once per process, in the default precision. Other programs that run at the
    same time make the result larger.

    Returns
    -------
    float, at least 1
        Duration of a training step, divided by `STEP_SECONDS`. It is the median of several steps.
    """
    share_cores()
    steps = _small_training()
    for _ in range(3):
        next(steps)
    return max(1.0, statistics.median(next(steps) for _ in range(9)) / STEP_SECONDS)


def _small_training() -> Iterator[float]:
    """Yield the duration of each training step of a network like resnet8 on 32 images of 32×32, in seconds."""
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
    """Keep the memory of freed tensors in this process, so that the next step can use it again.

    By default glibc returns large blocks to the operating system, which has to map and clear them again in every step.
    Other C libraries are not changed.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # constants of malloc.h
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
