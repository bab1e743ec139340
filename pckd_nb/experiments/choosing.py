"""What a search has found: its trials, the settings that it chose, and the check before they are compared."""

import json
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from .. import files, runs
from ..catalogue import find_method
from ..config import Section
from ..data import Dataset
from ..messages import one_line
from ..paths import user_path
from ..validation import Count, Seed
from .arms import Arm, parse_arm
from .grid import Grid
from .journal import JOURNAL, Journal, lock_of

Record = TypeVar("Record", "SearchRecord", "ChosenRecord")
SEARCH, TRIALS, CHOSEN = "search.json", "trials.csv", "chosen.json"
SEARCH_FORMAT = 1  # version of search.json and chosen.json


class SearchRecord(Section):
    """The content of search.json: everything that the trials of a search have in common.

    Parameters
    ----------
    format : int
        Version of the file.
    data : dict
        "name", "options" and "fingerprint" of the data set, as in run.json. It has no test images.
    teacher : dict
        "name" of the network, and "fingerprint" of its weights.
    student : str
    recipe : dict
        As in run.json.
    precision : str
        The argument of `distill`.
    seed : int
    sampler : str
    trials : int
        Number of trials per method.
    space : dict
        Method → setting → its values as text.
    versions : dict
        Versions of this package and of optuna when the search was started.
    """

    format: int = SEARCH_FORMAT
    data: dict[str, Any]
    teacher: dict[str, Any]
    student: str
    recipe: dict[str, Any]
    precision: str
    seed: Seed
    sampler: str
    trials: Count
    space: dict[str, dict[str, str]]
    versions: dict[str, str]


class ChosenSettings(Section):
    """What a search chose for one method.

    Parameters
    ----------
    method : str
        The method, without the settings that were searched.
    arm : str
        The method with the chosen settings.
    trial : int
    val_top1 : float
        Accuracy on the validation images, in percent.
    val_cross_entropy : float
        In nats.
    default_val_top1 : float or None
        Accuracy with the default settings. None if that trial failed.
    """

    method: str
    arm: str
    trial: int
    val_top1: float
    val_cross_entropy: float
    default_val_top1: float | None


class ChosenRecord(Section):
    """The content of chosen.json.

    Parameters
    ----------
    format : int
        Version of the file.
    trials : int
        Number of trials per method.
    chosen : list of ChosenSettings
        One entry per method.
    """

    format: int = SEARCH_FORMAT
    trials: Count
    chosen: list[ChosenSettings]


def read_search(folder: str | Path) -> SearchRecord:
    """Read the search.json of a folder.

    Parameters
    ----------
    folder : path

    Returns
    -------
    SearchRecord

    Raises
    ------
    FileNotFoundError
        If there is no search in the folder.
    ValueError
        If the file is damaged.
    """
    folder = user_path(folder, "folder")
    if not (folder / SEARCH).is_file():
        reason = f"it has no {SEARCH}" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"'{folder}' is not a search: {reason}")
    return _read(folder / SEARCH, SearchRecord)


