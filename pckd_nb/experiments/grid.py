"""A grid of runs: arms × seeds × teacher-student pairs. Every point is a run folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import files, methods, runs, training, views
from ..catalogue import check_outside_images
from ..data import Dataset, load_dataset
from ..evaluation import make_fabric
from ..models import create_model
from ..paths import user_path
from ..recipes import Recipe, get_recipe
from ..runs import Run
from ..validation import Seed, check, checked
from .arms import Arm, settings_of

IGNORE_THRESHOLD = ("uniform", "focal")
RESULTS = "results.csv"


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Parameters
    ----------
    teacher : Path
        Run folder of the teacher.
    student : str
        Name of the student network.
    arm : Arm
    seed : int
    folder : Path
        Run folder of this point.
    """

    teacher: Path
    student: str
    arm: Arm
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.folder.parts[-3]} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """Arms × seeds × teacher-student pairs, on one data set with one recipe.

    Creating a grid loads the data and checks everything that can be checked before the first training step. It also
    raises the errors of `load_run`, `load_dataset` and `create_model`.

    Parameters
    ----------
    data : str
        Name of the data set.
    pairs : sequence of (Path, str)
        Run folder of the teacher, and name of the student network.
    arms : sequence of Arm
        Settings that change nothing are removed, and duplicates too.
    seeds : sequence of int
        Duplicates are removed.
    out : Path
        Folder of the grid.
    recipe : Recipe
        The default is the recipe "classroom".
    data_options : dict
        Options of `load_dataset`.
    options : dict
        Options of `distill`: accelerator, precision, compile, teacher_cache_gb.
    teacher_cache : Path, optional
        Folder of the teacher cache that all points share. None: no cache.

    Raises
    ------
    ValueError
        If there are no pairs, arms or seeds, if an arm cannot be built, or if a setting of an arm has no effect. Also
        if `out` is a run folder or among the images, or if two arms or two pairs have the same name.
    TypeError
        If a seed is not a whole number.
    OSError
        If nothing can be written to `out` or `teacher_cache`. IsADirectoryError: there is a folder in place of the
        table of results.
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
        check(str, data=self.data)
        if not isinstance(self.recipe, Recipe):
            raise TypeError(f"recipe must be a Recipe, got {type(self.recipe).__name__}: get_recipe(NAME) gives one")
        if not isinstance(self.arms, list | tuple) or not all(isinstance(arm, Arm) for arm in self.arms):
            raise TypeError("arms must be a list of arms: parse_arm(TEXT) gives one")
        if not isinstance(self.seeds, Sequence) or isinstance(self.seeds, str):
            raise TypeError(f"seeds must be a list of whole numbers, got {type(self.seeds).__name__}")
        teachers = tuple((user_path(teacher, "teacher"), student) for teacher, student in self.pairs)
        cache = None if self.teacher_cache is None else user_path(self.teacher_cache, "teacher_cache")
        for name, value in {"out": user_path(self.out, "out"), "teacher_cache": cache, "pairs": teachers}.items():
            object.__setattr__(self, name, value)
        seeds = dict.fromkeys(checked(Seed, "seed", seed) for seed in self.seeds)
        for arm in self.arms:
            arm.build(self.recipe)
        if self.recipe.augment:
            views.find_transform(self.recipe.augment)
        if (self.out / "run.json").exists():
            raise ValueError(f"'{self.out}' is a run folder: a grid needs a folder of its own")
        if (self.out / RESULTS).is_dir():
            raise IsADirectoryError(f"'{self.out / RESULTS}' is a folder: the table of the grid goes there")
        for folder in (self.out, *([] if self.teacher_cache is None else [self.teacher_cache])):
            check_outside_images(folder, self.data)
            files.check_writable(folder)
        make_fabric(**{name: value for name, value in self.options.items() if name in ("accelerator", "precision")})
        for arm in self.arms:
            if others := [other for other in self.arms if str(other) == str(arm) and other.source != arm.source]:
                raise ValueError(f"'{arm}' is {arm.source} and {others[0].source}: give one of them another name")
        names = [self._pair_name(*pair) for pair in self.pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two teachers of one grid make pairs '{name}': give each grid its own out=…")
        for pair in self.pairs:
            self._check_that_settings_act(*pair)
        data = self.loaded
        with torch.device("meta"):
            for student in {student for _, student in self.pairs}:
                create_model(student, data)
        arms = dict.fromkeys(arm.without_defaults(self.recipe, self.loaded) for arm in self.arms)
        object.__setattr__(self, "arms", tuple(arms))
        object.__setattr__(self, "seeds", tuple(seeds))

    @cached_property
    def loaded(self) -> Dataset:
        """The data set of this grid. It is loaded once per process."""
        return load_dataset(self.data, **self.data_options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "loaded"}  # each process loads the data

    def points(self) -> list[Point]:
        """Return the points of the grid.

        Returns
        -------
        list of Point
            Ordered by seed, so that an interrupted grid already has comparable runs.
        """
        return [
            Point(teacher, student, arm, seed, self.out / self._pair_name(teacher, student) / str(arm) / f"seed{seed}")
            for seed in self.seeds
            for teacher, student in self.pairs
            for arm in self.arms
        ]

    def train(self, point: Point, progress: bool = False) -> Run:
        """Return the run of a point. A finished run is loaded, an interrupted one resumed, any other trained.

        It also raises the errors of `distill`.

        Parameters
        ----------
        point : Point
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        Run

        Raises
        ------
        ValueError
            If the folder has a finished run with other settings than the point.
        """
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
        """Return a finished run without weights. Raise ValueError if its settings are not those of the point."""
        run = runs.load_run(point.folder)
        method, recipe = point.arm.build(self.recipe)
        recipe = recipe.for_network(point.student)
        wanted = runs.setting_values(settings_of(method, recipe, self.loaded))
        info = run.settings
        settings = {**methods.default_settings(info["method"]["name"]), **run.method_settings}
        found = settings, info["recipe"]["epochs"], info["seed"], run.data_fingerprint
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


def is_finished(point: Point) -> bool:
    """Return whether the training of a point is finished, as its run folder records it.

    Parameters
    ----------
    point : Point

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If the run.json of the point cannot be read.
    """
    return (point.folder / "run.json").is_file() and runs.read_settings(point.folder)["status"] == "finished"
