"""Load the runs and networks that are given on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..paths import user_path

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Classifier
    from ..runs import Run


def load_run_unless_checkpoint(model: str | None, source: str, option: str) -> "Run | None":
    """Load the run in the folder `source`, unless the source is a checkpoint.

    Parameters
    ----------
    model : str or None
        Name of the network, if `source` is a checkpoint. None if it is a run folder.
    source : str
        A run folder, or a checkpoint file or URL.
    option : str
        The option for the name of the network, for the error message.

    Returns
    -------
    Run or None
        None if `model` is given.

    Raises
    ------
    ValueError
        If `source` is a file or URL and `model` is not given, or if the run cannot be read.
    FileNotFoundError
        If there is no run in the folder.
    """
    if model is not None:
        return None
    if "://" in source or user_path(source, "source").is_file():
        raise ValueError(f"'{source}' is not a run folder: if it is a checkpoint, name its network with {option} NAME")
    from ..runs import load_run

    return load_run(source)


def make_network(name: str, data: "Dataset", seed: int, init: str | None, root: Path | None = None) -> "Classifier":
    """Create a network for a data set, with initial or loaded weights.

    Parameters
    ----------
    name : str
        Name of the network, as in `create_model`.
    data : Dataset
        Determines the number of classes and of input channels.
    seed : int
        Seed of the initial weights.
    init : str or None
        A run folder, or a checkpoint file or URL, whose weights are loaded. None keeps the initial weights.
    root : Path, optional
        Folder of downloads.

    Returns
    -------
    Classifier

    Raises
    ------
    ValueError
        If there is no network of this name, or if the weights do not fit it.
    OSError
        If the weights cannot be read or downloaded.
    """
    from ..checkpoints import load_checkpoint
    from ..models import create_model

    network = create_model(name, data, seed=seed)
    return network if init is None else load_checkpoint(network, init, root=root)
