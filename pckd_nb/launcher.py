"""Read the number and rank of processes from the environment variables of torchrun and srun. Needs no torch."""

import os


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
