"""Time training steps of pckd_nb, of the plain loop and of the networks alone. Compare them with the peak speed."""

import math
import statistics
from functools import partial
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pckd_nb import hardware, views
from pckd_nb.models import count_flops

from .measure import Stopwatch, Variant, interleave, matmul_peak, memory_bandwidth, per_second, ratio, spread
from .settings import Settings
from .work import BareLoop, PackageLoop, Pair

ROUNDS_SHARE_OF_TIME = 0.6  # of the planned time; the rest is for the teacher, its cache, compiling and profiles
FLOAT32, BFLOAT16, TF32 = "float32", "bfloat16", "tfloat32"
PARTS = ("data", "teacher", "student forward", "loss terms", "backward", "optimizer", "record keeping", "other")


def run(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure all pairs of networks at all batch sizes."""
    values: dict[str, float] = {}
    bandwidth = memory_bandwidth(settings.device, settings.copied_mebibytes, settings.peak_seconds)
    details: dict[str, Any] = {"peaks_flops": peaks(settings), "bytes_per_second": bandwidth, "pairs": {}}
    for pair in settings.pairs:
        for batch_size in settings.batch_sizes:
            torch.compiler.reset()  # forget what was compiled for an earlier pair
            with TemporaryDirectory() as folder:
                found = measure_pair(settings, pair, batch_size, Path(folder), details["peaks_flops"], bandwidth)
            details["pairs"].setdefault(pair, {})[str(batch_size)] = found
            ending = "" if batch_size == settings.batch_sizes[0] else f"_{batch_size}"
            for name in ("live", "cached"):
                values[f"{pair}_{name}_ratio{ending}"] = found["ratios"][f"{name}_over_plain"]["value"]
            over_bare = "step_over_bare" if pair == "wrn" else f"step_over_bare_{pair}"
            values[over_bare + ending] = found["ratios"]["step_over_bare"]["value"]
    return values, details


def measure_pair(
    settings: Settings, pair: str, batch_size: int, folder: Path, peak: dict[str, float], bandwidth: float
) -> dict[str, Any]:
    """Measure samples per second of every line of the report, their ratios, and two profiles.

    A sample is an image with all its views.
    """
    teacher, student = settings.pairs[pair]
    loops_of_pair = Pair(settings, teacher, student, batch_size, folder)
    live, cached, eager = loops_of_pair.live(), loops_of_pair.cached(), loops_of_pair.live(compile=False)
    plain = loops_of_pair.plain(live)
    bare_loops = {"bare": BareLoop(live), "bare, eager": BareLoop(eager)}
    loops: dict[str, Any] = {"plain": plain, "live": live, "cached": cached, **bare_loops}
    # compile without caches, as on a machine that has never compiled this network
    with torch._inductor.config.patch(force_disable_caches=True):
        first_step_seconds = Variant(loops["bare"].step).seconds()
    settle = {"plain": plain.settle}
    variants = {name: Variant(loop.step, settings.steps, settle.get(name)) for name, loop in loops.items()}
    planned = settings.planned.get("steps", inf) / (len(settings.pairs) * len(settings.batch_sizes))
    seconds = interleave(variants, settings.repetitions, settings.warmup, ROUNDS_SHARE_OF_TIME * planned)
    plain.close()

    config = live.trainer.config.dump()
    compiled, teacher_info = config["compile"], config["teacher"]
    view_count, shape = live.trainer.method.views, (loops_of_pair.data.channels, *loops_of_pair.data.size)
    forward_flops: dict[str, int] = {  # per sample
        "teacher": view_count * count_flops(loops_of_pair.teacher, shape),
        "student": view_count * count_flops(loops_of_pair.student, shape),
    }
    fast = BFLOAT16 if config["precision"] == "bf16-mixed" else FLOAT32
    lines: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        precision = FLOAT32 if name == "plain" else fast
        flops = 3 * forward_flops["student"] + (0 if name == "cached" else forward_flops["teacher"])
        speed = per_second(times, batch_size)
        peak_name = TF32 if precision == FLOAT32 and TF32 in peak else precision  # the default of cuDNN for float32
        lines[name] = {
            "samples_per_second": speed,
            "seconds_per_step": spread(times),
            "precision": precision,
            "flops_per_sample": flops,
            "peak": peak_name,
            "share_of_peak": speed["median"] * flops / peak[peak_name],
        }
    shares = {name: profile(loop, settings.steps) for name, loop in (("live", live), ("cached", cached))}
    work_and_peak: dict[str, tuple[float, str]] = {  # piece of a step → its FLOPs, and the peak to compare with
        "teacher": (batch_size * forward_flops["teacher"], teacher_peak(teacher_info["form"], peak)),
        "student forward": (batch_size * forward_flops["student"], lines["live"]["peak"]),
        "loss terms": (loss_flops(live), FLOAT32),
        "backward": (2 * batch_size * forward_flops["student"], lines["live"]["peak"]),
    }
    step = statistics.median(seconds["live"])
    return {
        "teacher": teacher,
        "student": student,
        "teacher_epochs": settings.teacher_epochs.get(teacher, 0),
        "batch_size": batch_size,
        "views": view_count,
        "compiled": compiled,
        "teacher_form": teacher_info["form"],
        "teacher_logits_error": teacher_info["logits_error"],
        "lines": lines,
        "ratios": {
            "live_over_plain": ratio(seconds["plain"], seconds["live"]),
            "cached_over_plain": ratio(seconds["plain"], seconds["cached"]),
            "step_over_bare": ratio(seconds["live"], seconds["bare"]),
            "step_over_eager_bare": ratio(seconds["live"], seconds["bare, eager"]),
        },
        "compiling": (
            compiling(first_step_seconds, seconds, 3 * forward_flops["student"] * batch_size) if compiled else None
        ),
        "profile": shares,
        "pieces": {
            **{
                name: piece_that_computes(share * step, *work_and_peak[name], peak)
                for name, share in shares["live"].items()
                if name in work_and_peak
            },
            "data": piece_that_copies(
                shares["live"]["data"] * step, batch_size * bytes_per_image(shape, view_count), bandwidth
            ),
        },
    }


def teacher_peak(form: str, peak: dict[str, float]) -> str:
    """Return the name of the peak that a teacher in this form is compared with. For int8, it is the fastest one."""
    if "int8" in form:
        return max(peak, key=lambda name: peak[name])
    if form in ("float32", "folded"):
        return TF32 if TF32 in peak else FLOAT32
    return BFLOAT16 if BFLOAT16 in peak else FLOAT32


def piece_that_computes(seconds: float, flops: float, name: str, peak: dict[str, float]) -> dict[str, Any]:
    """Return the speed of a piece of a step that computes, relative to a peak."""
    return {"seconds": seconds, "flops": flops, "peak": name, "share_of_peak": flops / seconds / peak[name]}


def piece_that_copies(seconds: float, moved: float, bandwidth: float) -> dict[str, Any]:
    """Return the speed of a piece of a step that copies bytes, relative to the fastest copy in memory."""
    return {"seconds": seconds, "bytes": moved, "peak": "memory", "share_of_peak": moved / seconds / bandwidth}


def bytes_per_image(shape: tuple[int, int, int], view_count: int) -> int:
    """Return the bytes that data loading reads and writes per image: 8-bit pixels, and all views in float32."""
    return math.prod(shape) * (1 + 4 * view_count)


def loss_flops(loop: PackageLoop) -> int:
    """Count the FLOPs of the loss terms and of the method's heads in the forward pass of one step."""
    method, found = cast(nn.Module, loop.trainer.method), []
    forward = method.forward

    def counting(*args: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            terms = forward(*args)
        found.append(counter.get_total_flops())
        return terms

    with mock.patch.object(method, "forward", counting):
        loop.step()
    return found[0]


def compiling(first_step_seconds: float, seconds: dict[str, list[float]], flops: int) -> dict[str, float | None]:
    """Return what compiling costs and saves.

    Parameters
    ----------
    first_step_seconds : float
        Seconds of the first step, which compiles.
    seconds : dict
        Seconds per step of all lines.
    flops : int
        FLOPs of the student's training per step.

    Returns
    -------
    dict
        - seconds: the seconds that compiling took,
        - saved_per_step: the seconds that it saves per step,
        - paid_back_flops: FLOPs of the student's training after which compiling has saved more time than it took, or
          None if it saves nothing.
    """
    compiled, eager = (statistics.median(seconds[name]) for name in ("bare", "bare, eager"))
    saved = eager - compiled
    paid_back = (first_step_seconds - compiled) / saved * flops if saved > 0 else None
    return {"seconds": first_step_seconds - compiled, "saved_per_step": saved, "paid_back_flops": paid_back}


def profile(loop: PackageLoop, steps: int) -> dict[str, float]:
    """Measure the share of the time of a step that each of `PARTS` takes."""
    trainer, watch = loop.trainer, Stopwatch()
    calls = [
        ("data", loop, "read"),
        ("data", views, "normalise"),
        ("data", views, "rotate"),
        ("teacher", trainer.teacher, "batch_output"),
        ("student forward", trainer.learner, "student_forward"),
        ("loss terms", trainer.method, "forward"),
        ("backward", trainer.fabric, "backward"),
        ("optimizer", trainer.optimization, "zero_grad"),
        ("optimizer", trainer.optimization, "step"),
        ("record keeping", trainer.recorder, "record_step"),
    ]
    with watch.watch(calls):
        loop.step()
        watch.seconds.clear()
        with watch.part("total"):
            for _ in range(steps):
                loop.step()
    total = watch.seconds.pop("total")
    shares = {name: seconds / total for name, seconds in watch.seconds.items()}
    shares["other"] = 1 - sum(shares.values())
    return {name: shares.get(name, 0.0) for name in PARTS}


def peaks(settings: Settings) -> dict[str, float]:
    """Measure the FLOP/s of a large matrix product, by dtype.

    bfloat16 is measured only where it is native, because one product takes a minute elsewhere.
    """
    measure = partial(matmul_peak, settings.device, side=settings.peak_side, seconds=settings.peak_seconds)
    found = {FLOAT32: measure(torch.float32)}
    if hardware.computes_in_bfloat16(settings.device):
        found[BFLOAT16] = measure(torch.bfloat16)
    if settings.device.type == "cuda":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        found[TF32] = measure(torch.float32)
        torch.set_float32_matmul_precision(before)
    return found
