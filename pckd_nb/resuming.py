"""A run folder while its run trains: whether it may be written, how it begins, its checkpoints, how it goes on.

`prepare` says whether a run may be written, `files.locked` holds the folder, `begin` starts in it; checkpoint.pt has
all that going on needs, and previous.pt is the one before it, in case that can't be read.
"""

import itertools
import json
import math
import os
import textwrap
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from . import files
from .data.streaming import READING_RULES
from .downloads import one_line
from .methods import default_settings
from .paths import user_path
from .recipes import Recipe
from .runs import RUN_FILES, data_fingerprint, read_settings, values_of, write_settings
from .validation import check

CHECKPOINT, PREVIOUS = "checkpoint.pt", "previous.pt"
MAX_REPAIRED = 10  # image files; more changed ones are another data set
OF_A_RUN = {*RUN_FILES, CHECKPOINT, PREVIOUS}


def prepare(folder: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """Check, before anything costs time, that a run may be written here. Nothing is made or removed yet.

    Raises FileExistsError where something is there and neither flag is given, or where overwrite would replace
    what is no run; PermissionError where nothing can be written; NotADirectoryError on a file in the way,
    FileNotFoundError on a link to nothing.
    """
    folder = user_path(folder, "out")
    check_flags(resume=resume, overwrite=overwrite)
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"'{folder}' is a link to a place that is not there")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file; a run needs a folder")
    if folder.is_dir() and any(not files.LEFT.fullmatch(path.name) for path in folder.iterdir()):
        if not (folder / "run.json").is_file():
            raise FileExistsError(f"'{folder}' exists and is not a run; choose another folder")
        if not (resume or overwrite):
            how = "resume=True goes on with it, overwrite=True replaces it"
            raise FileExistsError(f"run folder '{folder}' exists: {how}")
    files.check_writable(folder)
    return folder


def check_flags(*, resume: bool, overwrite: bool) -> None:
    """Raise TypeError unless both are truth values, and ValueError if both are True."""
    check(bool, resume=resume, overwrite=overwrite)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: go on with the run, or replace it?")


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what begins in a `locked` folder that `prepare` has passed, and remove the run that was there. In this
    order, so that a kill in between leaves that one, or one to begin again."""
    remove_checkpoints(folder)
    write_settings(folder, settings)
    clear(folder, but="run.json")


def clear(folder: Path, but: str = "") -> None:
    """Remove what a run has left in a `locked` folder, and nothing else that lies there: its settings last, as
    `prepare` refuses files that are no run."""
    for path in [] if files.gone(folder) else sorted(folder.iterdir(), key=lambda path: path.name == "run.json"):
        if _of_a_run(path) and path.name not in (files.LOCK, but):
            path.unlink()


def _of_a_run(path: Path) -> bool:
    file = path.is_symlink() or not path.is_dir()
    return file and (path.name in OF_A_RUN or bool(files.LEFT.fullmatch(path.name)))


def worth_keeping(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from, or a finished run."""
    try:
        return has_checkpoint(folder) or read_settings(folder)["status"] == "finished"
    except (OSError, ValueError, KeyError):
        return False


