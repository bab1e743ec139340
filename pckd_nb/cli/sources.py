"""Networks and runs that an option of the command line names."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Classifier
    from ..runs import Run


def load_run_unless(model: str | None, source: str, option: str) -> "Run | None":
    """The run in the folder `source`; None where `model` says whose weights it holds, a checkpoint's."""
    if model is not None:
        return None
    if "://" in source or Path(source).is_file():
        raise ValueError(f"'{source}' is no run folder: say whose weights these are by {option} NAME")
    from ..runs import load_run

    return load_run(source)


def make_network(name: str, data: "Dataset", seed: int, init: str | None) -> "Classifier":
    """A network for `data`, with fresh weights or those of the run or checkpoint `init`."""
    from ..checkpoints import load_checkpoint
    from ..models import create_model

    network = create_model(name, data, seed=seed)
    return network if init is None else load_checkpoint(network, init)