def _read(file: Path, kind: type[Record]) -> Record:
    """Return the content of a JSON file. Raise ValueError if it is damaged, or of another version."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        record = kind.model_validate(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is damaged: {one_line(error)}") from error
    if record.format != SEARCH_FORMAT:
        raise ValueError(f"'{file}' was written by another version of pckd_nb: use that version")
    return record


def search_trials(folder: str | Path) -> pd.DataFrame:
    """Return a table of all trials of a search.

    Parameters
    ----------
    folder : path
        Folder of the search.

    Returns
    -------
    DataFrame
        One row per trial, sorted by method and trial. The columns are:

        - method, and trial: its number, from 0. Trial 0 has the default settings,
        - arm: the method with the settings of this trial,
        - status: "finished", "failed" or "running",
        - val_top1 (percent) and val_cross_entropy (nats) after the last epoch, on the validation images,
        - failure: why the trial failed.

    Raises
    ------
    FileNotFoundError
        If there is no search in the folder.
    ValueError
        If a file of the search is damaged.
    """
    folder, record = user_path(folder, "folder"), read_search(folder)
    journal = Journal(folder) if (folder / JOURNAL).exists() else None
    rows = [
        {"method": method, "trial": number, **trial._asdict()}
        for method in record.space
        for number, trial in enumerate(journal.trials(method) if journal else ())
    ]
    columns = ["method", "trial", "arm", "status", "val_top1", "val_cross_entropy", "failure"]
    return pd.DataFrame(rows, columns=columns)


def search_summary(folder: str | Path) -> pd.DataFrame:
    """Return what a search has chosen so far, by validation accuracy.

    The trial with the highest accuracy on the validation images after the last epoch is chosen. If several are equal,
    the one with the lowest cross-entropy.

    Parameters
    ----------
    folder : path
        Folder of the search.

    Returns
    -------
    DataFrame
        One row per method. The columns are:

        - method, and trials: the number of trials that are finished or failed,
        - failed: the number of failed trials, which had a non-finite loss,
        - default: accuracy of the default settings, in percent. NaN if that trial is not finished,
        - best: accuracy of the chosen settings, in percent,
        - cross_entropy: that of the chosen settings, in nats,
        - trial and chosen: number and settings of the chosen trial. -1 and "" if no trial is finished.

    Raises
    ------
    FileNotFoundError
        If there is no search in the folder.
    ValueError
        If a file of the search is damaged.
    """
    trials, rows = search_trials(folder), []
    for method in read_search(folder).space:
        own = trials[trials["method"] == method]
        finished = own[own["status"] == "finished"]
        default = finished[finished["trial"] == 0]["val_top1"]
        row = {"method": method, "trials": int((own["status"] != "running").sum())}
        row |= {"failed": int((own["status"] == "failed").sum())}
        row |= {"default": default.iloc[0] if len(default) else float("nan")}
        row |= {"best": float("nan"), "cross_entropy": float("nan"), "trial": -1, "chosen": ""}
        if len(finished):
            order = finished.sort_values(
                ["val_top1", "val_cross_entropy", "trial"], ascending=[False, True, True], kind="stable"
            )
            best = order.iloc[0]
            row |= {"best": best["val_top1"], "cross_entropy": best["val_cross_entropy"]}
            row |= {"trial": int(best["trial"]), "chosen": best["arm"]}
        rows.append(row)
    return pd.DataFrame(rows)


def write_results(folder: Path) -> pd.DataFrame:
    """Write trials.csv, and chosen.json if all trials have ended.

    Parameters
    ----------
    folder : Path
        Folder of the search.

    Returns
    -------
    DataFrame
        The table of `search_summary`.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    with lock_of(folder):  # other processes may end at the same time
        table, summary, record = search_trials(folder), search_summary(folder), read_search(folder)
        files.write(folder / TRIALS, partial(table.to_csv, index=False))
        if (summary["trials"] >= record.trials).all() and (summary["trial"] >= 0).all():
            chosen = [
                ChosenSettings(
                    method=row.method,
                    arm=row.chosen,
                    trial=row.trial,
                    val_top1=row.best,
                    val_cross_entropy=row.cross_entropy,
                    default_val_top1=None if row.default != row.default else row.default,
                )
                for row in summary.itertuples(index=False)
            ]
            write_record(folder / CHOSEN, ChosenRecord(trials=record.trials, chosen=chosen))
    return summary