def check_same(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Check that the run in a folder has these settings, up to a few image files that were repaired since.

    A finished run may have been trained on pictures that an earlier version drew, see `runs.data_fingerprint`. A run to
    go on with may not.

    Parameters
    ----------
    folder : Path
    settings : dict
        What run.json would say.

    Returns
    -------
    list of dict
        What run.json has to say of repaired files, under "repaired" of its data. A new repair is warned of.

    Raises
    ------
    ValueError
        If a setting differs. The message names the first one.
    """
    recorded = read_settings(folder)
    old, new = recorded["data"], settings["data"]
    prints, prints_now = old.get("files"), new.get("files")
    repaired, why = list(old.get("repaired", [])), ""
    if prints and prints_now and old["fingerprint"] != new["fingerprint"]:
        changed, limit = _changed_files(prints, prints_now), _most_repaired(new)
        if changed is None:
            why = " (other file names, labels, classes or image size)"
        elif (total := changed + sum(each["files"] for each in repaired)) > limit:
            why = f" ({total} or more image files changed; up to {limit} may be repaired)"
        else:
            repaired.append({"fingerprint": old["fingerprint"], "files": changed})
            settings = {**settings, "data": {**new, "fingerprint": old["fingerprint"]}}
            warnings.warn(
                f"{changed} or more image files changed since '{folder}' was started: its run.json notes it",
                stacklevel=4,
            )
    elif prints_now and (prints or {}).get("reading") != prints_now["reading"]:
        message = (
            f"'{folder}' was started by a version that read image files in another way; now they are {READING_RULES}"
        )
        if recorded["status"] != "finished":
            raise ValueError(f"{message}: overwrite the run")
        if old["fingerprint"] == new["fingerprint"]:
            warnings.warn(message, stacklevel=4)
    data_of = data_fingerprint if recorded["status"] == "finished" else lambda about: about["data"]["fingerprint"]

    def identity(about: dict[str, Any]) -> dict[str, Any]:
        # what an earlier version did not have yet has its default there
        method = {**default_settings(about["method"]["name"]), **values_of(about["method"]["settings"])}
        recipe = {**Recipe("", 1).settings(), **about["recipe"]}
        teacher = (about["teacher"] or {}).get("fingerprint")
        named = {"method": about["method"]["name"], "student": about["model"]["name"], "teacher": teacher}
        if "code" in recorded["method"]:
            named["code of the method"] = about["method"].get("code")
        named["callbacks"] = about.get("callbacks", [])
        for who in ("model", "teacher"):
            for what in ("code", "preprocessing"):
                if what in ((recorded[who] or {}) | (settings[who] or {})):
                    named[f"{what} of the {'student' if who == 'model' else who}"] = (about[who] or {}).get(what)
        if about["teacher"]:  # before it was recorded, this followed from the precision
            named["exact teacher"] = about["teacher"].get("exact", about["precision"] == "32-true")
        named["first weights"] = about["model"]["start"]
        rest = {"data": data_of(about), "seed": about["seed"], "precision": about["precision"]}
        rest["compile"] = about.get("compile", False)
        known: dict[str, Any] = json.loads(json.dumps({**recipe, **named, **method, **rest}))
        return known

    before, now = identity(recorded), identity(settings)
    for name in now:
        if before.get(name) != now[name]:
            raise ValueError(
                f"'{folder}' was started with {name} {before.get(name)}, not {now[name]}{why * (name == 'data')}: "
                "resume with the same settings, choose another folder, or overwrite it"
            )
    return repaired


def _changed_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> int | None:
    """Return at least how many files have another size, or None if more than the sizes differ."""
    if any(before[name] != now[name] for name in ("reading", "names")):
        return None
    parts = [textwrap.wrap(prints["sizes"], 4) for prints in (before, now)]
    return [one == other for one, other in itertools.zip_longest(*parts)].count(False)


def _most_repaired(data: Mapping[str, Any]) -> int:
    """Return how many image files may change in a run: 1 % of them, but at least one and at most `MAX_REPAIRED`."""
    images: int = sum(data.get(f"{name}_images", 0) for name in ("train", "test", "val"))
    return min(MAX_REPAIRED, math.ceil(images / 100))


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint, the last one or the one before it."""
    return (folder / CHECKPOINT).exists() or (folder / PREVIOUS).exists()


def remove_checkpoints(folder: Path) -> None:
    """Remove both, if they are there."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def check_state(state: dict[str, Any]) -> None:
    """Raises TypeError unless a checkpoint with this in it could be read again: nothing but tensors, numbers, text and
    lists and dicts of them."""
    buffer = BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        raise TypeError(
            "optimizer and schedule must keep nothing but tensors and plain numbers, or no checkpoint can be read: "
            f"{one_line(error)}"
        ) from error


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Put a new checkpoint in place of the last one, which becomes the previous one. Raises OSError as `write`."""
    buffer = BytesIO()  # torch would make a RuntimeError of a disk that is full
    torch.save(state, buffer)
    path = folder / CHECKPOINT
    files.write(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()), keep=folder / PREVIOUS)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The last checkpoint, on the CPU. Where that is missing or damaged, the previous one, with a warning; it takes
    its place, so that the next one to be written does not push it out.

    Raises ValueError where neither can be read.
    """
    reasons = {}
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            with ZipFile(path) as archive:  # whose sums torch does not look at
                if broken := archive.testzip():
                    raise BadZipFile(f"{broken} is not what was written")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError("it is no checkpoint")
        except FileNotFoundError:  # a kill between the two renames of `write` leaves none
            reasons[path] = "it is missing"
            continue
        except UnpicklingError:  # of which torch says at length how to load it all the same
            reasons[path] = "it is damaged, or holds more than weights"
            continue
        except Exception as error:  # whoever made the file decides what goes wrong
            reasons[path] = one_line(error)
            continue
        for damaged, reason in reasons.items():
            warnings.warn(f"'{damaged}' can't be read ({reason}): the one before it is taken", stacklevel=2)
            os.replace(path, damaged)
        return state
    path, reason = next(iter(reasons.items()))
    raise ValueError(f"'{path}' can't be read: {reason}; overwrite the run")
