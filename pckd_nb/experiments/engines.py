"""Train runs on this machine: one after the other, or several at the same time with joblib.

A worker process that is killed does not lose its run: joblib starts new processes, and the run is resumed from its
last checkpoint. All processes of a command share one temporary folder. Its files tell them to stop, which runs are
being trained, and which GPU is taken.
"""

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
from functools import lru_cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import joblib
import torch
from filelock import FileLock, Timeout
from joblib.externals.loky import get_reusable_executor

from ..messages import error_message, one_line
from .grid import Grid, Point

MAX_RETRIES = 2  # of a point whose process was killed
MAX_WAIT = 120  # seconds; so long a run folder may stay locked after its process has ended, on a network file system
SECONDS_BETWEEN_LOOKS = 0.2
# Errors whose message explains itself. Messages of other errors need the name of the error's class.
PLAIN_ERRORS = FloatingPointError, MemoryError, OSError, RuntimeError, ValueError
KILLED = f"its process was killed {MAX_RETRIES + 1} times: it may need too much memory"
TAKEN: list[FileLock] = []  # the GPU of this process; the operating system releases the lock when the process ends

# A worker whose memory has grown is replaced when it has finished its point. This is no reason to worry.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")


Item = TypeVar("Item")
Result = TypeVar("Result")


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
    text = error_message(error) if isinstance(error, OSError) else one_line(error)
    name = type(error).__name__
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
    KeyboardInterrupt, ChildProcessError
        As in `run_in_processes`.
    """
    task = partial(train_point, grid, max_wait=MAX_WAIT)
    for point, outcome in run_in_processes(task, points, jobs, assign_gpus(grid, jobs)):
        yield outcome or Outcome(point, float("nan"), 0, KILLED)


def run_in_processes(
    task: Callable[..., Result | None], items: Sequence[Item], jobs: int, gpus: Sequence[str]
) -> Iterator[tuple[Item, Result | None]]:
    """Call a function for several items at the same time, each in its own process.

    An item whose process was killed is tried again, at most `MAX_RETRIES` times. joblib then also kills the other
    processes. So the last attempt of an item has the machine for itself. After an error of the function, the other
    processes are asked to stop.

    Parameters
    ----------
    task : callable
        Called as `task(item, stop=…)`. It ends early and returns None if `stop()` returns True. It is pickled, and each
        process unpickles it once.
    items : sequence
        Each item occurs once.
    jobs : int
        Number of processes, at least 2.
    gpus : sequence of str
        See `assign_gpus`.

    Yields
    ------
    item : object
    result : object
        What the function returned. None if its process was killed too often.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when all processes have stopped.
    ChildProcessError
        If processes end before they call the function.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    unfinished, kills = dict(enumerate(items)), Counter[int]()
    pickled = pickle.dumps(task)
    with tempfile.TemporaryDirectory(prefix="pckd-nb-") as folder:
        shared = SharedFolder(Path(folder))
        try:
            with stop_on_ctrl_c(shared.ask_to_stop):
                while unfinished and not shared.must_stop():
                    batch = [number for number in unfinished if kills[number] < MAX_RETRIES] or list(unfinished)[:1]
                    pool = joblib.Parallel(
                        jobs, "loky", return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs",
                        initializer=start_worker, initargs=(os.getpid(), threads, shared, gpus),
                    )  # fmt: skip
                    calls = (joblib.delayed(_call)(pickled, number, unfinished[number], shared) for number in batch)
                    try:
                        for number, result in pool(calls):
                            if result is not None:
                                yield unfinished.pop(number), result
                    except BrokenProcessPool:
                        killed = shared.pop_started(list(unfinished))
                        if not killed and not shared.must_stop():
                            raise ChildProcessError(
                                "the processes of this command end before they train anything: try it with jobs=1"
                            ) from None
                        kills.update(killed)
                        for number in killed:
                            if kills[number] > MAX_RETRIES:
                                yield unfinished.pop(number), None
        finally:
            shared.ask_to_stop()
            get_reusable_executor().shutdown(wait=True)  # joblib would keep the processes for later
    if unfinished:
        raise KeyboardInterrupt


def _call(pickled: bytes, number: int, item: Item, shared: "SharedFolder") -> tuple[int, Any]:
    """Call the function of `run_in_processes` in a process of joblib."""
    with shared.started(number):
        return number, unpickle(pickled)(item, stop=shared.must_stop)


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
    def started(self, number: int) -> Iterator[None]:
        """Mark an item as being processed inside the block. If the process is killed, the mark stays.

        Parameters
        ----------
        number : int
            Number of the item.
        """
        mark = self._mark(number)
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()

    def pop_started(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers of the items whose process was killed, and remove their marks.

        Parameters
        ----------
        numbers : sequence of int

        Returns
        -------
        list of int
        """
        killed = [number for number in numbers if self._mark(number).exists()]
        for number in killed:
            self._mark(number).unlink()
        return killed

    def _mark(self, number: int) -> Path:
        return self.folder / f"started-{number}"

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
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"


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


@lru_cache(maxsize=1)
def unpickle(pickled: bytes) -> Any:
    """Return a pickled object. For the same bytes it is the same object, so a grid loads its data once per process.

    Parameters
    ----------
    pickled : bytes
        From another process of this command.

    Returns
    -------
    object
    """
    return pickle.loads(pickled)
