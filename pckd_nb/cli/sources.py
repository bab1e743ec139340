"""Load the runs and networks that are given on the command line."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def load_data_of_run(run: "Run", data: str | None, root: Path | None, options: Mapping[str, Any]) -> "Dataset":
    """Load the data that a network is evaluated on. Print a note if it should be that of the run, but has changed.

    Parameters
    ----------
    run : Run
    data : str or None
        Name of the data set. None means that of the run.
    root : Path or None
        Folder of the data sets.
    options : dict
        Other arguments of `load_dataset`, which replace those of the run.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError, OSError
        If `data.rebuild` raises them.
    """
    from ..data import rebuild
    from ..data.loading import is_same_dataset

    info = run.settings["data"]
    dataset = rebuild(info, root, data, **options)
    same = data is None or is_same_dataset(data, info["name"])
    if same and not options.keys() & {"test_size", "image_size"} and dataset.fingerprint != info["fingerprint"]:
        print(f"note: {dataset.name} is not the same data that '{run.path}' was trained with", file=sys.stderr)
    return dataset


def load_common_data(
    runs: Sequence["Run"], data: str | None, root: Path | None, options: Mapping[str, Any]
) -> "Dataset":
    """Load the data that several networks are compared on.

    Parameters
    ----------
    runs : sequence of Run
    data, root, options
        As in `load_data_of_run`.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If `data` is None and the runs were trained on different data, or if `data.rebuild` raises it.
    OSError
        If `data.rebuild` raises it.
    """
    if data is None and len({run.data_fingerprint for run in runs}) > 1:
        folders = " and ".join(f"'{run.path}'" for run in runs)
        names = " and ".join(dict.fromkeys(run.settings["data"]["name"] for run in runs))
        raise ValueError(
            f"{folders} were trained on different data, {names}: choose the images to compare on with --data"
        )
    return load_data_of_run(runs[0], data, root, options)


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
