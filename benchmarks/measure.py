"""Time several variants in turn, and describe the machine."""

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import wraps
from importlib import metadata
from math import inf
from typing import Any
from unittest import mock

import torch
from torch.utils.benchmark import Timer, timer  # `timer` waits for the GPU before it reads the clock

from pckd_nb import hardware

MIN_ROUNDS = 3
# name in the report → CPU features in torch; the processor needs at least one of them
CAPABILITIES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512_f",),
    "bfloat16": ("avx512_bf16", "amx_bf16"),
    "VNNI": ("avx512_vnni", "avx_vnni"),
}


@dataclass(frozen=True)
class Variant:
    """One of several ways to do the same work.

    Parameters
    ----------
    run : callable
        The function to time.
    calls : int
        Number of calls per measurement.
    before : callable, optional
        Called before every measurement. Its time does not count.
    """

    run: Callable[[], Any]
    calls: int = 1
    before: Callable[[], Any] | None = None

    def seconds(self) -> float:
        """Return the seconds per call."""
        if self.before:
            self.before()
        started = timer()
        for _ in range(self.calls):
            self.run()
        return (timer() - started) / self.calls


def interleave(
    variants: dict[str, Variant], repetitions: int, warmup: int = 2, seconds: float = inf
) -> dict[str, list[float]]:
    """Time all variants in rounds. Each round times every variant once.

    Parameters
    ----------
    variants : dict of str to Variant
        Name → variant.
    repetitions : int
        Maximum number of rounds.
    warmup : int
        Calls of each variant before the first round. Their time does not count.
    seconds : float
        Time for all rounds. After three rounds, another round starts only if it will probably end in time.

    Returns
    -------
    dict of str to list of float
        Name → seconds per call, one value per round.
    """
    for variant in variants.values():
        for _ in range(warmup):
            variant.run()
    rounds: list[dict[str, float]] = []
    started = timer()
    while len(rounds) < repetitions:
        used = timer() - started
        if len(rounds) >= MIN_ROUNDS and used * (1 + 1 / len(rounds)) > seconds:
            break
        rounds.append({name: variant.seconds() for name, variant in variants.items()})
    return {name: [times[name] for times in rounds] for name in variants}


def spread(values: list[float]) -> dict[str, float]:
    """Return median, min, max and number of values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repetitions": len(values),
    }


def per_second(seconds: list[float], amount: float) -> dict[str, float]:
    """Return median, min and max of `amount` per second."""
    return spread([amount / value for value in seconds])


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """Return median(a) / median(b), and the smallest and largest ratio of a round."""
    rounds = [x / y for x, y in zip(a, b, strict=True)]
    value = statistics.median(a) / statistics.median(b)
    return {"value": value, "min": min(rounds), "max": max(rounds), "repetitions": len(rounds)}


class Stopwatch:
    """Measures the seconds that named parts of other code take."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block for the part `name`."""
        started = timer()
        try:
            yield
        finally:
            self.seconds[name] += timer() - started

    @contextmanager
    def watch(self, calls: list[tuple[str, Any, str]]) -> Iterator[None]:
        """Count the time of some calls inside the block.

        Parameters
        ----------
        calls : list of (str, object, str)
            (part, owner, attribute): the time of every call of owner.attribute counts for the part.
        """
        with ExitStack() as stack:
            for name, owner, attribute in calls:
                stack.enter_context(mock.patch.object(owner, attribute, self._timed(name, getattr(owner, attribute))))
            yield

    def _timed(self, name: str, call: Callable) -> Callable:
        @wraps(call, updated=())
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        return timed


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    """Time many products of two matrices of side × side values, and return the FLOP/s of the fastest one."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    clock = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * side**3 / min(clock.blocked_autorange(min_run_time=seconds).times)


def memory_bandwidth(device: torch.device, mebibytes: int, seconds: float) -> float:
    """Time many copies of a large tensor, and return the bytes per second, read and written, of the fastest one."""
    source = torch.empty(mebibytes * 2**20, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    clock = Timer("b.copy_(a)", globals={"a": source, "b": target}, num_threads=torch.get_num_threads())
    return 2 * source.numel() / min(clock.blocked_autorange(min_run_time=seconds).times)


def capabilities() -> dict[str, bool]:
    """Return which of `CAPABILITIES` this processor has."""
    features = hardware.cpu_features()
    return {name: any(features.get(flag, False) for flag in flags) for name, flags in CAPABILITIES.items()}


def installed(package: str) -> bool:
    """Return whether a package is installed."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def environment(device: torch.device) -> dict[str, Any]:
    """Return hardware, versions, threads, load and date."""
    packages = ("pckd_nb", "torch", "torchvision", "lightning-fabric", "numpy", "scikit-learn", "openTSNE")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "device": device.type,
        "hardware": hardware.describe(device),
        "gpu_seen": torch.cuda.is_available(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor() or platform.machine()),
        "capabilities": capabilities(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "load_at_start": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": {name: metadata.version(name) for name in packages if installed(name)},
    }
