"""How `distill` handles a run folder: check, lock, start or resume, and clean up after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from .. import files, ranks, resuming, runs
from ..config import RunConfig
from ..data.streaming import explain_worker_errors
from ..paths import user_path
from ..runs import Run
from .task import Task


def require_folder(out: str | Path | None, *, resume: bool, overwrite: bool) -> Path | None:
    """Return the run folder of a training as a path.

    Parameters
    ----------
    out : path, optional
    resume, overwrite : bool
        As in `distill`.

    Returns
    -------
    Path or None
        None if the run is kept in memory.

    Raises
    ------
    ValueError
        If `resume` or `overwrite` is set without a run folder, or if both are set.
    TypeError
        If an argument has the wrong type.
    """
    resuming.check_flags(resume=resume, overwrite=overwrite)
    if out is None and (resume or overwrite):
        raise ValueError(f"{'resume' if resume else 'overwrite'} needs a run folder: pass out=…")
    return None if out is None else user_path(out, "out")


def require_cache_folder(teacher_cache: str | Path | None) -> Path | None:
    """Return the folder of the teacher cache as a path.

    Parameters
    ----------
    teacher_cache : path, optional

    Returns
    -------
    Path or None

    Raises
    ------
    OSError
        If it is a file, or cannot be written to.
    """
    if teacher_cache is None:
        return None
    files.check_writable(folder := user_path(teacher_cache, "teacher_cache"))
    return folder


def check_output_folder(out: str | Path, task: Task, *, resume: bool, overwrite: bool) -> Path:
    """Check that the run of a task may be written to a folder.

    Parameters
    ----------
    out : path
    task : Task
    resume, overwrite : bool
        As in `distill`.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    ValueError
        If the run of the teacher would be overwritten.
    OSError
        As in `resuming.check_run_folder`.
    """
    run = task.teacher_run
    if overwrite and run and run.path and is_same_folder(run.path, out):
        raise ValueError(f"'{out}' is the run folder of the teacher and would be overwritten: choose another out")
    return resuming.check_run_folder(out, resume=resume, overwrite=overwrite)


def is_same_folder(path: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same folder. Links are followed."""
    return user_path(path).resolve() == user_path(other).resolve()


@contextmanager
def lock_run_folder(folder: str | Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Lock a run folder, so that no other process trains in it during the block.

    Parameters
    ----------
    folder : path
    resume, overwrite : bool
        As in `distill`.

    Raises
    ------
    BlockingIOError
        If another process has locked the folder.
    """
    with files.locked(Path(folder)):
        # check again, because another process could change the folder after the first check
        resuming.check_run_folder(folder, resume=resume, overwrite=overwrite)
        yield


def load_finished_run(folder: Path, config: RunConfig) -> Run | None:
    """Load the run in a folder if it is finished.

    Parameters
    ----------
    folder : Path
    config : RunConfig
        Settings of the training that is about to start. If image files have changed since the run was started, this
        function records the changes in `config.data.repaired`, see `resuming.check_run_has_same_settings`.

    Returns
    -------
    Run or None
        None if there is no run, or if the run must be continued.

    Raises
    ------
    ValueError
        If the run has other settings than `config`, or if its weights or its checkpoint are missing.
    """
    if not (folder / "run.json").exists():
        return None
    repaired = resuming.check_run_has_same_settings(folder, config.dump())
    status = runs.read_settings(folder)["status"]
    if repaired and resuming.has_checkpoint(folder):
        config.data.repaired = repaired
    if status == "interrupted" and not resuming.has_checkpoint(folder):
        raise ValueError(f"'{folder}' was interrupted, and its checkpoint is missing: start again with overwrite=True")
    if status != "finished":
        return None
    run = runs.load_run(folder)
    if not run.student_state:
        raise ValueError(f"the finished run in '{folder}' was saved without weights: choose another folder")
    resuming.remove_checkpoints(folder)
    return run


def read_checkpoint_or_start(folder: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """Read the checkpoint of a run that is resumed, or start a new run in the folder.

    Parameters
    ----------
    folder : Path
    config : RunConfig
    resume : bool

    Returns
    -------
    dict or None
        The checkpoint. None if a new run was started.
    """
    if resume and resuming.has_checkpoint(folder):
        return resuming.read_checkpoint(folder)
    resuming.start_run(folder, config.dump())
    return None


@contextmanager
def clean_up_after_errors(folder: Path | None, fabric: Fabric) -> Iterator[None]:
    """After an error in the block, remove a run that cannot be resumed, or say in the message how to resume it.

    Parameters
    ----------
    folder : Path, optional
        The run folder.
    fabric : Fabric

    Raises
    ------
    ConnectionError
        If another process of this training has ended.
    """
    try:
        with explain_worker_errors():
            yield
    except BaseException as error:
        with suppress(OSError):  # an error here must not hide the first one
            if folder and not resuming.can_be_resumed(folder):
                resuming.remove_run(folder)
            elif folder and isinstance(error, OSError) and error.strerror and resuming.has_checkpoint(folder):
                error.strerror += "; the last checkpoint is unchanged, resume=True continues from it"
        if fabric.world_size > 1 and isinstance(error, RuntimeError) and ranks.is_lost_rank(error):
            raise ConnectionError(
                "another process of this training has ended: start the training again with resume=True"
            ) from error
        raise
