"""Experiments: comparisons, ablations and sweeps as grids of runs.

Every point of a grid is a run folder, and that is all the state there is: finished points are skipped, cut ones
resumed, and shards on several machines share nothing but the folder they write to.

    OUT/<teacher>-<student>/<arm>/seed<n>     a point
    OUT/results.csv                           a row a finished point, the same however the grid was cut up

An arm is a method with the settings that differ from its defaults, written as its folder is called: "kd",
"pckd-strategy=uniform", "pckd-beta_cc=0.02", "kd-epochs=40", "AT". Beside the method's own settings it may have the
numbers of a recipe (epochs, batch_size, lr, …) and epsilon_240: the ε of a training of 240 epochs, as the paper has
it, whose threshold ends where this training's shall end (ε = epsilon_240^(240/epochs)).
"""

import dataclasses
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from numbers import Integral, Real
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch

from . import files, methods, ranks, runs, training, views
from .catalogue import read_arm
from .datasets import Dataset, load_dataset
from .downloads import one_line
from .evaluation import make_fabric
from .models import create_model, flops_of
from .plugs import is_plug
from .recipes import Recipe, get_recipe
from .runs import Run

PUBLISHED_EPOCHS = 240
TERMS = ("kd", "fa", "ca", "cc")
STRATEGIES = ("uniform", "constant", "curriculum", "focal")  # what preview is compared with
IGNORE_THRESHOLD = ("uniform", "focal")
SWEEPS: dict[str, tuple[float, ...]] = {
    "beta_cc": (0, 0.002, 0.005, 0.02, 0.05),
    "beta_fa": (0, 2, 5, 20, 50),
    "beta_ca": (0, 1, 10, 100, 1000),  # at the published 1 it hardly acts in a short training
    "epsilon_240": (1, 1.0025, 1.005, 1.01, 1.015),
}
PROBE_STEPS = 4
RESULTS = "results.csv"
MOST_SHARDS = 10_000
OF_ONE_POINT = FloatingPointError, RuntimeError, MemoryError  # errors that leave the other points of a grid alone
MOST_EPSILON = 10  # over 240 epochs; its 240th power is a number still


@dataclass(frozen=True)
class Arm:
    """A method and what differs from its defaults. str(arm) is its folder, `parse_arm` the way back."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    source: str = ""  # of a method of your own: "module:Name" or "file.py:Name"

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{name}={_text(value)}" for name, value in self.settings)])

    def build(self, recipe: Recipe) -> tuple[methods.Method, Recipe]:
        """The method, and the recipe as this arm changes it. Raises ValueError for what either does not have."""
        fields = {field.name for field in dataclasses.fields(Recipe)} - {"name", "method", "network_lr", "milestones"}
        settings = dict(self.settings)
        fields -= methods.setting_names(self.source or self.method)  # a name that both have is the method's
        if settings.get("flip") in (0, 1):
            settings["flip"] = bool(settings["flip"])
        try:
            recipe = get_recipe(recipe, **{name: settings.pop(name) for name in fields & settings.keys()})
            if "epsilon_240" in settings:
                published = settings.pop("epsilon_240")
                if not isinstance(published, Real) or not 0 < float(published) <= MOST_EPSILON:
                    raise ValueError(
                        f"epsilon_240 must be a positive number, {MOST_EPSILON} at most, got {published!r}"
                    )
                settings["epsilon"] = published ** (PUBLISHED_EPOCHS / recipe.epochs)
            if "name" in settings:
                raise ValueError(f"'{self}': {self.method} has no setting 'name'")
            return methods.make(self.source or self.method, **settings), recipe
        except (TypeError, OverflowError) as error:  # text where a number should be, or one too large
            raise ValueError(f"{str(self)!r}: {error}") from error

    def plus(self, name: str, value: Any) -> "Arm":
        """This arm with one setting more, or another value of it."""
        others = tuple(item for item in self.settings if item[0] != name)
        return dataclasses.replace(self, settings=(*others, (name, value)))

    def without_defaults(self, recipe: Recipe, data: Dataset) -> "Arm":
        """The same arm under its shortest name: settings that say what holds anyway are left out, so that the point
        all factors share is trained once."""
        arm = dataclasses.replace(self, settings=())
        try:
            arm.build(recipe)
        except ValueError:  # a method of one's own may need its settings
            return self
        for name, value in self.settings:
            longer = arm.plus(name, value)
            if _resolved(longer, recipe, data) != _resolved(arm, recipe, data):
                arm = longer
        return arm


def parse_arm(text: str) -> Arm:
    """ "pckd-beta_cc=0.02-views=1" → Arm. Raises ValueError for what can't be read; `Arm.build` checks the names."""
    method, settings = read_arm(text)
    if not is_plug(method):
        return Arm(method, tuple(settings.items()))
    module, _, name = method.rpartition(":")
    place = str(Path(module).expanduser().resolve()) if module.endswith(".py") else module
    return Arm(name, tuple(settings.items()), f"{place}:{name}")


