"""What `distill` does with a run folder: check, lock, start or resume, and clean up after an error."""

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
    """Return the run folder that the caller gave; None if the run is kept in memory.

    Raises ValueError for `resume` or `overwrite` without a run folder, or for both. Raises TypeError for other types.
    """
    resuming.check_flags(resume=resume, overwrite=overwrite)
    if out is None and (resume or overwrite):
        raise ValueError(f"{'resume' if resume else 'overwrite'} needs out, the run folder")
    return None if out is None else user_path(out, "out")


def require_cache_folder(teacher_cache: str | Path | None) -> Path | None:
    """Return the folder of the teacher cache, or None. Raises OSError if it cannot be a folder that is written to."""
    if teacher_cache is None:
        return None
    files.check_writable(folder := user_path(teacher_cache, "teacher_cache"))
    return folder


def claim(out: str | Path, task: Task, *, resume: bool, overwrite: bool) -> Path:
    """Return the run folder, if the run may be written there. Raises what `resuming.prepare` does."""
    run = task.teacher_run
    if overwrite and run and run.path and same_folder(run.path, out):
        raise ValueError(f"the teacher's run lies in '{out}', which would be overwritten: choose another folder")
    return resuming.prepare(out, resume=resume, overwrite=overwrite)


def same_folder(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to one folder."""
    return user_path(one).resolve() == user_path(other).resolve()


@contextmanager
def hold(folder: str | Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Within the block no other process trains in `folder`. Raises BlockingIOError if one does already."""
    with files.locked(Path(folder)):
        # once more, now that no other process can change it
        resuming.prepare(folder, resume=resume, overwrite=overwrite)
        yield


def finished_run(folder: Path, config: RunConfig) -> Run | None:
    """Return the run in a folder, if it is finished; None if there is none, or one to go on with.

    `config` receives what the record says of repaired image files.

    Raises ValueError if the run has other settings than `config`, or if its weights or checkpoint are missing.
    """
    if not (folder / "run.json").exists():
        return None
    repaired = resuming.check_same(folder, config.dump())
    status = runs.read_settings(folder)["status"]
    if repaired and resuming.has_checkpoint(folder):
        config.data.repaired = repaired
    if status == "interrupted" and not resuming.has_checkpoint(folder):
        raise ValueError(f"'{folder}' was interrupted, and its checkpoint is missing: overwrite the run")
    if status != "finished":
        return None
    run = runs.load_run(folder)
    if not run.student_state:
        raise ValueError(f"'{folder}' is a finished record without weights: choose another folder")
    resuming.remove_checkpoints(folder)
    return run


def begin(folder: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """Return the checkpoint to go on from; or begin the run in `folder`, and return None."""
    if resume and resuming.has_checkpoint(folder):
        return resuming.read_checkpoint(folder)
    resuming.begin(folder, config.dump())
    return None


@contextmanager
def tidied_after_errors(folder: Path | None, fabric: Fabric) -> Iterator[None]:
    """After an error in the block, leave a checkpoint to go on from, or nothing; and say what is left."""
    try:
        with explain_worker_errors():
            yield
    except BaseException as error:
        with suppress(OSError):
            if folder and not resuming.worth_keeping(folder):
                resuming.clear(folder)
            elif folder and isinstance(error, OSError) and error.strerror and resuming.has_checkpoint(folder):
                error.strerror += "; the last checkpoint is as it was, resume=True goes on from it"
        if fabric.world_size > 1 and isinstance(error, RuntimeError) and ranks.lost(error):
            raise ConnectionError(
                "another process of this training is gone: start the training again with resume=True"
            ) from error
        raise
