"""Train the points of a grid on several machines, with Dask.

`connect` connects to a scheduler that you have started, or submits SLURM jobs whose processes are the workers. Each
worker trains one point at a time. When a worker is lost, Dask gives its point to another one, which resumes the run
from its last checkpoint. All machines must see the same folders.
"""

import logging
import multiprocessing
import os
import pickle
import platform
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import joblib
import torch

from ..data import Streamed
from ..html import counted
from ..launcher import read_slurm_options
from ..messages import one_line
from .engines import MAX_WAIT, Outcome, describe_error, stop_on_ctrl_c, train_point, unpickle
from .grid import Grid, Point

if TYPE_CHECKING:
    import distributed

CONNECT_SECONDS = 10
# Options of SLURMCluster. All others become lines of the job script, such as #SBATCH --gpus=1.
CLUSTER_OPTIONS = "account", "interface", "local_directory", "log_directory", "memory", "walltime"
ONE_POINT = threading.Lock()  # trainings in two threads of a process would share their random numbers


class WorkerSetup(NamedTuple):
    """What a worker needs besides the point.

    Parameters
    ----------
    grid : bytes
        The pickled grid.
    folder : str
        Current folder of the command. Relative paths start here.
    data_root : str or None
        Value of PCKD_DATA.
    threads : int or None
        Threads that torch may use. None means an equal share of the machine's cores.
    stop_event : str
        Name of the Dask event that asks all workers to stop.
    """

    grid: bytes
    folder: str
    data_root: str | None
    threads: int | None
    stop_event: str


@contextmanager
def connect(scheduler: str | None, slurm: str | None, jobs: int) -> Iterator["distributed.Client"]:
    """Connect to a Dask scheduler, or start one whose workers are SLURM jobs. The jobs end with the block.

    Parameters
    ----------
    scheduler : str, optional
        Address of a scheduler.
    slurm : str, optional
        Options of the SLURM jobs. Used if there is no address.
    jobs : int
        Number of SLURM jobs.

    Yields
    ------
    Client

    Raises
    ------
    ValueError
        If Dask is not installed, if there is no SLURM on this machine, or if it refuses the jobs.
    ConnectionError
        If there is no scheduler at the address.
    """
    try:
        from dask_jobqueue import SLURMCluster
        from distributed import Client
        from distributed.utils import silence_logging_cmgr
    except ImportError:
        raise ValueError("a cluster needs the package distributed: pip install 'pckd_nb[cluster]'") from None
    if scheduler is not None:
        host, _, port = scheduler.rpartition("://")[2].rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()  # Dask would wait longer
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, OverflowError, TypeError, ValueError) as error:
            raise ConnectionError(
                f"there is no Dask scheduler at {scheduler} ({describe_error(error)}): `dask scheduler` starts one and "
                "prints its address"
            ) from error
        with silence_logging_cmgr(logging.CRITICAL), client:  # a lost connection is an error of `outcome_of`
            yield client
        return
    if shutil.which("sbatch") is None:
        raise ValueError(
            "slurm=… needs the command sbatch, which this machine does not have: use a login node of SLURM"
        )
    with SLURMCluster(**slurm_arguments(read_slurm_options(str(slurm)))) as cluster:
        test = subprocess.run(["sbatch", "--test-only"], input=cluster.job_script(), capture_output=True, text=True)
        if test.returncode:
            raise ValueError(f"slurm={slurm} is refused: {one_line(test.stderr)}")
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # submits a new job if one is lost or its time is over
        with Client(cluster, set_as_default=False) as client:
            yield client


