"""Train the points of a grid on this machine: one after the other, or several at the same time with joblib.

A worker process that is killed does not lose its point: joblib starts new processes, and the run is resumed from its
last checkpoint. All processes of a command share one temporary folder. Its files tell them to stop, which points are
being trained, and which GPU is taken.
"""

import hashlib
import os
import pickle
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import joblib
import torch
from filelock import FileLock, Timeout
from joblib.externals.loky import get_reusable_executor

from ..messages import one_line
from .grid import Grid, Point

MAX_RETRIES = 2  # of a point whose process was killed
MAX_WAIT = 120  # seconds; so long a run folder may stay locked after its process has ended, on a network file system
SECONDS_BETWEEN_LOOKS = 0.2
# Errors whose message explains itself. Messages of other errors need the name of the error's class.
PLAIN_ERRORS = FloatingPointError, MemoryError, OSError, RuntimeError, ValueError
TAKEN: list[FileLock] = []  # the GPU of this process; the operating system releases the lock when the process ends

# A worker whose memory has grown is replaced when it has finished its point. This is no reason to worry.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")


class Outcome(NamedTuple):
    """What happened in the training of one point.

    Parameters
    ----------
    point : Point
    accuracy : float
        Top-1 accuracy in percent. NaN if the point failed.
    seconds : float
        Seconds that the training took.
    failure : str
        The error message. Empty if the training did not fail.
    """

    point: Point
    accuracy: float
    seconds: float
    failure: str = ""


def train_point(
    grid: Grid,
    point: Point,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
    max_wait: float = 0,
) -> Outcome | None:
    """Train a point. An error is part of the outcome, so that the other points are still trained.

    Parameters
    ----------
    grid : Grid
    point : Point
    progress : bool
        Whether to show a progress bar.
    stop : callable, optional
        The training is interrupted when it returns True.
    max_wait : float
        Seconds to wait if another process uses the run folder. It may be a process that is just ending.

    Returns
    -------
    Outcome or None
        None if the training was interrupted.
    """
    started = time.monotonic()
    while not (stop and stop()):
        try:
            run = grid.train(point, progress, stop)
            return Outcome(point, run.accuracy, time.monotonic() - started) if run.finished else None
        except Exception as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() - started > max_wait:
                return Outcome(point, float("nan"), time.monotonic() - started, describe_error(error))
            time.sleep(1)
    return None


def describe_error(error: Exception) -> str:
    """Return an error as one line.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    str
    """
    text, name = one_line(error), type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return text if isinstance(error, PLAIN_ERRORS) or text == name else f"{name}: {text}"


def train_in_turn(grid: Grid, points: Sequence[Point], progress: bool) -> Iterator[Outcome]:
    """Train points one after the other in this process.

    Parameters
    ----------
    grid : Grid
    points : sequence of Point
    progress : bool
        Whether to show a progress bar.

    Yields
    ------
    Outcome

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when the run is saved.
    """
    for point in points:
        if (outcome := train_point(grid, point, progress)) is None:
            raise KeyboardInterrupt
        yield outcome


