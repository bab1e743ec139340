"""How much is measured. Tests take less; nothing else should."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pckd_nb.evaluation import make_fabric

USED = {  # the settings that each part's numbers depend on
    "steps": (
        "repetitions", "pairs", "batch_sizes", "train_size", "rows", "steps", "peak_side", "peak_seconds",
        "teacher_train_size", "teacher_epochs",
    ),
    "data": ("repetitions", "batch_sizes", "train_size", "data_batches"),
    "contrast": ("repetitions", "contrast_batches"),
    "import": ("import_repetitions",),
    "sweep": (
        "sweep_networks", "sweep_train_size", "sweep_test_size", "sweep_epochs", "sweep_beta_cc", "teacher_train_size",
        "teacher_epochs",
    ),
    "tsne": ("tsne_points", "tsne_repetitions"),
    "accuracy": (
        "accuracy_networks", "accuracy_train_size", "accuracy_test_size", "accuracy_epochs", "accuracy_compile",
        "accuracy_seeds",
    ),
    "memory": ("memory_epochs", "memory_networks", "memory_train_size", "memory_teacher_epochs"),
}  # fmt: skip
PAIRS = {"wrn": ("wrn_40_2", "wrn_16_2"), "resnet": ("resnet56", "resnet20")}


@dataclass(frozen=True)
class Settings:
    """accelerator: Lightning Fabric's name · repetitions: rounds that every median is of.

    teacher_*: how the teachers of steps and sweep were trained, on shapes100.
    steps: pairs by name: (teacher, student); batch_sizes: images a step, ratios in the report's head are of the first;
    train_size: shapes100 images they are drawn from; steps: of a round; peak_side, peak_seconds: of the matrix product.
    data_batches: of a round · contrast_batches: images of four views each, the smaller first.
    sweep_*, accuracy_*: small trainings on shapes100; networks as (teacher, student).
    tsne_*: points, without the 100 centers, and maps of each library.
    memory_*: a distillation on each data set by name; networks as (teacher, student); train_size: of shapes100.
    root: where generated data sets are kept, None for the package's default.
    """

    accelerator: str = "auto"
    repetitions: int = 9
    root: Path | None = None

    teacher_train_size: int = 4000
    teacher_epochs: dict[str, int] = field(default_factory=lambda: {"wrn_40_2": 8, "resnet56": 16})

    pairs: dict[str, tuple[str, str]] = field(default_factory=lambda: dict(PAIRS))
    batch_sizes: tuple[int, ...] = (64,)
    train_size: int = 1024
    rows: int = 240 * 50_000 * 4  # of a training at the paper's length, for which "auto" decides about compiling
    steps: int = 2
    peak_side: int = 2048
    peak_seconds: float = 2

    data_batches: int = 64
    contrast_batches: tuple[int, int] = (64, 1024)
    import_repetitions: int = 7

    sweep_networks: tuple[str, str] = ("resnet56", "resnet20")
    sweep_train_size: int = 1000
    sweep_test_size: int = 100
    sweep_epochs: int = 4
    sweep_beta_cc: tuple[float, ...] = (0.00125, 0.0025, 0.005, 0.01, 0.02)

    tsne_points: int = 10_000
    tsne_repetitions: int = 3

    accuracy_networks: tuple[str, str] = ("resnet20", "resnet8")
    accuracy_train_size: int = 1500
    accuracy_test_size: int = 1000
    accuracy_epochs: int = 8
    accuracy_compile: bool = True
    accuracy_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    memory_epochs: dict[str, int] = field(default_factory=lambda: {"digits": 200, "shapes100": 50})
    memory_networks: tuple[str, str] = ("resnet14", "resnet8")
    memory_train_size: int = 4000
    memory_teacher_epochs: int = 4

    @property
    def device(self) -> torch.device:
        return make_fabric(self.accelerator)[0].device

    def used_by(self, part: str) -> dict[str, Any]:
        """What `part` depends on, as JSON gives it back."""
        return json.loads(json.dumps({name: getattr(self, name) for name in USED[part]}))

    def for_device(self) -> "Settings":
        """Larger batches and more steps where there is a GPU."""
        if self.device.type != "cuda":
            return self
        return replace(
            self, batch_sizes=(64, 1024), train_size=8192, steps=30, peak_side=8192, sweep_train_size=2000,
        )  # fmt: skip