def slurm_arguments(options: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of `dask_jobqueue.SLURMCluster`.

    Parameters
    ----------
    options : dict of str to str
        See `launcher.read_slurm_options`. "cores", "memory", "partition" and `CLUSTER_OPTIONS` have a meaning of their
        own. Any other name becomes an option of sbatch.

    Returns
    -------
    dict
        Every job has one worker with one Dask thread. All its cores are for the training.
    """
    options = dict(options)
    cores = int(options.pop("cores"))
    arguments: dict[str, Any] = {name: options.pop(name) for name in CLUSTER_OPTIONS if name in options}
    if "partition" in options:
        arguments["queue"] = options.pop("partition")
    environment = {"OMP_NUM_THREADS": cores, "DASK_DISTRIBUTED__WORKER__DAEMON": False}  # may start processes
    return {
        "job_name": "pckd-nb",
        "cores": 1,
        "processes": 1,
        "job_cpu": cores,
        "job_extra_directives": [f"--{name}={value}" for name, value in options.items()],
        "job_script_prologue": [f"export {name}={value}" for name, value in environment.items()],
        **arguments,
    }


def train_on_cluster(
    grid: Grid, points: Sequence[Point], scheduler: str | None, slurm: str | None, jobs: int,
    print_fn: Callable[[str], None],
) -> Iterator[Outcome]:  # fmt: skip
    """Train points on the workers of a Dask scheduler, one point per worker at a time.

    Parameters
    ----------
    grid : Grid
    points : sequence of Point
    scheduler, slurm, jobs
        As in `connect`.
    print_fn : callable
        Called with the number of workers and the address of the dashboard.

    Yields
    ------
    Outcome
        In the order in which the points end.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, when all runs are saved.
    ConnectionError
        If the scheduler ends.
    """
    with connect(scheduler, slurm, jobs) as client:
        from distributed import Event, as_completed

        resources = {}
        if slurm is None:
            resources = check_workers(client, print_fn)
        else:
            print_fn(f"{counted(jobs, 'SLURM job')} submitted: a run starts when a job starts")
        print_fn(f"dashboard: {client.dashboard_link}")
        event = Event(f"pckd-nb-{uuid4().hex}", client)
        threads = os.environ.get("OMP_NUM_THREADS", "") if slurm is None else read_slurm_options(slurm)["cores"]
        setup = WorkerSetup(
            grid=pickle.dumps(grid),
            folder=os.getcwd(),
            data_root=os.environ.get("PCKD_DATA"),
            threads=int(threads) if threads.isdecimal() else None,
            stop_event=event.name,
        )
        options = dict(pure=False, resources=resources)
        futures = {client.submit(train_in_worker, setup, point, **options): point for point in points}
        interrupted = threading.Event()

        def ask_to_stop() -> None:
            interrupted.set()
            event.set()
            on_workers = {key for keys in client.processing().values() for key in keys}
            client.cancel([future for future in futures if future.key not in on_workers])

        unfinished = len(points)
        try:
            with stop_on_ctrl_c(ask_to_stop):
                for future in as_completed(futures, loop=client.loop):
                    if interrupted.is_set() and future.cancelled():
                        continue
                    if outcome := outcome_of(future, futures[future]):
                        unfinished -= 1
                        yield outcome
        finally:
            if client.status == "running":
                # the workers stop, and save their runs
                client.cancel([future for future in futures if future.status == "pending"])
                event.clear()
    if unfinished:
        raise KeyboardInterrupt


def check_workers(client: "distributed.Client", print_fn: Callable[[str], None]) -> dict[str, float]:
    """Check the workers that a scheduler has, and return the resources that a point needs.

    Parameters
    ----------
    client : Client
    print_fn : callable
        Called with the number of workers.

    Returns
    -------
    dict
        {"GPU": 1} if workers were started with `--resources GPU=1`. Then only these workers train.

    Raises
    ------
    ValueError
        If a worker has several threads.
    """
    info = client.scheduler_info()
    workers = info["workers"].values()
    for worker in workers:
        if worker["nthreads"] != 1:
            raise ValueError(
                f"the worker {worker['name']} has {worker['nthreads']} threads, but a worker trains one run at a time: "
                "start it with --nthreads 1"
            )
    with_gpu = sum(worker["resources"].get("GPU", 0) >= 1 for worker in workers)
    text = f"scheduler {info['address']}: {counted(len(workers), 'worker')}"
    if not workers:
        text += ", waiting for the first one"
    elif 0 < with_gpu < len(workers):
        text += f", {with_gpu} of them with a GPU: only these train"
    print_fn(text)
    return {"GPU": 1} if with_gpu else {}


def outcome_of(future: "distributed.Future", point: Point) -> Outcome | None:
    """Return the outcome of a point from its Dask future.

    Parameters
    ----------
    future : Future
        It is done, and is released here.
    point : Point

    Returns
    -------
    Outcome or None
        None if the training was interrupted.

    Raises
    ------
    ConnectionError
        If the scheduler has ended.
    """
    from distributed.scheduler import KilledWorker

    try:
        outcome: Outcome | None = future.result()  # if its worker was lost meanwhile, Dask asks another one
    except CancelledError:
        raise ConnectionError(
            "the connection to the Dask scheduler is lost: the same command continues where this one ended"
        ) from None
    except KilledWorker as error:
        failure = f"its worker was lost {error.allowed_failures + 1} times: it may need too much memory"
        outcome = Outcome(point, float("nan"), 0, failure)
    except Exception as error:
        outcome = Outcome(point, float("nan"), 0, describe_error(error))
    future.release()  # otherwise Dask would train it again if the worker that holds the result is lost
    return outcome


def train_in_worker(setup: WorkerSetup, point: Point) -> Outcome | None:
    """Train a point in a Dask worker.

    Parameters
    ----------
    setup : WorkerSetup
    point : Point

    Returns
    -------
    Outcome or None
        None if the training was interrupted.

    Raises
    ------
    distributed.Reschedule
        If the worker is closing, so that another worker continues the run.
    RuntimeError
        If the worker may not start the processes that read images.
    """
    from distributed import Reschedule

    with ONE_POINT, same_surroundings(setup):
        torch.set_num_threads(setup.threads or share_of_cores())
        grid: Grid = unpickle(setup.grid)
        if isinstance(grid.loaded.train, Streamed) and multiprocessing.current_process().daemon:
            raise RuntimeError(
                "this worker may not start processes that read images: start workers with the environment variable "
                "DASK_DISTRIBUTED__WORKER__DAEMON=False"
            )
        outcome = train_point(grid, point, stop=partial(must_stop, setup.stop_event), max_wait=MAX_WAIT)
    if outcome is None and is_closing():
        raise Reschedule
    return outcome


def must_stop(event: str) -> bool:
    """Return whether the training in this thread must stop.

    Parameters
    ----------
    event : str
        Name of the event that asks all workers to stop.

    Returns
    -------
    bool
        True if the command asks for it, if the command or the scheduler has ended, or if the worker is closing.
    """
    from distributed import Event, get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    if is_closing() or task is None or task.state == "cancelled":  # Dask cancels the tasks of a client that has ended
        return True
    try:
        return bool(Event(event).is_set())
    except OSError:  # the scheduler has ended
        return True


def is_closing() -> bool:
    """Return whether the Dask worker of this thread is about to end."""
    from distributed import Status, get_worker

    return get_worker().status not in (Status.running, Status.paused)


def share_of_cores() -> int:
    """Return the number of cores that a Dask worker may use: an equal share of those of its machine.

    Returns
    -------
    int, at least 1
    """
    from distributed import get_client, get_worker
    from distributed.comm import get_address_host

    hosts = Counter(worker["host"] for worker in get_client().scheduler_info()["workers"].values())
    cores: int = joblib.cpu_count()
    return max(1, cores // max(1, hosts[get_address_host(get_worker().address)]))


@contextmanager
def same_surroundings(setup: WorkerSetup) -> Iterator[None]:
    """Use the current folder and the data folder of the command inside the block.

    Parameters
    ----------
    setup : WorkerSetup

    Raises
    ------
    FileNotFoundError
        If this machine does not have the folder.
    """
    folder, data_root = Path.cwd(), os.environ.get("PCKD_DATA")
    if not os.path.isdir(setup.folder):
        raise FileNotFoundError(f"the machine {platform.node()} has no folder '{setup.folder}': all machines need it")
    try:
        os.chdir(setup.folder)
        set_data_root(setup.data_root)
        yield
    finally:
        os.chdir(folder)
        set_data_root(data_root)


def set_data_root(root: str | None) -> None:
    """Set the environment variable PCKD_DATA, or remove it.

    Parameters
    ----------
    root : str or None
    """
    os.environ.pop("PCKD_DATA", None)
    if root is not None:
        os.environ["PCKD_DATA"] = root
