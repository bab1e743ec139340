"""Measure what one training step costs with every method, relative to KD, and write methods.json into this folder.

    python -m benchmarks methods

All methods of a pair train in this process, with the same teacher, and with copies of the same student. In each round,
one step of every method is timed, right after one step of KD. The result is the ratio of the medians over the rounds.
Seconds are recorded too, but other programs on the machine may have slowed them.

The step is that of `distill`, without compiling: reading and augmenting the images, both networks, the loss, the
backward pass and the optimizer. The number format of the teacher is the one that `distill` chooses.

The memory of a method is the sum of two sizes:

- saved: bytes that autograd keeps for the backward pass of one step. Storages that several tensors share count once.
  The weights and the input of the student are among them.
- own: parameters and buffers of the modules that belong to the method, without those of the networks.
"""

import argparse
import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pckd_nb import methods
from pckd_nb.catalogue import BASELINES, read_arm

from .measure import Variant, environment, interleave, ratio, spread
from .settings import Settings
from .work import PackageLoop, Pair

FILE = Path(__file__).parent / "methods.json"
KD = "kd"
ARMS = ("supervised", KD, "kd-views=4", "pckd", "pckd-views=1", *BASELINES)


def run(settings: Settings, seconds: float = inf) -> dict[str, Any]:
    """Measure the methods of `ARMS` for all pairs of networks.

    Parameters
    ----------
    settings : Settings
        Its pairs, the first batch size, train_size, repetitions and steps are used.
    seconds : float
        Time for the rounds of one pair. At least three rounds are measured.

    Returns
    -------
    dict
        - batch_size, train_images, image, classes
        - pairs: name of the pair → teacher, student, and methods: arm → the result of `measure_pair`
    """
    pairs, data = {}, None
    for name, (teacher, student) in settings.pairs.items():
        with TemporaryDirectory() as folder:
            pair = Pair(settings, teacher, student, settings.batch_sizes[0], Path(folder))
            found = measure_pair(pair, ARMS, seconds)
        data = pair.data
        pairs[name] = {"teacher": teacher, "student": student, "methods": found}
    assert data is not None
    shape = [data.channels, *data.size]
    sizes = {"train_images": len(data.train), "image": shape, "classes": data.num_classes}
    return {"batch_size": settings.batch_sizes[0], **sizes, "pairs": pairs}


def measure_pair(pair: Pair, arms: Sequence[str], seconds: float = inf) -> dict[str, dict[str, Any]]:
    """Measure all arms for one pair of networks.

    Parameters
    ----------
    pair : Pair
    arms : sequence of str
        As in `catalogue.read_arm`. One of them must be `KD`.
    seconds : float
        See `run`.

    Returns
    -------
    dict
        Arm → what was measured:

        - time: ratio to KD, with the smallest and the largest ratio of a round, see `measure.ratio`,
        - memory: ratio of bytes to KD,
        - seconds: median, min and max per step,
        - saved_bytes, own_bytes, own_parameters: see the module,
        - views, precision and teacher_form: how the step computes.

        If a method refuses the pair: {"refused": message}.
    """
    loops: dict[str, PackageLoop] = {}
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        name, chosen = read_arm(arm)
        try:
            loops[arm] = pair.live(method=methods.make(name, **chosen), compile=False)
        except ValueError as error:
            found[arm] = {"refused": str(error)}
    for arm, loop in loops.items():
        method, config = loop.trainer.method, loop.trainer.config.dump()
        found[arm] = {
            "views": method.views,
            "precision": config["precision"],
            "teacher_form": config["teacher"]["form"] if loop.trainer.teacher else None,
            "saved_bytes": saved_bytes(loop),
            "own_bytes": own_bytes(method),
            "own_parameters": sum(parameter.numel() for parameter in method.parameters()),
        }
    settings, variants = pair.settings, {}
    for arm, loop in loops.items():
        variants[f"{KD} before {arm}"] = Variant(loops[KD].step, settings.steps)
        variants[arm] = Variant(loop.step, settings.steps)
    times = interleave(variants, settings.repetitions, warmup=0, seconds=seconds)  # `saved_bytes` has done one step
    kd_bytes = found[KD]["saved_bytes"] + found[KD]["own_bytes"]
    for arm in loops:
        found[arm] |= {
            "time": ratio(times[arm], times[f"{KD} before {arm}"]),
            "memory": (found[arm]["saved_bytes"] + found[arm]["own_bytes"]) / kd_bytes,
            "seconds": spread(times[arm]),
        }
    return {arm: found[arm] for arm in arms}


def saved_bytes(loop: PackageLoop) -> int:
    """Do one training step, and return the bytes that autograd keeps for its backward pass.

    Storages that several saved tensors share count once.
    """
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loop.step()
    return sum(sizes.values())


def own_bytes(method: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a method."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*method.parameters(), *method.buffers()])


def main(arguments: Sequence[str]) -> None:
    """Measure, and write the JSON file.

    Parameters
    ----------
    arguments : sequence of str
        The words after "methods" on the command line.
    """
    parser = argparse.ArgumentParser(
        "python -m benchmarks methods", description="Measure what a training step costs with every method."
    )
    parser.add_argument("--accelerator", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--repetitions", type=int, default=7, help="maximum number of rounds")
    parser.add_argument("--seconds", type=float, default=600, help="time for the rounds of one pair of networks")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    parser.add_argument("--out", type=Path, default=FILE, help="the JSON file")
    options = parser.parse_args(arguments)
    if options.repetitions < 1 or options.threads < 1:
        parser.error("--repetitions and --threads must be 1 or more")
    settings = Settings(accelerator=options.accelerator, repetitions=options.repetitions)
    torch.set_num_threads(options.threads)
    machine = environment(settings.device)
    found = run(settings, seconds=options.seconds)
    threads = {"torch_threads": options.threads}
    options.out.write_text(json.dumps({"environment": {**machine, **threads}, **found}, indent=1) + "\n")
    print(options.out)