def train_in_processes(grid: Grid, points: Sequence[Point], jobs: int) -> Iterator[Outcome]:
    """Train several points at the same time, each in its own process.

    A point whose process was killed is trained again from its last checkpoint, at most `MAX_RETRIES` times. joblib then
    also kills the other processes. So the last attempt of a point has the machine for itself.

    Parameters
    ----------
    grid : Grid
    points : sequence of Point
    jobs : int
        Number of processes, at least 2.

    Yields
    ------
    Outcome
        In the order in which the points end.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when all runs are saved.
    RuntimeError
        If processes end before they train anything.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    unfinished, kills = list(points), Counter[Point]()
    pickled = pickle.dumps(grid)
    with tempfile.TemporaryDirectory(prefix="pckd-nb-") as folder:
        shared = SharedFolder(Path(folder))
        try:
            with stop_on_ctrl_c(shared.ask_to_stop):
                while unfinished and not shared.must_stop():
                    batch = [point for point in unfinished if kills[point] < MAX_RETRIES] or unfinished[:1]
                    pool = joblib.Parallel(
                        jobs, "loky", return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs",
                        initializer=start_worker, initargs=(os.getpid(), threads, shared, assign_gpus(grid, jobs)),
                    )  # fmt: skip
                    tasks = (joblib.delayed(train_in_worker)(pickled, point, shared) for point in batch)
                    try:
                        for outcome in pool(tasks):
                            if outcome:
                                unfinished.remove(outcome.point)
                                yield outcome
                    except BrokenProcessPool:
                        killed = shared.pop_started(unfinished)
                        if not killed and not shared.must_stop():
                            raise RuntimeError(
                                "the processes of this grid end before they train anything: try it with jobs=1"
                            ) from None
                        kills.update(killed)
                        for point in killed:
                            if kills[point] > MAX_RETRIES:
                                unfinished.remove(point)
                                failure = f"its process was killed {kills[point]} times: it may need too much memory"
                                yield Outcome(point, float("nan"), 0, failure)
        finally:
            get_reusable_executor().shutdown(wait=True)  # joblib would keep the processes for later
    if unfinished:
        raise KeyboardInterrupt


@contextmanager
def stop_on_ctrl_c(ask_to_stop: Callable[[], object]) -> Iterator[None]:
    """Call a function at the first Ctrl-C inside the block. The second Ctrl-C raises KeyboardInterrupt.

    Parameters
    ----------
    ask_to_stop : callable
        It is called in a thread of its own, because a signal can interrupt code that holds a lock.
    """
    thread = threading.Thread(target=ask_to_stop, daemon=True)

    def handle(number: int, frame: FrameType | None) -> None:
        if thread.ident is not None:
            raise KeyboardInterrupt
        thread.start()

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class SharedFolder(NamedTuple):
    """The temporary folder that the processes of one command share.

    Parameters
    ----------
    folder : Path
    """

    folder: Path

    def ask_to_stop(self) -> None:
        """Ask all processes to stop after their step."""
        (self.folder / "stop").touch()

    def must_stop(self) -> bool:
        """Return whether the processes are asked to stop."""
        return (self.folder / "stop").exists()

    @contextmanager
    def started(self, point: Point) -> Iterator[None]:
        """Mark a point as being trained inside the block. If the process is killed, the mark stays.

        Parameters
        ----------
        point : Point
        """
        mark = self._mark(point)
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()

    def pop_started(self, points: Sequence[Point]) -> list[Point]:
        """Return the points whose process was killed, and remove their marks.

        Parameters
        ----------
        points : sequence of Point

        Returns
        -------
        list of Point
        """
        killed = [point for point in points if self._mark(point).exists()]
        for point in killed:
            self._mark(point).unlink()
        return killed

    def _mark(self, point: Point) -> Path:
        return self.folder / f"started-{hashlib.sha256(bytes(point.folder)).hexdigest()[:32]}"

    def take_gpu(self, gpus: Sequence[str]) -> str | None:
        """Choose a GPU for this process that no other process has taken, until this process ends.

        Parameters
        ----------
        gpus : sequence of str
            One entry per process.

        Returns
        -------
        str or None
            None if there is no GPU.
        """
        for number, gpu in enumerate(gpus):
            lock = FileLock(self.folder / f"gpu{number}")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            TAKEN.append(lock)
            return gpu
        return None


def assign_gpus(grid: Grid, jobs: int) -> list[str]:
    """Return the GPU of every process: each process uses one. There are none if the grid is trained on the CPU.

    Parameters
    ----------
    grid : Grid
    jobs : int
        Number of processes.

    Returns
    -------
    list of str
        Values of CUDA_VISIBLE_DEVICES. If there are more processes than GPUs, some are there several times.
    """
    if grid.options.get("accelerator", "auto") not in ("auto", "cuda", "gpu") or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [gpus[number % len(gpus)] for number in range(jobs)]


def start_worker(parent: int, threads: int, shared: SharedFolder, gpus: Sequence[str]) -> None:
    """Prepare a new process of joblib.

    Parameters
    ----------
    parent : int
        Number of the process of the command.
    threads : int
        Threads that torch may use.
    shared : SharedFolder
    gpus : sequence of str
        See `assign_gpus`.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in the terminal then reaches only the process of the command
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    if (gpu := shared.take_gpu(gpus)) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends: another command may already train in the same folders.

    Parameters
    ----------
    parent : int
        Number of the parent process.
    """
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def train_in_worker(pickled: bytes, point: Point, shared: SharedFolder) -> Outcome | None:
    """Train a point in a process of joblib.

    Parameters
    ----------
    pickled : bytes
        The grid.
    point : Point
    shared : SharedFolder

    Returns
    -------
    Outcome or None
        None if the training was interrupted.
    """
    with shared.started(point):
        return train_point(unpickle_grid(pickled), point, stop=shared.must_stop, max_wait=MAX_WAIT)


@lru_cache(maxsize=1)
def unpickle_grid(pickled: bytes) -> Grid:
    """Return the grid that this process trains. It is the same object for every point, so its data are loaded once.

    Parameters
    ----------
    pickled : bytes
        The grid, as another process of this command has pickled it.

    Returns
    -------
    Grid
    """
    grid: Grid = pickle.loads(pickled)
    return grid
