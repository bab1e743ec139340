"""The settings of the benchmarks: how much is measured."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pckd_nb.evaluation import make_fabric

SETTINGS_OF_PART = {  # part → the settings that its numbers depend on
    "steps": (
        "repetitions", "pairs", "batch_sizes", "train_size", "rows", "workers", "steps", "warmup", "peak_side",
        "peak_seconds", "copied_mebibytes", "teacher_train_size", "teacher_epochs",
    ),
    "data": ("repetitions", "batch_sizes", "train_size", "data_batches"),
    "folders": ("repetitions", "batch_sizes", "workers", "folder_images"),
    "contrast": ("repetitions", "contrast_batches"),
    "import": ("import_repetitions",),
    "sweep": (
        "sweep_networks", "sweep_train_size", "sweep_test_size", "sweep_epochs", "sweep_beta_cc", "teacher_train_size",
        "teacher_epochs",
    ),
    "tsne": ("tsne_points", "tsne_repetitions"),
    "accuracy": (
        "accuracy_networks", "accuracy_data", "accuracy_train_size", "accuracy_test_size", "accuracy_epochs",
        "accuracy_compile", "accuracy_seeds",
    ),
    "memory": ("memory_epochs", "memory_networks", "memory_train_size", "memory_teacher_epochs"),
}  # fmt: skip
PAIRS = {"wrn": ("wrn_40_2", "wrn_16_2"), "resnet": ("resnet56", "resnet20")}
# Planned seconds per part, on two CPU cores with AVX2: 20 minutes in total. If the planned time runs out, a part
# measures fewer rounds, but at least three.
PLANNED = {
    "steps": 420, "data": 30, "folders": 60, "contrast": 60, "import": 60, "sweep": 180, "tsne": 90, "accuracy": 180,
    "memory": 120,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Settings of all measurements. The defaults take at most 20 minutes on a slow machine; `full` measures more.

    Parameters
    ----------
    accelerator : str
        Lightning Fabric's name of the device.
    repetitions : int
        Maximum number of rounds for each median.
    root : Path or None
        Folder of generated data sets. None means the default of the package.
    planned : dict of str to float
        Part → planned seconds.
    teacher_train_size : int
        Number of shapes100 images for the teachers of the parts steps and sweep.
    teacher_epochs : dict of str to int
        Teacher → epochs that it is trained for. Other teachers are not trained; see `work.untrained_teacher`.
    pairs : dict of str to tuple of str
        Name of the pair → teacher and student.
    batch_sizes : tuple of int
        Images per step. The targets of the report are for the first batch size.
    train_size : int
        Number of shapes100 images from which batches are drawn.
    rows : int
        Images times views in all epochs of a full training. The student is compiled as it would be in that training.
    workers : int
        Number of processes that load images.
    steps, warmup : int
        Steps per round, and steps before the first round.
    peak_side, peak_seconds : int, float
        Size of the matrix product that defines the peak speed, and the time to measure it.
    copied_mebibytes : int
        Size of the copy that defines the speed of memory.
    data_batches : int
        Batches per round of the part data.
    folder_images : dict of str to int
        Side in pixels → number of images in the folder of JPEG files.
    contrast_batches : tuple of int
        Images with four views each, the smaller batch first.
    import_repetitions : int
        Number of new Python processes per import.
    sweep_networks, accuracy_networks, memory_networks : tuple of str
        Teacher and student of the small trainings.
    tsne_points, tsne_repetitions : int
        Number of points on a map, to which 100 centers are added, and number of maps per library.
    accuracy_data : str
        Data set of the part accuracy. If it is shapes100, its size is accuracy_train_size and accuracy_test_size.
    memory_epochs : dict of str to int
        Data set → epochs of the distillation. The size of shapes100 is memory_train_size.
    """

    accelerator: str = "auto"
    repetitions: int = 9
    root: Path | None = None
    planned: dict[str, float] = field(default_factory=lambda: dict(PLANNED))

    teacher_train_size: int = 512
    teacher_epochs: dict[str, int] = field(default_factory=dict)

    pairs: dict[str, tuple[str, str]] = field(default_factory=lambda: dict(PAIRS))
    batch_sizes: tuple[int, ...] = (64,)
    train_size: int = 512
    rows: int = 240 * 50_000 * 4  # a training of the paper's length
    workers: int = 2
    steps: int = 1
    warmup: int = 1
    peak_side: int = 2048
    peak_seconds: float = 1
    copied_mebibytes: int = 128

    data_batches: int = 32
    folder_images: dict[str, int] = field(default_factory=lambda: {"64": 2000, "224": 600})
    contrast_batches: tuple[int, int] = (64, 1024)
    import_repetitions: int = 5

    sweep_networks: tuple[str, str] = ("resnet56", "resnet20")
    sweep_train_size: int = 256
    sweep_test_size: int = 100
    sweep_epochs: int = 2
    sweep_beta_cc: tuple[float, ...] = (0.00125, 0.0025, 0.005, 0.01, 0.02)

    tsne_points: int = 2000
    tsne_repetitions: int = 3

    accuracy_networks: tuple[str, str] = ("resnet14", "resnet8")
    accuracy_data: str = "digits"
    accuracy_train_size: int = 1500
    accuracy_test_size: int = 1000
    accuracy_epochs: int = 4
    accuracy_compile: bool = False
    accuracy_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    memory_epochs: dict[str, int] = field(default_factory=lambda: {"digits": 10, "shapes100": 6})
    memory_networks: tuple[str, str] = ("resnet14", "resnet8")
    memory_train_size: int = 256
    memory_teacher_epochs: int = 1

    @property
    def device(self) -> torch.device:
        """The device of the accelerator."""
        return make_fabric(self.accelerator)[0].device

    def used_by(self, part: str) -> dict[str, Any]:
        """Return the settings that the numbers of a part depend on, as JSON can store them."""
        return json.loads(json.dumps({name: getattr(self, name) for name in SETTINGS_OF_PART[part]}))

    def full(self) -> "Settings":
        """Return settings with trained teachers and longer measurements.

        They take an hour on a fast machine with two cores, and three hours on a slow one.
        """
        return replace(
            self,
            planned={},
            teacher_train_size=4000, teacher_epochs={"wrn_40_2": 8, "resnet56": 16},
            train_size=1024, steps=2, warmup=2, peak_seconds=2, data_batches=64, import_repetitions=7,
            sweep_train_size=1000, sweep_epochs=4, tsne_points=10_000,
            accuracy_networks=("resnet20", "resnet8"), accuracy_data="shapes100", accuracy_epochs=8,
            accuracy_compile=True,
            memory_epochs={"digits": 200, "shapes100": 50}, memory_train_size=4000, memory_teacher_epochs=4,
        )  # fmt: skip

    def for_device(self) -> "Settings":
        """Return settings with larger batches and more steps, if there is a GPU."""
        if self.device.type != "cuda":
            return self
        return replace(
            self, batch_sizes=(64, 1024), train_size=8192, steps=30, warmup=3, peak_side=8192, sweep_train_size=2000,
        )  # fmt: skip
