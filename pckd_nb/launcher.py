"""Read what starts processes on other machines: the variables of torchrun and srun, and options of a cluster.

Needs no torch.
"""

import os
import re


def launched_processes() -> tuple[int, int]:
    """Return how many processes per machine, and on how many machines, torchrun or srun (SLURM) has started.

    Returns
    -------
    processes : int
        Processes per machine. 1 without torchrun and srun.
    nodes : int
        Machines. 1 without torchrun and srun.
    """
    env = os.environ
    if _by_torchrun():
        return int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"]) // int(env["LOCAL_WORLD_SIZE"])
    if _by_srun():
        nodes = int(env.get("SLURM_NNODES", 1))
        return int(env["SLURM_NTASKS"]) // nodes, nodes
    return 1, 1


def requested_processes(devices: int | None, nodes: int) -> tuple[int, int]:
    """Return how many processes per machine, and how many machines, a training uses.

    Parameters
    ----------
    devices : int or None
        Processes per machine. None means the numbers of `launched_processes`.
    nodes : int
        Machines.

    Returns
    -------
    processes : int
        Processes per machine.
    nodes : int
        Machines.

    Raises
    ------
    ValueError
        If `nodes` is given without `devices`.
    """
    if devices is not None:
        return devices, nodes
    if nodes != 1:
        raise ValueError("nodes needs devices: also pass devices, the number of processes on each machine")
    return launched_processes()


def is_first_rank(devices: int | None = None, nodes: int = 1) -> bool:
    """Return whether this process is rank 0 of a training, which prints and writes files.

    It can be called before the processes are connected. Launcher variables are ignored when training in a single
    process.

    Parameters
    ----------
    devices : int, optional
        Processes per machine, as in `distill`. Default: not known yet.
    nodes : int
        Machines, as in `distill`.

    Returns
    -------
    bool
    """
    env = os.environ
    if devices is not None and devices * nodes == 1:
        return True
    if _by_torchrun():
        return env["RANK"] == "0"
    if _by_srun():
        return env["SLURM_PROCID"] == "0"
    by_fabric = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT"} <= env.keys()  # Fabric sets all of them
    return (not by_fabric or env["LOCAL_RANK"] == "0") and (nodes == 1 or env.get("NODE_RANK", "0") == "0")


def check_scheduler(address: str) -> None:
    """Check the form of the address of a Dask scheduler.

    Parameters
    ----------
    address : str

    Raises
    ------
    ValueError
        If it is not HOST:PORT, with or without a protocol.
    TypeError
        If it is not a string.

    Examples
    --------
    >>> from pckd_nb.launcher import check_scheduler
    >>> check_scheduler("tcp://node1:8786")
    >>> check_scheduler("node1")
    Traceback (most recent call last):
    ValueError: scheduler must be an address such as tcp://node1:8786, got 'node1': `dask scheduler` prints it
    """
    if not isinstance(address, str):
        raise TypeError(f"scheduler must be an address, got {type(address).__name__}")
    if not re.fullmatch(r"((tcp|tls|wss?)://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", address, re.ASCII):
        raise ValueError(
            f"scheduler must be an address such as tcp://node1:8786, got {address!r}: `dask scheduler` prints it"
        )


def read_slurm_options(text: str) -> dict[str, str]:
    """Return the options of a SLURM job.

    Parameters
    ----------
    text : str
        NAME=VALUE, comma-separated. cores and memory are required.

    Returns
    -------
    dict of str to str

    Raises
    ------
    ValueError
        If the text does not have this form, if an option is given twice, or if cores or memory is missing or wrong.
    TypeError
        If it is not a string.

    Examples
    --------
    >>> from pckd_nb.launcher import read_slurm_options
    >>> read_slurm_options("partition=gpu,cores=8,memory=32GB")
    {'partition': 'gpu', 'cores': '8', 'memory': '32GB'}
    """
    example = "such as partition=gpu,gpus=1,cores=8,memory=32GB,walltime=08:00:00"
    if not isinstance(text, str):
        raise TypeError(f"slurm must be text {example}, got {type(text).__name__}")
    found = [re.fullmatch(r"([a-z][a-z_-]*)=([\w.:/+@%\[\]-]+)", part, re.ASCII) for part in text.split(",")]
    options: dict[str, str] = {match[1]: match[2] for match in found if match}
    if None in found or len(options) != len(found):
        raise ValueError(f"slurm must be NAME=VALUE, comma-separated, with every name once, {example}, got {text!r}")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", options.get("cores", "")):
        raise ValueError(f"slurm needs cores, the number of CPU cores of a worker, {example}, got {text!r}")
    if not re.fullmatch(r"[1-9][0-9]{0,9}[kKMGT]i?B", options.get("memory", "")):
        raise ValueError(f"slurm needs memory, the memory of a worker with its unit, {example}, got {text!r}")
    return options


def check_cluster(scheduler: str | None, slurm: str | None, jobs: int, shard: tuple[int, int]) -> None:
    """Check the options that say on which machines the runs of a grid are trained.

    Parameters
    ----------
    scheduler, slurm, jobs, shard
        As in `experiments.run_grid`.

    Raises
    ------
    ValueError
        If the address or the options of SLURM are not valid, or if two options exclude each other.
    TypeError
        If the address or the options of SLURM are not text.
    """
    if scheduler is not None:
        check_scheduler(scheduler)
        if slurm is not None:
            raise ValueError("scheduler=… and slurm=… exclude each other: slurm starts its own scheduler")
        if jobs != 1:
            raise ValueError("scheduler=… and jobs=… exclude each other: every worker of a scheduler trains one run")
    if slurm is not None:
        read_slurm_options(slurm)
    if (scheduler, slurm) != (None, None) and shard != (1, 1):
        name = "slurm" if scheduler is None else "scheduler"
        raise ValueError(f"{name}=… and shard=… exclude each other: all workers together train the whole grid")


# The same conditions as in Fabric's TorchElasticEnvironment and SLURMEnvironment, which take seconds to import.


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _by_srun() -> bool:
    """Return whether srun started this process. Batch scripts and jobs named bash or interactive do not count."""
    env = os.environ
    return {"SLURM_STEP_ID", "SLURM_NTASKS"} <= env.keys() and env.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    )
