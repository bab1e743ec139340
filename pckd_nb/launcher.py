"""Which process of a training this one is, by the variables that its launcher has set. Needs no torch."""

import os


def started() -> tuple[int, int]:
    """Return how many processes per machine, and how many machines, torchrun or SLURM's srun have started.

    Returns
    -------
    processes : int
        Processes per machine; 1 if neither has started any.
    nodes : int
        Machines; 1 if neither has started any.
    """
    there = os.environ
    if _by_torchrun():
        return int(there["LOCAL_WORLD_SIZE"]), int(there["WORLD_SIZE"]) // int(there["LOCAL_WORLD_SIZE"])
    if _by_srun():
        nodes = int(there.get("SLURM_NNODES", 1))
        return int(there["SLURM_NTASKS"]) // nodes, nodes
    return 1, 1


def asked(devices: int | None, nodes: int) -> tuple[int, int]:
    """Return how many processes per machine, and machines, a training is to have: as given, else as `started`.

    Raises ValueError if `nodes` is given without `devices`.
    """
    if devices is not None:
        return devices, nodes
    if nodes != 1:
        raise ValueError("nodes needs devices: how many processes each machine runs")
    return started()


def is_first(devices: int | None = None, nodes: int = 1) -> bool:
    """Return whether this process speaks and writes for all of a training, before the processes have met.

    Variables that another launcher left in the environment of a process that trains alone are ignored.

    Parameters
    ----------
    devices : int, optional
        Processes per machine, as in `training.distill`; None if that is not known yet.
    nodes : int
        Machines, as in `training.distill`.
    """
    there = os.environ
    if devices is not None and devices * nodes == 1:
        return True
    if _by_torchrun():
        return there["RANK"] == "0"
    if _by_srun():
        return there["SLURM_PROCID"] == "0"
    copy = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT"} <= there.keys()  # what Fabric starts has them all
    return (not copy or there["LOCAL_RANK"] == "0") and (nodes == 1 or there.get("NODE_RANK", "0") == "0")


# As Fabric's TorchElasticEnvironment and SLURMEnvironment find out. To ask them would take seconds: they load torch.


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _by_srun() -> bool:
    """Within a step of srun. A batch script is in none, and a job called bash or interactive is somebody's shell."""
    there = os.environ
    return {"SLURM_STEP_ID", "SLURM_NTASKS"} <= there.keys() and there.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    )
