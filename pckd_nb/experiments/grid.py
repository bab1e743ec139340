"""A grid of runs: arms × seeds × teacher-student pairs."""

import warnings
from collections.abc import Callable, Sequence
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
from ..training.checks import check_task
from ..training.prepare import make_task
from ..validation import Seed, check, checked
from .arms import Arm, Pair, resolve_settings
from .pairs import folder_name, name_pairs, network_name

# The weights of these strategies do not depend on the preview threshold.
STRATEGIES_WITHOUT_THRESHOLD = ("uniform", "focal", "constant_focal")
RESULTS = "results.csv"


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Parameters
    ----------
    teacher : Path or None
        Run folder of the teacher. None in a grid without teachers.
    student : str
        Name of the student network.
    arm : Arm
    seed : int
    folder : Path
        Run folder of this point.
    """

    teacher: Path | None
    student: str
    arm: Arm
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.folder.parts[-3]} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """All combinations of arms, seeds and teacher-student pairs, on one data set with one recipe.

    Creating a grid loads the data, and checks everything that can be checked before the first training step. Errors of
    `load_run`, `load_dataset` and `create_model` are passed on.

    Parameters
    ----------
    data : str
        Name of the data set.
    pairs : sequence of (Path or None, str)
        Run folder of the teacher, and name of the student network. The teacher can be None if no method uses it.
        Duplicates are removed.
    arms : sequence of Arm
        Settings of an arm that equal the defaults are removed. If two arms are then equal, one of them is removed.
    seeds : sequence of int
        Duplicates are removed.
    out : Path
        Folder of the grid.
    recipe : Recipe
        The default is the recipe "classroom".
    data_options : dict
        Arguments of `load_dataset`.
    options : dict
        Arguments of `distill`: accelerator, precision, compile, teacher_cache_gb.
    teacher_cache : Path, optional
        Folder of the teacher cache that all points share. None means no cache.

    Attributes
    ----------
    pair_names : dict of (Path or None, str) to str
        Name of the folder of every pair, see `name_pairs`.

    Raises
    ------
    ValueError
        If there are no pairs, arms or seeds, if an arm cannot be built or needs a teacher that a pair does not have, or
        if a setting of an arm has no effect. Also if `out` is a run folder or lies among the images, or if two arms or
        two teachers cannot be told apart by their names and seeds.
    TypeError
        If an argument has the wrong type.
    OSError
        If `out` or `teacher_cache` cannot be written.
    IsADirectoryError
        If OUT/results.csv is a folder.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> recipe = pckd.get_recipe("classroom", epochs=1)
    >>> _ = pckd.fit(pckd.create_model("resnet8", data, seed=0), data, recipe, out="teacher", progress=False)
    >>> from pckd_nb.experiments import Grid, parse_arm
    >>> arms = [parse_arm("supervised"), parse_arm("kd")]
    >>> sizes = {"train_size": 32, "test_size": 16}
    >>> grid = Grid("digits", [("teacher", "resnet8")], arms, [0, 1], "grid", recipe, sizes)
    >>> [str(point) for point in grid.points()][:2]
    ['resnet8-resnet8 supervised seed 0', 'resnet8-resnet8 kd seed 0']
    """

    data: str
    pairs: Sequence[tuple[Path | None, str]]
    arms: Sequence[Arm]
    seeds: Sequence[int]
    out: Path
    recipe: Recipe = field(default_factory=lambda: get_recipe("classroom"))
    data_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    teacher_cache: Path | None = None
    pair_names: dict[tuple[Path | None, str], str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, values in (("pair", self.pairs), ("arm", self.arms), ("seed", self.seeds)):
            if not values:
                raise ValueError(f"a grid needs at least one {name}")
        check(str, data=self.data)
        if not isinstance(self.recipe, Recipe):
            raise TypeError(f"recipe must be a Recipe, got {type(self.recipe).__name__}: get_recipe(NAME) returns one")
        if not isinstance(self.arms, list | tuple) or not all(isinstance(arm, Arm) for arm in self.arms):
            raise TypeError("arms must be a list of arms: parse_arm(TEXT) returns one")
        if not isinstance(self.seeds, Sequence) or isinstance(self.seeds, str):
            raise TypeError(f"seeds must be a list of whole numbers, got {type(self.seeds).__name__}")
        pairs = tuple(
            dict.fromkeys(
                (None if teacher is None else user_path(teacher, "teacher"), student) for teacher, student in self.pairs
            )
        )
        cache = None if self.teacher_cache is None else user_path(self.teacher_cache, "teacher_cache")
        for name, value in {"out": user_path(self.out, "out"), "teacher_cache": cache, "pairs": pairs}.items():
            object.__setattr__(self, name, value)
        seeds = dict.fromkeys(checked(Seed, "seed", seed) for seed in self.seeds)
        for arm in self.arms:
            if arm.build(self.recipe)[0].uses_teacher and None in (teacher for teacher, _ in pairs):
                raise ValueError(f"method {arm.method} needs teacher=…, the run folder of a trained network")
        if self.recipe.augment:
            views.find_transform(self.recipe.augment)
        if (self.out / "run.json").exists():
            raise ValueError(f"'{self.out}' is a run folder: choose another folder for the grid")
        if (self.out / RESULTS).is_dir():
            raise IsADirectoryError(
                f"'{self.out / RESULTS}' is a folder, but the grid writes its table there: choose another folder"
            )
        for folder in (self.out, *([] if self.teacher_cache is None else [self.teacher_cache])):
            check_outside_images(folder, self.data)
            files.check_writable(folder)
        make_fabric(**{name: value for name, value in self.options.items() if name in ("accelerator", "precision")})
        for arm in self.arms:
            if others := [other for other in self.arms if str(other) == str(arm) and other.source != arm.source]:
                raise ValueError(
                    f"two methods are called '{arm}', {arm.source} and {others[0].source}: rename one of them"
                )
        object.__setattr__(self, "pair_names", name_pairs(self.pairs, self.out))
        for pair in self.pairs:
            self._check_settings_have_effect(*pair)
        data = self.loaded
        with torch.device("meta"):
            for student in {student for _, student in self.pairs}:
                create_model(student, data)
        network_names = self.network_names  # once, because it reads files
        arms = dict.fromkeys(arm.drop_defaults(self.recipe, self.loaded, network_names) for arm in self.arms)
        object.__setattr__(self, "arms", tuple(arms))
        object.__setattr__(self, "seeds", tuple(seeds))

    @property
    def network_names(self) -> list[Pair]:
        """Names of teacher and student of every pair."""
        return [(network_name(teacher), student) for teacher, student in self.pairs]

    @cached_property
    def loaded(self) -> Dataset:
        """The data set of this grid, loaded once per process."""
        return load_dataset(self.data, **self.data_options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "loaded"}  # each process loads the data

    def points(self) -> list[Point]:
        """Return the points of the grid. Each of them is trained once.

        A student that is trained without a teacher is the same in all pairs with this student. So these pairs share its
        points. They are in a folder that is called after the student, or where they were trained before.

        Returns
        -------
        list of Point
            Ordered by seed, so that the arms can be compared even if the grid is interrupted.
        """
        found: dict[Path, Point] = {}
        for _, point in self.points_by_pair():
            found.setdefault(point.folder, point)
        return list(found.values())

    def points_by_pair(self) -> list[tuple[str, Point]]:
        """Return the points of every pair, also those that pairs share.

        Returns
        -------
        list of (str, Point)
            Name of the pair, and point.
        """
        return [
            (self.pair_names[pair], Point(*pair, arm, seed, self._folder(pair, arm, seed)))
            for seed in self.seeds
            for pair in self.pairs
            for arm in self.arms
        ]

    @cached_property
    def _arms_without_teacher(self) -> set[Arm]:
        return {arm for arm in self.arms if not arm.build(self.recipe)[0].uses_teacher}

    def _folder(self, pair: tuple[Path | None, str], arm: Arm, seed: int) -> Path:
        own = self.out / self.pair_names[pair] / str(arm) / f"seed{seed}"
        if arm not in self._arms_without_teacher:
            return own
        pairs = [self.pair_names[other] for other in self.pairs if other[1] == pair[1]]
        shared = self.out / folder_name("", pair[1]) / str(arm) / f"seed{seed}"
        folders = [*(self.out / name / str(arm) / f"seed{seed}" for name in pairs), shared]
        new = shared if len(pairs) > 1 else own
        found = [folder for folder in folders if (folder / "run.json").exists()]
        return min(found, key=lambda folder: runs.read_settings(folder)["status"] != "finished", default=new)

    def train(self, point: Point, progress: bool = False, stop: Callable[[], bool] | None = None) -> Run:
        """Return the run of a point: load it if it is finished, resume it if it was interrupted, otherwise train it.

        Errors of `distill` are passed on.

        Parameters
        ----------
        point : Point
        progress : bool
            Whether to show a progress bar.
        stop : callable, optional
            The training is interrupted when it returns True, see `training.StopWhen`.

        Returns
        -------
        Run

        Raises
        ------
        ValueError
            If the folder has a finished run with other settings than the point.
        """
        if is_finished(point) and not (point.folder / "student.safetensors").exists():
            return self._load_without_weights(point)
        method, recipe = point.arm.build(self.recipe)
        return training.distill(
            create_model(point.student, self.loaded, seed=point.seed),
            runs.load_run(point.teacher) if method.uses_teacher and point.teacher else None,
            self.loaded,
            method,
            recipe,
            seed=point.seed,
            out=point.folder,
            resume=True,
            teacher_cache=self.teacher_cache if method.uses_teacher else None,
            callbacks=[training.StopWhen(stop)] if stop else [],
            devices=1,  # a worker may be a process of srun, which must not become a rank
            progress=progress,
            **self.options,
        )

    def check_pairs(self, points: Sequence[Point]) -> None:
        """Check that teacher, student, data set and recipe of these points fit together, before the first training.

        Errors of `load_run` and `create_model` are passed on.

        Parameters
        ----------
        points : sequence of Point

        Raises
        ------
        ValueError
            If they do not fit together.
        """
        used = [point.arm.build(self.recipe)[0].uses_teacher for point in points]
        pairs = [(point.teacher if uses else None, point.student) for point, uses in zip(points, used, strict=True)]
        for teacher, student in dict.fromkeys(pairs):
            method = methods.KD() if teacher else methods.Supervised()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the training itself gives the same warnings
                check_task(make_task(student, teacher, self.loaded, method, self.recipe, seed=0, val=0), processes=1)

    def _load_without_weights(self, point: Point) -> Run:
        """Return a finished run whose weights were deleted, if it has the settings of the point."""
        run = runs.load_run(point.folder)
        method, recipe = point.arm.build(self.recipe)
        recipe = recipe.for_network(point.student)
        pair = network_name(point.teacher), point.student
        expected = runs.setting_values(resolve_settings(method, recipe, self.loaded, pair))
        info = run.settings
        settings = {**methods.default_settings(info["method"]["name"]), **run.method_settings}
        found = settings, info["recipe"]["epochs"], info["seed"], run.data_fingerprint
        if found != (expected, recipe.epochs, point.seed, self.loaded.fingerprint):
            raise ValueError(f"'{point.folder}' has another run than this grid needs: choose another folder")
        return run

    def _check_settings_have_effect(self, teacher: Path | None, student: str) -> None:
        varied = {name for arm in self.arms for name, _ in arm.settings}
        reason = self.why_center_alignment_is_left_out(teacher, student) if "beta_ca" in varied else None
        for arm in self.arms:
            settings = dict(arm.settings)
            if "beta_ca" in settings and reason:
                raise ValueError(f"'{arm}' has no effect: {reason}, so L_CA is left out at any weight")
            if (
                settings.keys() & {"epsilon", "epsilon_240"}
                and settings.get("strategy") in STRATEGIES_WITHOUT_THRESHOLD
            ):
                raise ValueError(f"'{arm}' has no effect: strategy {settings['strategy']} has no threshold")

    def why_center_alignment_is_left_out(self, teacher: Path | None, student: str) -> str | None:
        """Return why PCKD cannot compute L_CA for a pair of networks, or None if it can.

        Parameters
        ----------
        teacher : Path or None
            Run folder.
        student : str
            Name of the network.

        Returns
        -------
        str or None
            None also if there is no teacher.
        """
        if teacher is None:
            return None
        method = methods.PCKD(beta_fa=0, beta_cc=0)
        method.bind(create_model(student, self.loaded), runs.load_run(teacher).model())
        return method.left_out.get("category_center_alignment")


def is_finished(point: Point) -> bool:
    """Return whether the training of a point is finished.

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
