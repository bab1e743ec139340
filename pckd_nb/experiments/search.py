"""Search for settings of methods, on validation images only.

A search trains every method with the same number of settings (*trials*). It chooses the trial with the best accuracy on
the validation images. The data set that it trains on has no test images. So the comparison on test images, which comes
later, is not biased by the choice.

    OUT/<teacher>-<student>/<arm>/trial<n>   run folder of one trial
    OUT/search.json                          what all trials have in common
    OUT/journal.jsonl                        the trials that were started, and how they ended
    OUT/trials.csv, OUT/chosen.json          the results

A search can be stopped at any time. Several processes, also on several machines, can join one search: they run the same
search in the same folder.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .. import ranks
from ..catalogue import BASELINES, METHODS
from ..html import counted
from ..messages import one_line
from ..paths import user_path
from ..recipes import Recipe, get_recipe
from ..validation import Count, Fraction, check
from .arms import Arm, parse_arm
from .choosing import (
    CHOSEN,
    SEARCH,
    SearchRecord,
    describe_images,
    describe_teacher,
    first_difference,
    read_search,
    search_trials,
    write_record,
    write_results,
)
from .engines import KILLED, assign_gpus, run_in_processes
from .grid import Grid, Point
from .journal import JOURNAL, Journal, lock_of
from .projection import estimate_seconds, format_duration, name_stages
from .space import default_settings, default_space, read_values, split_space, values_text


@dataclass(frozen=True)
class Search:
    """A search for the settings of several methods, each with the same number of trials.

    The first trial of a method has its default settings. Creating a search loads the data, and checks everything that
    can be checked before the first training step. Errors of `Grid` are passed on.

    Parameters
    ----------
    data : str
        Name of the data set.
    teacher : path
        Run folder of the teacher.
    student : str
        Name of the student network.
    methods : sequence of Arm
        Settings that an arm has are the same in all its trials, unless `space` contains them.
    out : path
        Folder of the search. If it has a search already, that search must have the same arguments. Only `trials` may be
        larger.
    trials : int
        Number of trials per method.
    val : float, in [0, 1)
        Share of the training images that is used for validation. 0 if the data set has a validation split.
    seed : int
        Seed of all trainings and of the choice of settings.
    space : sequence of str
        Which settings to search, and their values: METHOD:SETTING=LOW..HIGH, the same with :log at the end for a
        logarithmic scale, or METHOD:SETTING=A,B,C. Fields of the recipe can be searched too. If a method occurs here,
        only these settings of it are searched. Otherwise, its loss weights and its temperature, see
        `default_space`.
    recipe : Recipe
        The default is the recipe "classroom".
    data_options : dict
        Arguments of `load_dataset`.
    options : dict
        Arguments of `distill`: accelerator, precision, compile, teacher_cache_gb.
    teacher_cache : path, optional
        Folder of the teacher cache that all trials share. None means no cache.

    Attributes
    ----------
    arms : tuple of Arm
        The methods, without settings that equal the defaults.
    spaces : dict
        Method → setting → its values, as a distribution of optuna.
    defaults : dict
        Method → setting → its value in the first trial.
    grid : Grid
        Trains the trials.

    Raises
    ------
    ValueError
        If an argument is not valid, if a method has no setting to search, or if `out` has another search.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=40, test_size=16)
    >>> _ = pckd.fit("resnet8", data, epochs=1, out="teacher", progress=False)
    >>> from pckd_nb.experiments import Search, parse_arm, run_search
    >>> recipe, sizes = pckd.get_recipe("classroom", epochs=1), {"train_size": 40, "test_size": 16}
    >>> search = Search(
    ...     "digits", "teacher", "resnet8", [parse_arm("kd")], "search", trials=2, val=0.25, recipe=recipe,
    ...     data_options=sizes, space=["kd:temperature=2..8"],
    ... )
    >>> table = run_search(search, progress=False, print_fn=lambda line: None)
    >>> table[["method", "trials"]]
      method  trials
    0     kd       2
    """

    data: str
    teacher: str | Path
    student: str
    methods: Sequence[Arm]
    out: str | Path
    trials: int = 20
    val: float = 0.1
    seed: int = 0
    space: Sequence[str] = ()
    recipe: Recipe = field(default_factory=lambda: get_recipe("classroom"))
    data_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher_cache: str | Path | None = None
    arms: tuple[Arm, ...] = field(init=False, repr=False)
    spaces: dict[str, dict[str, Any]] = field(init=False, repr=False)
    defaults: dict[str, dict[str, Any]] = field(init=False, repr=False)
    grid: Grid = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check(Count, trials=self.trials)
        check(Fraction, val=self.val)
        check(str, student=self.student)
        if not isinstance(self.methods, list | tuple) or not all(isinstance(arm, Arm) for arm in self.methods):
            raise TypeError("methods must be a list of arms: parse_arm(TEXT) returns one")
        if not self.methods:
            raise ValueError("a search needs at least one method")
        for arm in self.methods:
            if arm.source and arm.method.lower() in map(str.lower, (*METHODS, *BASELINES)):
                raise ValueError(f"{arm.source} has the name of a method of this package: rename your class")
        if not isinstance(self.space, list | tuple):
            raise TypeError(f"space must be a list of texts, got {type(self.space).__name__}")
        chosen = self._read_space()
        # The grid checks the arms at both ends of every range, too.
        ends = [
            arm.with_setting(name, value)
            for arm, space in chosen.items()
            for name, values in space.items()
            for value in getattr(values, "choices", None) or (values.low, values.high)
        ]
        grid = Grid(
            self.data,
            [(user_path(self.teacher, "teacher"), self.student)],
            [*self.methods, *ends],
            [self.seed],
            user_path(self.out, "out"),
            self.recipe,
            {**self.data_options, **({"val": self.val} if self.val else {}), "test": False},
            dict(self.options),
            None if self.teacher_cache is None else user_path(self.teacher_cache, "teacher_cache"),
        )
        bases = {arm: arm.drop_defaults(grid.recipe, grid.loaded, grid.network_names) for arm in self.methods}
        spaces: dict[str, dict[str, Any]] = {}
        for arm, base in bases.items():
            spaces[str(base)] = chosen.get(arm) or spaces.get(str(base)) or default_space(grid, base)
            if not spaces[str(base)]:
                raise ValueError(
                    f"{base} has no setting that is searched by default: give one with space=…, such as "
                    f"{base}:lr=0.01..0.2:log"
                )
        values = {str(base): default_settings(grid, base) for base in bases.values()}
        defaults = {
            method: {name: values[method][name] for name in space if name in values[method]}
            for method, space in spaces.items()
        }
        attributes = {"arms": tuple(dict.fromkeys(bases.values())), "spaces": spaces, "defaults": defaults}
        for name, value in {**attributes, "grid": grid, "out": grid.out}.items():
            object.__setattr__(self, name, value)
        self.check_folder()

    def _read_space(self) -> dict[Arm, dict[str, Any]]:
        """Return the values of every setting in `space`, by method."""
        chosen: dict[Arm, dict[str, Any]] = {}
        for text in self.space:
            method, setting, values = split_space(text)
            arm = parse_arm(method)
            if arm not in self.methods:
                known = ", ".join(map(str, self.methods))
                raise ValueError(f"space {text!r} is for {method}, which is not one of the methods {known}")
            if setting in chosen.setdefault(arm, {}):
                raise ValueError(f"space contains {method}:{setting} twice: give it once")
            chosen[arm][setting] = read_values(values, arm, setting, self.recipe)
        return chosen

    def record(self) -> SearchRecord:
        """Return the content of search.json."""
        (teacher, student), *_ = self.grid.pairs
        return SearchRecord(
            data=describe_images(self.grid.loaded),
            teacher=describe_teacher(teacher),
            student=student,
            recipe=self.grid.recipe.settings(),
            precision=str(self.options.get("precision", "auto")),
            seed=self.grid.seeds[0],
            sampler="TPESampler of optuna; the first trial has the default settings",
            trials=self.trials,
            space={
                method: {name: values_text(values) for name, values in space.items()}
                for method, space in self.spaces.items()
            },
            versions={name: version(name) for name in ("pckd_nb", "optuna")},
        )

    def check_folder(self) -> SearchRecord | None:
        """Check that the folder of this search has no other search.

        Returns
        -------
        SearchRecord or None
            What the folder has. None if it has no search yet.

        Raises
        ------
        ValueError
            If it has a search with other arguments, or with more trials.
        """
        out, settings = self.grid.out, self.record()
        if not (out / SEARCH).exists():
            if (out / JOURNAL).exists():
                raise ValueError(f"'{out}' has a {JOURNAL}, but no {SEARCH}: choose another folder")
            return None
        recorded = read_search(out)
        if difference := first_difference(recorded, settings.model_dump(exclude={"trials", "versions"})):
            raise ValueError(f"'{out}' has a search with {difference}: repeat its settings, or choose another folder")
        if self.trials < recorded.trials:
            raise ValueError(
                f"'{out}' has a search with {recorded.trials} trials per method, not {self.trials}: there can only be "
                "more of them"
            )
        return recorded

    def start(self) -> None:
        """Write search.json, if it does not exist or has fewer trials.

        Raises
        ------
        ValueError
            If the folder has another search.
        OSError
            If the file cannot be written.
        """
        out = self.grid.out
        out.mkdir(parents=True, exist_ok=True)
        with lock_of(out):
            recorded = self.check_folder()
            if recorded is None or recorded.trials < self.trials:
                (out / CHOSEN).unlink(missing_ok=True)  # of a search with fewer trials
                record = recorded.model_copy(update={"trials": self.trials}) if recorded else self.record()
                write_record(out / SEARCH, record)

    def trained_points(self) -> list[Point]:
        """Return the points of the grid that belong to the finished trials.

        Returns
        -------
        list of Point
        """
        if not (self.grid.out / SEARCH).exists():
            return []
        trials = search_trials(self.grid.out).query("status == 'finished'")
        methods = {str(arm): arm for arm in self.arms}
        rows = [row for row in trials.itertuples() if row.method in methods]
        arms = [replace(methods[row.method], settings=parse_arm(row.arm).settings) for row in rows]
        return [self.point(methods[row.method], arm, row.trial) for row, arm in zip(rows, arms, strict=True)]

    def missing_trials(self) -> list[tuple[Arm, int]]:
        """Return the trials that have not ended yet.

        Returns
        -------
        list of (Arm, int)
            Method, and number of the trial.
        """
        ended: set[tuple[str, int]] = set()
        if (self.grid.out / SEARCH).exists():
            trials = search_trials(self.grid.out).query("status != 'running'")
            ended = set(zip(trials["method"], trials["trial"], strict=True))
        return [(arm, number) for number in range(self.trials) for arm in self.arms if (str(arm), number) not in ended]

    def points(self) -> list[Point]:
        """Return the points of the grid that belong to the trials that have not ended yet.

        Returns
        -------
        list of Point
            The settings of a trial are not known yet. Its point has those of the first trial, to estimate its duration.
        """
        return [self.point(arm, arm, number) for arm, number in self.missing_trials()]

    def point(self, method: Arm, arm: Arm, number: int) -> Point:
        """Return the point of the grid that trains a trial.

        Parameters
        ----------
        method : Arm
            The method, without the settings that are searched.
        arm : Arm
            The method with the settings of the trial.
        number : int
            Number of the trial, counted from 0.

        Returns
        -------
        Point
        """
        pair = self.grid.points()[0].folder.parts[-3]
        (teacher, student), *_ = self.grid.pairs
        return Point(teacher, student, arm, self.grid.seeds[0], self.grid.out / pair / str(method) / f"trial{number}")


class TrialOutcome(NamedTuple):
    """What happened in one trial that this process has trained.

    Parameters
    ----------
    text : str
        Method and number of the trial.
    arm : str
        The method with the settings of the trial.
    val_top1 : float
        Accuracy on the validation images, in percent. NaN if the trial failed.
    seconds : float
        Duration of the training.
    failure : str
        The error message. Empty if the trial did not fail.
    """

    text: str
    arm: str
    val_top1: float
    seconds: float
    failure: str = ""


def run_search(
    search: Search, *, jobs: int = 1, progress: bool = True, print_fn: Callable[[str], None] = print
) -> pd.DataFrame:
    """Train the trials of a search that are missing, and return what it has chosen.

    Trials that were interrupted are resumed. A trial with a non-finite loss counts as a failed trial. Any other error
    of `distill` stops the search, and is passed on. The tables of all trials and of the chosen settings are written to
    OUT/trials.csv and OUT/chosen.json.

    Parameters
    ----------
    search : Search
    jobs : int
        Number of processes that train at the same time, each with an equal share of the CPU cores. With one process,
        the same search always has the same trials.
    progress : bool
        Whether to show a progress bar. There is none with several jobs.
    print_fn : callable
        Called with every line of output: the number of trials, the estimated time, one line per trial, and a line about
        trials that other processes still train.

    Returns
    -------
    DataFrame
        The table of `search_summary`.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C. The trials that are finished are on disk, and the others are resumed later.
    FloatingPointError
        If all trials of a method failed.
    ChildProcessError
        If the process of a trial was killed several times. All other trials are trained.
    ValueError
        If `jobs` is not valid, if a launcher such as torchrun has started several processes, or if the folder has
        another search.
    TypeError
        If `jobs` has the wrong type.
    """
    if ranks.launched_processes() != (1, 1):
        raise ValueError(
            "a search is run from one process: start it without torchrun or srun; jobs=… trains several trials at the "
            "same time"
        )
    check(Count, jobs=jobs)
    search.start()
    points, total = search.points(), search.trials * len(search.arms)
    print_fn(f"{counted(total, 'trial')}, {total - len(points)} finished, {len(points)} to train")
    if points:
        seconds = estimate_seconds(search.grid, points, jobs, search.trained_points())
        print_fn(f"estimated time: {format_duration(seconds)}{name_stages(search.arms, search.grid.recipe)}")
    jobs = min(jobs, len(points))
    outcomes = _train_in_processes(search, jobs) if jobs > 1 else _train_in_turn(search, progress)
    try:
        for number, outcome in enumerate(outcomes, 1):
            result = outcome.failure or f"{outcome.val_top1:.2f} % on validation images, {outcome.seconds:.0f} s"
            print_fn(f"[{number}/{len(points)}] {outcome.text}: {result} ({outcome.arm})")
    except KeyboardInterrupt:
        print_fn("interrupted: the same command continues this search")
        raise
    summary = write_results(search.grid.out)
    if running := int((search_trials(search.grid.out)["status"] == "running").sum()):
        print_fn(f"not finished: {counted(running, 'trial')} of other processes; start this command again later")
    elif len(failed := summary[summary["trial"] < 0]):
        method = failed["method"].iloc[0]
        raise FloatingPointError(f"all trials of {method} failed: see {search.grid.out / 'trials.csv'}")
    return summary


def train_next(
    search: Search,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
    first: tuple[Arm, int] | None = None,
) -> TrialOutcome | None:
    """Train the next trial of a search: one that was interrupted, or else a new one.

    Parameters
    ----------
    search : Search
    progress : bool
        Whether to show a progress bar.
    stop : callable, optional
        The training is interrupted when it returns True.
    first : (Arm, int), optional
        The trial to train if no other process trains it, see `Journal.claim`.

    Returns
    -------
    TrialOutcome or None
        None if all trials are finished, or trained by other processes.

    Raises
    ------
    KeyboardInterrupt
        If the training was interrupted.
    ValueError
        As in `distill`, or if the journal is damaged.
    """
    if stop and stop():
        raise KeyboardInterrupt
    journal, started = Journal(search.grid.out), time.monotonic()
    claim = journal.claim(search.arms, search.spaces, search.defaults, search.trials, search.grid.seeds[0], first)
    if claim is None:
        return None
    val_top1, failure = float("nan"), ""
    try:
        run = search.grid.train(search.point(claim.method, claim.arm, claim.number), progress, stop)
        if not run.finished:
            raise KeyboardInterrupt
        last = run.history.iloc[-1]
        val_top1 = float(last["val_top1"])
        journal.finish(claim, val_top1=val_top1, val_cross_entropy=float(last["val_cross_entropy"]))
    except FloatingPointError as error:
        failure = one_line(error)
        journal.finish(claim, failure=failure)
    except ValueError as error:
        raise ValueError(f"{claim}: {error}") from error
    finally:
        journal.release(claim)
    return TrialOutcome(str(claim), str(claim.arm), val_top1, time.monotonic() - started, failure)


def _train_in_turn(search: Search, progress: bool) -> Iterator[TrialOutcome]:
    while outcome := train_next(search, progress):
        yield outcome


def _train_in_processes(search: Search, jobs: int) -> Iterator[TrialOutcome]:
    """Train the missing trials in `jobs` processes. Yield the outcome of each trial when it ends."""
    killed = ""
    trials, gpus = search.missing_trials(), assign_gpus(search.grid, jobs)
    for (method, number), outcomes in run_in_processes(partial(_train_trial, search), trials, jobs, gpus):
        if outcomes is None:
            killed = killed or f"{method} trial {number}: {KILLED}"
        else:
            yield from outcomes
    if killed:
        raise ChildProcessError(killed)


def _train_trial(search: Search, trial: tuple[Arm, int], stop: Callable[[], bool]) -> list[TrialOutcome] | None:
    """Train a trial, or another one if it is taken. Return [] if none is left, and None after an interruption."""
    try:
        outcome = train_next(search, stop=stop, first=trial)
    except KeyboardInterrupt:
        return None
    return [outcome] if outcome else []
