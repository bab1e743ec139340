"""How much is measured. Tests take less; nothing else should."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pckd_nb.evaluation import make_fabric

USED = {  # the settings that each part's numbers depend on
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
# Seconds planned for each part on two cores with AVX2 alone: 20 minutes together. A part that takes turns makes fewer
# rounds, three at least, where the planned time runs out.
PLANNED = {
    "steps": 420, "data": 30, "folders": 60, "contrast": 60, "import": 60, "sweep": 180, "tsne": 90, "accuracy": 180,
    "memory": 120,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Sizes of all measurements. The defaults fit in 20 minutes on a slow machine; see `full` for larger ones.

    Parameters
    ----------
    accelerator : str
        Lightning Fabric's name of the device.
    repetitions : int
        Rounds behind each median, at most.
    root : Path or None
        Folder of generated data sets. None takes the package's default.
    planned : dict of str to float
        Seconds for each part, by its name.
    teacher_train_size : int
        shapes100 images that prepare the teachers of `steps` and `sweep`.
    teacher_epochs : dict of str to int
        Epochs that a teacher is trained for, by its name. A teacher that is not named is not trained, see
        `work.untrained_teacher`.
    pairs : dict of str to tuple of str
        Teacher and student, by the name of the pair.
    batch_sizes : tuple of int
        Images per step. The bars are about the first.
    train_size : int
        shapes100 images that the batches are drawn from.
    rows : int
        Length of the training that the automatic decision about compiling is asked about.
    workers : int
        Processes that load images for the plain loop.
    steps, warmup : int
        Steps in each round, and uncounted steps before the first.
    peak_side, peak_seconds : int, float
        The matrix product that defines the peak.
    copied_mebibytes : int
        The copy that defines the speed of memory.
    data_batches : int
        Batches in each round of the data part.
    folder_images : dict of str to int
        Images in a folder of JPEG files, by their side in pixels.
    contrast_batches : tuple of int
        Images of four views each, the smaller batch first.
    import_repetitions : int
        Fresh interpreters for each import.
    sweep_networks, accuracy_networks, memory_networks : tuple of str
        Teacher and student of the small trainings.
    tsne_points, tsne_repetitions : int
        Points without the 100 centers, and maps by each library.
    accuracy_data : str
        Data set of the accuracy part. accuracy_train_size and accuracy_test_size are of shapes100.
    memory_epochs : dict of str to int
        Epochs of a distillation, by data set. memory_train_size is of shapes100.
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
    rows: int = 240 * 50_000 * 4  # of a training at the paper's length, for which "auto" decides about compiling
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
        return make_fabric(self.accelerator)[0].device

    def used_by(self, part: str) -> dict[str, Any]:
        """What `part` depends on, as JSON gives it back."""
        return json.loads(json.dumps({name: getattr(self, name) for name in USED[part]}))

    def full(self) -> "Settings":
        """Trained teachers and longer studies: an hour on a fast machine with two cores, three on a slow one."""
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
        """Larger batches and more steps where there is a GPU."""
        if self.device.type != "cuda":
            return self
        return replace(
            self, batch_sizes=(64, 1024), train_size=8192, steps=30, warmup=3, peak_side=8192, sweep_train_size=2000,
        )  # fmt: skip
