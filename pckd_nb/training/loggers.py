"""Loggers beside those of Lightning Fabric."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


class TrackingLogger:
    """Log every row of history.csv by trackio or Weights & Biases, or another library with init, log and finish.

    Parameters
    ----------
    library : str
        The module's name, such as "trackio" or "wandb".
    **options
        Arguments of its `init`, such as project="pckd".

    Raises
    ------
    ValueError
        If the library is not installed.

    Examples
    --------
    >>> distill(student, teacher, data, PCKD(), loggers=[TrackingLogger("trackio", project="pckd")])
    """

    def __init__(self, library: str, **options: Any):
        try:
            self.library = import_module(library)
        except ImportError as error:
            raise ValueError(f"{library} is not installed: pip install {library}") from error
        self.options, self.started = options, False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the values of one epoch. The first call starts the library's run."""
        if not self.started:
            self.library.init(**self.options)
            self.started = True
        self.library.log(dict(metrics), step=step)

    def save(self) -> None:
        """Do nothing: the library writes by itself."""

    def finalize(self, status: str) -> None:
        """End the library's run. status: "success" or "failed"."""
        if self.started:
            self.library.finish()
            self.started = False