def write_record(file: Path, record: Section) -> None:
    """Write search.json or chosen.json, as a whole or not at all.

    Parameters
    ----------
    file : Path
    record : SearchRecord or ChosenRecord

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    text = json.dumps(record.model_dump(), indent=2, ensure_ascii=False) + "\n"
    files.write(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def chosen_arms(folder: str | Path) -> dict[str, Arm]:
    """Return the settings that a finished search chose.

    Train them on all training images, with several seeds, to compare them on the test images.

    Parameters
    ----------
    folder : path
        Folder of the search.

    Returns
    -------
    dict
        Method → `Arm` with the chosen settings.

    Raises
    ------
    FileNotFoundError
        If there is no search in the folder.
    ValueError
        If the search is not finished, if a file is damaged, or if a method is your own.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=40, test_size=16)
    >>> _ = pckd.fit("resnet8", data, epochs=1, out="teacher", progress=False)
    >>> from pckd_nb.experiments import Search, chosen_arms, parse_arm, run_search
    >>> recipe, sizes = pckd.get_recipe("classroom", epochs=1), {"train_size": 40, "test_size": 16}
    >>> search = Search(
    ...     "digits", "teacher", "resnet8", [parse_arm("kd")], "search", trials=1, val=0.25, recipe=recipe,
    ...     data_options=sizes,
    ... )
    >>> _ = run_search(search, progress=False, print_fn=lambda line: None)
    >>> str(chosen_arms("search")["kd"])
    'kd'
    """
    folder, record = user_path(folder, "folder"), read_search(folder)
    found = _read(folder / CHOSEN, ChosenRecord) if (folder / CHOSEN).is_file() else None
    if found is None or found.trials != record.trials:
        raise ValueError(f"the search in '{folder}' is not finished: start its command again")
    for entry in found.chosen:
        try:
            find_method(parse_arm(entry.arm).method)
        except ValueError as error:
            raise ValueError(
                f"the search in '{folder}' chose {entry.arm}, and this method is your own: write file.py:{entry.arm} "
                "in the methods of the comparison"
            ) from error
    return {entry.method: parse_arm(entry.arm) for entry in found.chosen}


def check_same_training(folder: str | Path, grid: Grid) -> None:
    """Check that a grid trains as a search did: the same data, teacher, student and recipe.

    Only the split may differ: the grid may train on the validation images, too.

    Parameters
    ----------
    folder : path
        Folder of the search.
    grid : Grid

    Raises
    ------
    FileNotFoundError
        If there is no search in the folder.
    ValueError
        If something differs. The message names the first difference.
    """
    record = read_search(folder)
    data, options = grid.loaded, record.data["options"]
    if options.get("val"):
        if data.val is not None:
            raise ValueError("chosen settings are compared after a training on all training images: use val=0")
        data = data.with_validation(options["val"], options["val_seed"])
    for teacher, student in grid.pairs:
        found = {
            "data": describe_images(data.without_test()),
            "teacher": describe_teacher(teacher),
            "student": student,
            "recipe": grid.recipe.settings(),
        }
        if difference := first_difference(record, found):
            raise ValueError(f"the search in '{folder}' had {difference}: compare with the same settings")


def describe_teacher(folder: Path | None) -> dict[str, Any]:
    """Return the name of a teacher's network, and the fingerprint of its weights.

    Parameters
    ----------
    folder : Path or None
        Run folder of the teacher.

    Returns
    -------
    dict
        Both are None without a teacher.
    """
    if folder is None:
        return {"name": None, "fingerprint": None}
    settings = runs.read_settings(folder)
    return {"name": settings["model"]["name"], "fingerprint": settings.get("fingerprint")}


def describe_images(data: Dataset) -> dict[str, Any]:
    """Return name, options and fingerprint of a data set.

    Parameters
    ----------
    data : Dataset

    Returns
    -------
    dict
    """
    return {"name": data.name, "options": data.options, "fingerprint": data.fingerprint}


def first_difference(recorded: SearchRecord, found: dict[str, Any]) -> str:
    """Return the first entry in which a training differs from a search.

    Parameters
    ----------
    recorded : SearchRecord
    found : dict
        Some entries of a `SearchRecord`. If the fingerprints of the data are equal, their names may differ: a path may
        differ on another machine.

    Returns
    -------
    str
        Such as "recipe.epochs 5, not 6". Empty if there is no difference.
    """
    names = set(found)
    if recorded.data["fingerprint"] == found["data"]["fingerprint"]:
        names.remove("data")
    old = _flatten(recorded.model_dump(include=names))
    new = _flatten(json.loads(json.dumps({name: value for name, value in found.items() if name in names})))
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            return f"{name} {old.get(name, 'not set')}, not {new.get(name, 'missing')}"
    return ""


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict as one dict whose keys are joined with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
