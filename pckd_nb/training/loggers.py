"""A logger for libraries that Lightning Fabric has no logger for."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


class TrackingLogger:
    """Send every row of history.csv to trackio, Weights & Biases, or a similar library.

    The library must have the functions `init`, `log` and `finish`. Pass the logger to `fit` or `distill`, as in
    `loggers=[TrackingLogger("trackio", project="pckd")]`.

    Parameters
    ----------
    library : str
        Name of the Python module, such as "trackio" or "wandb".
    **options
        Arguments of its `init` function, such as project="pckd".

    Raises
    ------
    ValueError
        If the library is not installed.
    """

    def __init__(self, library: str, **options: Any):
        try:
            self.library = import_module(library)
        except ImportError as error:
            raise ValueError(f"{library} is not installed: pip install {library}") from error
        self.options, self.started = options, False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the values of one epoch. The first call also calls `init` of the library.

        Parameters
        ----------
        metrics : dict of str to float
        step : int, optional
            Number of the epoch, counted from 1.
        """
        if not self.started:
            self.library.init(**self.options)
            self.started = True
        self.library.log(dict(metrics), step=step)

    def save(self) -> None:
        """Do nothing. The library saves its data without being asked."""

    def finalize(self, status: str) -> None:
        """Call `finish` of the library.

        Parameters
        ----------
        status : {"success", "failed"}
            Not used.
        """
        if self.started:
            self.library.finish()
            self.started = False
