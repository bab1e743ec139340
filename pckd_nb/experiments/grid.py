"""A grid of runs: arms × seeds × pairs of teacher and student. Every point is a run folder."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import methods, runs, training, views
from ..data import Dataset, load_dataset
from ..evaluation import make_fabric
from ..models import create_model
from ..recipes import Recipe, get_recipe
from ..runs import Run
from ..validation import Seed, check
from .arms import Arm, settings_of

IGNORE_THRESHOLD = ("uniform", "focal")
RESULTS = "results.csv"


@dataclass(frozen=True)
class Point:
    teacher: Path
    student: str
    arm: Arm
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.folder.parts[-3]} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """Arms × seeds × pairs of teacher and student, on one data set by one recipe.

    pairs: run folder of the teacher, and name of the student · data_options: of `load_dataset` · options: of `distill`
    (accelerator, precision, compile, teacher_cache_gb) · teacher_cache: shared by all points; None for none.
    Building it loads data and checks everything that can be known before the first step. Raises ValueError for arms
    that can't be built or whose setting can't act, and what `load_run`, `load_dataset` and `create_model` raise.
    """

    data: str
    pairs: Sequence[tuple[Path, str]]
    arms: Sequence[Arm]
    seeds: Sequence[int]
    out: Path
    recipe: Recipe = field(default_factory=lambda: get_recipe("classroom"))
    data_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    teacher_cache: Path | None = None

    def __post_init__(self) -> None:
        for name, values in (("pair", self.pairs), ("arm", self.arms), ("seed", self.seeds)):
            if not values:
                raise ValueError(f"a grid needs one {name} at least")
        for seed in self.seeds:
            check(Seed, seed=seed)
        for arm in self.arms:
            arm.build(self.recipe)
        if self.recipe.augment:
            views.find_transform(self.recipe.augment)
        if (self.out / "run.json").exists():
            raise ValueError(f"'{self.out}' is a run folder: a grid needs a folder of its own")
        if (self.out / RESULTS).is_dir():
            raise IsADirectoryError(f"'{self.out / RESULTS}' is a folder: the table of the grid goes there")
        for folder in (self.out, *([] if self.teacher_cache is None else [self.teacher_cache])):
            check_writable(folder)
        make_fabric(**{name: value for name, value in self.options.items() if name in ("accelerator", "precision")})
        for arm in self.arms:
            if others := [other for other in self.arms if str(other) == str(arm) and other.source != arm.source]:
                raise ValueError(f"'{arm}' is {arm.source} and {others[0].source}: give one of them another name")
        names = [self._pair_name(*pair) for pair in self.pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two teachers of one grid make pairs '{name}': give each grid its own --out")
        for pair in self.pairs:
            self._check_that_settings_act(*pair)
        data = self.loaded
        with torch.device("meta"):
            for student in {student for _, student in self.pairs}:
                create_model(student, data)
        arms = dict.fromkeys(arm.without_defaults(self.recipe, self.loaded) for arm in self.arms)
        object.__setattr__(self, "arms", tuple(arms))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))

    @cached_property
    def loaded(self) -> Dataset:
        return load_dataset(self.data, **self.data_options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "loaded"}  # every process reads its own

    def points(self) -> list[Point]:
        """Seed by seed, so that a grid that is cut short has compared something."""
        return [
            Point(teacher, student, arm, seed, self.out / self._pair_name(teacher, student) / str(arm) / f"seed{seed}")
            for seed in self.seeds
            for teacher, student in self.pairs
            for arm in self.arms
        ]

    def train(self, point: Point, progress: bool = False) -> Run:
        """The run of a point: loaded where it is finished, resumed where it was cut, else trained."""
        if is_finished(point) and not (point.folder / "student.safetensors").exists():
            return self._recorded(point)
        method, recipe = point.arm.build(self.recipe)
        return training.distill(
            create_model(point.student, self.loaded, seed=point.seed),
            runs.load_run(point.teacher) if method.uses_teacher else None,
            self.loaded,
            method,
            recipe,
            seed=point.seed,
            out=point.folder,
            resume=True,
            teacher_cache=self.teacher_cache if method.uses_teacher else None,
            progress=progress,
            **self.options,
        )

    def _recorded(self, point: Point) -> Run:
        """A finished run whose weights were not kept, if it is the point's."""
        run = runs.load_run(point.folder)
        method, recipe = point.arm.build(self.recipe)
        recipe = recipe.for_network(point.student)
        wanted = runs.values_of(settings_of(method, recipe, self.loaded))
        about = run.settings
        settings = {**methods.default_settings(about["method"]["name"]), **run.method_settings}
        found = settings, about["recipe"]["epochs"], about["seed"], run.data_fingerprint
        if found != (wanted, recipe.epochs, point.seed, self.loaded.fingerprint):
            raise ValueError(f"'{point.folder}' holds another run than this grid asks for: choose another folder")
        return run

    @staticmethod
    def _pair_name(teacher: Path, student: str) -> str:
        name = runs.read_settings(teacher)["model"]["name"] or "network"
        return re.sub(r"[^\w.=-]", "_", f"{name}-{student}")

    def _check_that_settings_act(self, teacher: Path, student: str) -> None:
        swept = {name for arm in self.arms for name, _ in arm.settings}
        reason = self._center_alignment_left_out(teacher, student) if "beta_ca" in swept else None
        for arm in self.arms:
            settings = dict(arm.settings)
            if "beta_ca" in settings and reason:
                raise ValueError(f"'{arm}' can show nothing: {reason}, so L_CA is left out whatever its weight")
            if settings.keys() & {"epsilon", "epsilon_240"} and settings.get("strategy") in IGNORE_THRESHOLD:
                raise ValueError(f"'{arm}' can show nothing: strategy {settings['strategy']} has no threshold")

    def _center_alignment_left_out(self, teacher: Path, student: str) -> str | None:
        method = methods.PCKD(beta_fa=0, beta_cc=0)
        method.bind(create_model(student, self.loaded), runs.load_run(teacher).model())
        return method.left_out.get("category_center_alignment")


def check_writable(folder: Path) -> None:
    """Raises NotADirectoryError or PermissionError where no folder can be made, or nothing written in it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"'{there}' is a file; '{folder}' has to be a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"can't write to '{there}'")


def is_finished(point: Point) -> bool:
    """Whether the point's run folder says that its training came to its end."""
    return (point.folder / "run.json").is_file() and runs.read_settings(point.folder)["status"] == "finished"