def ablation_arms() -> list[Arm]:
    """PCKD, PCKD without each of its terms, with each strategy that preview is compared with, and with one view; KD and
    a student without teacher beside them."""
    pckd = Arm("pckd")
    without = [pckd.plus(f"beta_{term}", 0) for term in TERMS]
    strategies = [pckd.plus("strategy", name) for name in STRATEGIES]
    return [Arm("supervised"), Arm("kd"), pckd, *without, *strategies, pckd.plus("views", 1)]


def sweep_arms(factor: str, values: Sequence[Any] = (), base: Arm | None = None) -> list[Arm]:
    """One factor at a time: `base` (PCKD) with each value; without values, those of SWEEPS.

    Raises ValueError where there are no values, TypeError for what is no name or no list of them."""
    if not isinstance(factor, str):
        raise TypeError(f"a factor is the name of a setting, got {type(factor).__name__}")
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"the values of {factor!r} must be a list, got {type(values).__name__}")
    if not isinstance(base, Arm | None):
        raise TypeError(f"base must be an arm, as `parse_arm` gives one, got {type(base).__name__}")
    if not values and factor not in SWEEPS:
        raise ValueError(f"say which values {' '.join(factor.split())} shall take; known without: {', '.join(SWEEPS)}")
    return [(base or Arm("pckd")).plus(factor, value) for value in values or SWEEPS[factor]]


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
            if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**31:
                raise ValueError(f"each of seeds must be a whole number from 0 to {2**31 - 1}, got {seed!r}")
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
        wanted = runs.values_of(_settings(method, recipe, self.loaded))
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


