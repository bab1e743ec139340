"""The folder of a run that is being trained: checks before the start, checkpoints, and resuming.

`check_run_folder` checks whether a run may be written to a folder. `files.locked` locks the folder, and `start_run`
starts the run in it. checkpoint.pt contains everything that resuming needs. previous.pt is the checkpoint before it, in
case checkpoint.pt cannot be read.
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
from .messages import one_line
from .methods import default_settings
from .paths import user_path
from .recipes import Recipe
from .runs import RUN_FILES, data_fingerprint, read_settings, setting_values, write_settings
from .validation import check

CHECKPOINT, PREVIOUS = "checkpoint.pt", "previous.pt"
ALL_RUN_FILES = {*RUN_FILES, CHECKPOINT, PREVIOUS}
MAX_REPAIRED_FILES = 10  # if more image files have changed, the data set counts as another one


def check_run_folder(folder: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """Check that a run may be written to a folder. Nothing is created or removed.

    Parameters
    ----------
    folder : path
    resume, overwrite : bool
        As in `distill`.

    Returns
    -------
    Path

    Raises
    ------
    FileExistsError
        If the folder contains a run and neither flag is set, or if it contains something that is not a run.
    NotADirectoryError
        If the folder, or a folder above it, is a file.
    FileNotFoundError
        If the folder is a link to a path that does not exist.
    PermissionError
        If the folder cannot be written to.
    """
    folder = user_path(folder, "out")
    check_flags(resume=resume, overwrite=overwrite)
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"'{folder}' is a link to a path that does not exist")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file; a run needs a folder")
    if folder.is_dir() and any(not files.LEFTOVERS.fullmatch(path.name) for path in folder.iterdir()):
        if not (folder / "run.json").is_file():
            raise FileExistsError(f"'{folder}' exists and is not a run; choose another folder")
        if not (resume or overwrite):
            hint = "resume=True continues the run, overwrite=True replaces it"
            raise FileExistsError(f"run folder '{folder}' exists: {hint}")
    files.check_writable(folder)
    return folder


def check_flags(*, resume: bool, overwrite: bool) -> None:
    """Check two arguments of `distill`.

    Parameters
    ----------
    resume, overwrite : bool

    Raises
    ------
    TypeError
        If one of them is not a bool.
    ValueError
        If both are True.
    """
    check(bool, resume=resume, overwrite=overwrite)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: resume continues the run, overwrite replaces it")


def start_run(folder: Path, settings: dict[str, Any]) -> None:
    """Remove the files of the run that was there before, and write the run.json of a new run.

    The checkpoints are removed first, so that the new run can never be resumed from an old checkpoint. run.json is
    replaced next, and the other files are removed last. So the folder counts as a run at any time.

    Parameters
    ----------
    folder : Path
        A folder that is locked by `files.locked` and was checked by `check_run_folder`.
    settings : dict
        The content of run.json.
    """
    remove_checkpoints(folder)
    write_settings(folder, settings)
    remove_run(folder, keep="run.json")


def remove_run(folder: Path, keep: str = "") -> None:
    """Remove the files of a run, and no other files in its folder.

    run.json is removed last, because `check_run_folder` rejects a folder that has files but no run.json.

    Parameters
    ----------
    folder : Path
        A folder that is locked by `files.locked`.
    keep : str
        Name of a file to keep.
    """
    if files.is_gone(folder):
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "run.json"):
        if _belongs_to_run(path) and path.name not in (files.LOCK, keep):
            path.unlink()


def _belongs_to_run(path: Path) -> bool:
    is_file = path.is_symlink() or not path.is_dir()
    return is_file and (path.name in ALL_RUN_FILES or bool(files.LEFTOVERS.fullmatch(path.name)))


def can_be_resumed(folder: Path) -> bool:
    """Return whether `distill` accepts the run with resume=True: it has a checkpoint, or it is finished."""
    try:
        return has_checkpoint(folder) or read_settings(folder)["status"] == "finished"
    except (OSError, ValueError, KeyError):
        return False


def check_run_has_same_settings(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Check that the run in a folder was started with the same settings.

    Two differences of the data are accepted:

    - A few image files have changed, for example because damaged files were repaired.
    - The run is finished, and an earlier version drew its images slightly differently, see `runs.data_fingerprint`.

    Parameters
    ----------
    folder : Path
    settings : dict
        The content of run.json for the training that is about to start.

    Returns
    -------
    list of dict
        All changes of image files since the run was started, for the entry "repaired" of the data in run.json. A change
        that run.json does not have yet gives a warning.

    Raises
    ------
    ValueError
        If a setting differs. The message names the first one.
    """
    recorded = read_settings(folder)
    finished = recorded["status"] == "finished"
    old_data, new_data = recorded["data"], settings["data"]
    old_files, new_files = old_data.get("files"), new_data.get("files")
    repaired, reason = list(old_data.get("repaired", [])), ""
    if old_files and new_files and old_data["fingerprint"] != new_data["fingerprint"]:
        changed, limit = _count_changed_files(old_files, new_files), _max_repaired_files(new_data)
        if changed is None:
            reason = " (other file names, labels, classes or image size)"
        elif (total := changed + sum(repair["files"] for repair in repaired)) > limit:
            reason = f" ({total} or more image files changed; at most {limit} may change)"
        else:
            repaired.append({"fingerprint": old_data["fingerprint"], "files": changed})
            settings = {**settings, "data": {**new_data, "fingerprint": old_data["fingerprint"]}}
            warnings.warn(
                f"{changed} or more image files changed since '{folder}' was started: its run.json records this",
                stacklevel=4,
            )
    elif new_files and (old_files or {}).get("reading") != new_files["reading"]:
        message = f"'{folder}' was started by a version that read image files in another way"
        message += f"; now they are {READING_RULES}"
        if not finished:
            raise ValueError(f"{message}: start again with overwrite=True")
        if old_data["fingerprint"] == new_data["fingerprint"]:
            warnings.warn(message, stacklevel=4)

    # older versions did not record these settings for all networks
    network_settings = [
        (setting, network)
        for network in ("model", "teacher")
        for setting in ("code", "preprocessing")
        if setting in ((recorded[network] or {}) | (settings[network] or {}))
    ]

    def comparable(config: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that must be equal. A setting that an older version did not have gets its default."""
        student, teacher = config["model"], config["teacher"] or {}
        method = {**default_settings(config["method"]["name"]), **setting_values(config["method"]["settings"])}
        recipe = {**Recipe("", 1).settings(), **config["recipe"]}
        values = {"method": config["method"]["name"], "student": student["name"]}
        values["teacher"] = teacher.get("fingerprint")
        if "code" in recorded["method"]:
            values["code of the method"] = config["method"].get("code")
        values["callbacks"] = config.get("callbacks", [])
        for setting, network in network_settings:
            role = "student" if network == "model" else network
            values[f"{setting} of the {role}"] = (config[network] or {}).get(setting)
        if teacher:  # older versions derived "exact" from the precision
            values["exact teacher"] = teacher.get("exact", config["precision"] == "32-true")
        values["initial weights"] = student["start"]
        data = data_fingerprint(config) if finished else config["data"]["fingerprint"]
        rest = {"data": data, "seed": config["seed"], "precision": config["precision"]}
        rest["compile"] = config.get("compile", False)
        # run.json has lists where these settings may have tuples
        as_json: dict[str, Any] = json.loads(json.dumps({**recipe, **values, **method, **rest}))
        return as_json

    old, new = comparable(recorded), comparable(settings)
    for name in new:
        if old.get(name) != new[name]:
            explanation = reason if name == "data" else ""
            raise ValueError(
                f"'{folder}' was started with {name} {old.get(name)}, not {new[name]}{explanation}: "
                "resume with the same settings, choose another folder, or start again with overwrite=True"
            )
    return repaired


def _count_changed_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> int | None:
    """Return a lower bound of the number of files whose size has changed.

    Return None if something else has changed: names, labels, classes, image size, or the way in which files are read.
    """
    if any(before[name] != now[name] for name in ("reading", "names")):
        return None
    # Each 4 digits of "sizes" depend on the sizes of some of the files, see `data.streaming.file_size_fingerprint`.
    old_parts, new_parts = (textwrap.wrap(fingerprints["sizes"], 4) for fingerprints in (before, now))
    return [old == new for old, new in itertools.zip_longest(old_parts, new_parts)].count(False)


def _max_repaired_files(data: Mapping[str, Any]) -> int:
    """Return how many image files may change: 1 % of them, at least one and at most `MAX_REPAIRED_FILES`."""
    images: int = sum(data.get(f"{name}_images", 0) for name in ("train", "test", "val"))
    return min(MAX_REPAIRED_FILES, math.ceil(images / 100))


def has_checkpoint(folder: Path) -> bool:
    """Return whether the folder has a checkpoint, the last one or the one before it."""
    return (folder / CHECKPOINT).exists() or (folder / PREVIOUS).exists()


def remove_checkpoints(folder: Path) -> None:
    """Remove both checkpoints of a run, if they exist."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def check_state(state: dict[str, Any]) -> None:
    """Check that a checkpoint with this content could be read again.

    For safety, checkpoints are read without pickle. They may contain tensors, numbers, text, and lists and dicts of
    these.

    Parameters
    ----------
    state : dict

    Raises
    ------
    TypeError
        If there is anything else in it.
    """
    buffer = BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        raise TypeError(
            "the state_dict of optimizer and schedule may contain only tensors and plain numbers, because checkpoints "
            f"are read without pickle: {one_line(error)}"
        ) from error


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint. The last checkpoint becomes the previous one.

    Parameters
    ----------
    folder : Path
    state : dict
        See `check_state` for what it may contain.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    buffer = BytesIO()  # if torch wrote the file, a full disk would give a RuntimeError instead of an OSError
    torch.save(state, buffer)
    path = folder / CHECKPOINT
    files.write(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()), backup=folder / PREVIOUS)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the last checkpoint of a run.

    If checkpoint.pt is missing or damaged, previous.pt is read, with a warning. previous.pt is then renamed to
    checkpoint.pt. Otherwise the next checkpoint would overwrite it, and it is the only good one.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict
        The state, with its tensors on the CPU.

    Raises
    ------
    ValueError
        If neither file can be read.
    """
    reasons = {}
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            with ZipFile(path) as archive:  # torch does not check the checksums in the file
                if damaged_part := archive.testzip():
                    raise BadZipFile(f"the checksum of {damaged_part} is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError("it is not a checkpoint")
        except FileNotFoundError:  # the process was killed between the two renames of `files.write`
            reasons[path] = "it is missing"
            continue
        except UnpicklingError:  # torch's own message explains how to load unsafe files
            reasons[path] = "it is damaged, or contains more than weights"
            continue
        except Exception as error:  # a damaged file can raise anything
            reasons[path] = one_line(error)
            continue
        for damaged, reason in reasons.items():
            warnings.warn(f"'{damaged}' can't be read ({reason}): the previous checkpoint is used", stacklevel=2)
            os.replace(path, damaged)
        return state
    path, reason = next(iter(reasons.items()))
    raise ValueError(f"'{path}' can't be read: {reason}; start again with overwrite=True")
