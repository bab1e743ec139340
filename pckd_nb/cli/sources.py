"""Networks and runs that options of the command line refer to."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..paths import user_path

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Classifier
    from ..runs import Run


def load_run_unless(model: str | None, source: str, option: str) -> "Run | None":
    """Return the run in the folder `source`, unless the source is a checkpoint.

    Parameters
    ----------
    model : str or None
        Name of the network, if `source` is a checkpoint.
    source : str
        A run folder; or a checkpoint file or URL.
    option : str
        The option that gives `model`. The error message mentions it.

    Returns
    -------
    Run or None
        None if `model` is given.

    Raises
    ------
    ValueError
        If `source` is a file or URL and `model` is not given. Also if the run cannot be read.
    FileNotFoundError
        If there is no run in the folder.
    """
    if model is not None:
        return None
    if "://" in source or user_path(source, "source").is_file():
        raise ValueError(f"'{source}' is no run folder: say whose weights these are by {option} NAME")
    from ..runs import load_run

    return load_run(source)


def make_network(name: str, data: "Dataset", seed: int, init: str | None, root: Path | None = None) -> "Classifier":
    """Return a network for a data set, with initial or loaded weights.

    Parameters
    ----------
    name : str
        Name of the network, as in `create_model`.
    data : Dataset
        Gives the number of classes and of input channels.
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
        If there is no network of this name, or if the weights do not fit.
    OSError
        If the weights cannot be read or downloaded.
    """
    from ..checkpoints import load_checkpoint
    from ..models import create_model

    network = create_model(name, data, seed=seed)
    return network if init is None else load_checkpoint(network, init, root=root)