def run_grid(
    grid: Grid,
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train what is missing of a grid, and return `results` of it, also written to OUT/results.csv.

    jobs: points trained at a time, each in a process with its share of the cores. shard: (i, n), the i-th of n parts
    with about the same work, for the jobs of an array. say: gets a line about what is to come, with the projected time,
    and one a point. Raises KeyboardInterrupt after Ctrl-C, with all that was done on disk, RuntimeError where a
    process was killed or, when all others are trained, where points failed, for example for want of memory;
    FloatingPointError likewise, where all of these had a loss that is not finite; ValueError for impossible jobs or
    shards or several processes that a launcher started, and what `distill` raises.
    """
    if ranks.started() != (1, 1):  # each would train the same points, or take the others for ranks of its own
        raise ValueError(
            "a grid is run by one process: start it without torchrun or srun, with --jobs, or --shard in jobs"
        )
    mine, points = my_points(grid, shard, jobs), grid.points()
    left = [point for point in mine if not is_finished(point)]
    part = f"shard {shard[0]} of {shard[1]}: " if shard[1] > 1 else ""
    say(f"{part}{len(mine)} points, {len(mine) - len(left)} finished, {len(left)} to train")
    for point in mine:
        if point not in left:
            grid.train(point)  # only compares its settings with the grid's: before anything costs time
    if left:
        say(f"projected: {duration(projected_seconds(grid, left, min(jobs, len(left))))}")
    train = _in_processes(grid, left, jobs) if jobs > 1 and len(left) > 1 else _one_by_one(grid, left, progress)
    failed = []
    for number, done in enumerate(train, 1):
        how = done.failure or f"{done.accuracy:.2f} %, {done.seconds:.0f} s"
        say(f"[{number}/{len(left)}] {done.point}: {how}")
        failed += [done] if done.failure else []
    table = results(grid)
    if len(table) < len(points):
        others = "they belong to other shards" if len(points) - len(table) > len(failed) else "see above"
        say(f"{len(points) - len(table)} points of the grid are not finished: {others}")
    files.write(grid.out / RESULTS, lambda temporary: table.to_csv(temporary, index=False))
    if failed:
        first = f"{failed[0].point}: {failed[0].failure}"
        kind = FloatingPointError if all(done.not_finite for done in failed) else RuntimeError
        raise kind(f"{len(failed)} of {len(points)} points went wrong, all others were trained; {first}")
    return table


def my_points(grid: Grid, shard: tuple[int, int], jobs: int) -> list[Point]:
    """The points of the i-th of n parts, shard = (i, n). Raises ValueError or TypeError for shards and jobs that can't
    be."""
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise TypeError(f"shard must be a pair (i, n), got {type(shard).__name__}")
    number, count = shard
    for name, value in (("shard", number), ("shard", count), ("jobs", jobs)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be in whole numbers, got {type(value).__name__}")
    if not 1 <= number <= count <= MOST_SHARDS:
        raise ValueError(f"shard must be i/n with 1 ≤ i ≤ n ≤ {MOST_SHARDS:,}, got {number}/{count}")
    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    return dealt(grid, count)[number - 1]


def dealt(grid: Grid, count: int) -> list[list[Point]]:
    """The points of a grid in `count` parts with about the same work: the longest first, each to the part that has the
    least so far, an arm's seeds one after the other. Nothing but the grid decides, so that jobs need not ask each
    other. A part keeps the grid's order."""
    points = grid.points()
    work = [_operations(grid, point) if count > 1 else 1 for point in points]
    parts: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for place in sorted(range(len(points)), key=lambda place: (-work[place], str(points[place].arm))):
        least = load.index(min(load))
        parts[least].append(place)
        load[least] += work[place]
    return [[points[place] for place in sorted(part)] for part in parts]


def results(grid: Grid) -> pd.DataFrame:
    """A row a finished point of the grid, in its order: data, teacher, student, pair, arm, seed, epochs, top1, top5
    (percent), cross_entropy (nats). Nothing in it depends on when or how fast a point was trained."""
    rows = []
    for point in grid.points():
        if is_finished(point):
            row = runs.table([runs.load_run(point.folder, tables_only=True)]).iloc[0]
            shared = {name: row[name] for name in ("data", "teacher", "student")}
            scores = {name: row[name] for name in ("epochs", "top1", "top5", "cross_entropy")}
            rows.append({**shared, "pair": point.folder.parts[-3], "arm": str(point.arm), "seed": point.seed, **scores})
    return pd.DataFrame(rows)


def comparison(table: pd.DataFrame, reference: str = "kd") -> pd.DataFrame:
    """`results`, or any table with pair, arm, seed and top1, as one row an arm of every pair: number of seeds, mean, sd
    and 95 % interval (low, high) of top1 in percent, and the difference to the `reference` arm, paired by seed, with
    its interval, and the number of seeds that both have (pairs); NaN, and 0 pairs, where there is no such arm."""
    from .analysis import paired_difference, summarise  # pulls in scikit-learn

    rows = []
    for (pair, arm), group in table.groupby(["pair", "arm"], sort=False):
        mean, sd, low, high, count = summarise(group["top1"].tolist())
        row = {"pair": pair, "arm": arm, "seeds": count, "mean": mean, "sd": sd, "low": low, "high": high, "pairs": 0}
        beside = table[(table["pair"] == pair) & (table["arm"] == reference)]
        if arm != reference and set(beside["seed"]) & set(group["seed"]):
            ours, theirs = (dict(zip(part["seed"], part["top1"], strict=True)) for part in (group, beside))
            difference = paired_difference(ours, theirs)
            row |= {"difference": difference.mean, "d_low": difference.low, "d_high": difference.high}
            row["pairs"] = difference.count
        rows.append(row)
    columns = ["pair", "arm", "seeds", "mean", "sd", "low", "high", "difference", "d_low", "d_high", "pairs"]
    return pd.DataFrame(rows, columns=columns)


def projected_seconds(grid: Grid, points: Sequence[Point], jobs: int = 1) -> float:
    """How long training `points` should take: seconds a step of the grid's finished points of the same kind (their
    median), else of a probe of a few steps, times the steps there are. Tests after every epoch are not counted; of a
    probe, neither is what a teacher cache saves and what jobs cost each other."""
    known: dict[tuple, list[float]] = {}
    for point in grid.points():
        if is_finished(point):
            kind, steps = _work_of(grid, point)
            known.setdefault(kind, []).append(runs.load_run(point.folder, tables_only=True).seconds / steps)
    total = 0.0
    for point in points:
        kind, steps = _work_of(grid, point)
        if kind not in known and (seconds := _seconds_a_step(grid, point)):
            known[kind] = [seconds]
        total += median(known.get(kind, [0])) * steps
    return total / jobs


def _work_of(grid: Grid, point: Point) -> tuple[tuple[Path, str, str, int, int], int]:
    """What decides how long a step takes, and the number of steps."""
    method, recipe = point.arm.build(grid.recipe)
    turns = _settings(method, recipe, grid.loaded).get("views", {"value": method.views})["value"]
    kind = point.teacher, point.student, point.arm.method, turns, recipe.batch_size
    return kind, views.steps(len(grid.loaded.train), recipe.batch_size) * recipe.epochs


def _operations(grid: Grid, point: Point) -> int:
    """Of a point's networks in all its training: three forward passes of the student a row, which is forward and
    backward, and one of the teacher. What a teacher cache saves is not known in advance."""
    (*_, turns, batch_size), steps = _work_of(grid, point)
    networks = [point.student] * 3
    if point.arm.build(grid.recipe)[0].uses_teacher:
        networks.append(runs.read_settings(point.teacher)["model"]["name"])
    shape = grid.loaded.channels, *grid.loaded.size
    return steps * batch_size * turns * sum(flops_of(name, len(grid.loaded.classes), shape) for name in networks)


def _seconds_a_step(grid: Grid, point: Point) -> float:
    """Measured on a few steps, after as many that don't count; 0 where a loss is not finite as early as that."""
    method, recipe = point.arm.build(grid.recipe)
    data = grid.loaded
    images = min(PROBE_STEPS * recipe.batch_size, len(data.train))
    some = np.arange(images), np.arange(min(recipe.batch_size, len(data.test)))
    small = dataclasses.replace(data, train=data.train.take(some[0]), test=data.test.take(some[1]))
    teacher = runs.load_run(point.teacher) if method.uses_teacher else None
    with warnings.catch_warnings(), suppress(*OF_ONE_POINT):
        warnings.simplefilter("ignore")  # the runs will say it again, of losses that are not finite too
        run = training.distill(
            create_model(point.student, data, seed=point.seed),
            teacher,
            small,
            method,
            get_recipe(recipe, epochs=2),
            progress=False,
            **{name: value for name, value in grid.options.items() if name in ("accelerator", "precision")},
        )
        return float(run.timing["seconds"].iloc[-1]) / views.steps(images, recipe.batch_size)
    return 0.0


def duration(seconds: float) -> str:
    """In words, in the largest unit of which there are two or more."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


class Done(NamedTuple):
    """A point, its accuracy in percent and the seconds it took; or why there is no accuracy."""

    point: Point
    accuracy: float
    seconds: float
    failure: str = ""
    not_finite: bool = False


def _train(grid: Grid, point: Point, progress: bool = False) -> Done | None:
    """None where it was interrupted. A loss that is not finite, or a lack of memory, is the point's own: others go on.
    Raises ValueError that names the point."""
    started = time.monotonic()
    try:
        run = grid.train(point, progress)
    except OF_ONE_POINT as error:
        seconds, what = time.monotonic() - started, one_line(error)
        return Done(point, float("nan"), seconds, what, isinstance(error, FloatingPointError))
    except ValueError as error:
        raise ValueError(f"{point}: {error}") from error
    return Done(point, run.accuracy, time.monotonic() - started) if run.finished else None


def _one_by_one(grid: Grid, points: Sequence[Point], progress: bool) -> Iterator[Done]:
    for point in points:
        if (done := _train(grid, point, progress)) is None:
            raise KeyboardInterrupt
        yield done


def _in_processes(grid: Grid, points: Sequence[Point], jobs: int) -> Iterator[Done]:
    """The same with `jobs` processes. Ctrl-C reaches this one alone, which passes it on once to those at work: they
    finish their step and save. (An executor of the standard library can hang at that.)"""
    jobs = min(jobs, len(points))
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    waiting = deque(points)
    working: dict[Connection, SpawnProcess] = {}
    idle: list[tuple[Connection, SpawnProcess]] = []
    try:
        with _environment(OMP_NUM_THREADS=str(threads)):  # read when a process starts
            for _ in range(jobs):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, grid, threads))
                process.start()
                theirs.close()
                ours.send(waiting.popleft())
                working[ours] = process
        while working:
            for ours in cast(list[Connection], wait(list(working))):
                yield _received(ours)
                if waiting:
                    ours.send(waiting.popleft())
                else:
                    idle.append((ours, working.pop(ours)))
    finally:
        for process in working.values():
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for ours, process in [*working.items(), *idle]:
            ours.close()  # nothing more to do
            process.join()


def _received(connection: Connection) -> Done:
    """Raises KeyboardInterrupt where the process was interrupted, RuntimeError where it is gone, and what it raised."""
    try:
        said: Done | Exception | None = connection.recv()
    except EOFError as error:
        raise RuntimeError("a process of this grid was killed; the same command goes on from here") from error
    if said is None:
        raise KeyboardInterrupt
    if isinstance(said, Exception):
        raise said
    return said


def _work(connection: Connection, grid: Grid, threads: int) -> None:
    """A process: train the points that `connection` brings, until it is closed."""
    torch.set_num_threads(threads)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # the terminal's Ctrl-C goes to the parent, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            point = connection.recv()
            said: Done | Exception | None
            try:
                said = _train(grid, point)
            except Exception as error:
                said = error
            connection.send(said)


def _end_with_parent() -> None:
    """A parent that was killed leaves nobody who wants the work, and another one may start on the same folders."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _settings(method: methods.Method, recipe: Recipe, data: Dataset) -> dict[str, dict[str, Any]]:
    return methods.resolve(method, recipe.method_settings(), {"views": data.default_views})[1]


def _resolved(arm: Arm, recipe: Recipe, data: Dataset) -> tuple[dict[str, Any], Recipe]:
    """All that decides what this arm trains: two arms with the same are one."""
    method, recipe = arm.build(recipe)
    values = runs.values_of(_settings(method, recipe, data))
    if "epsilon" in values:
        values["epsilon"] = round(values["epsilon"], 9)  # 1.005^(240/10) and (1.005^240)^(1/10) are the same ε
    return values, recipe


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
