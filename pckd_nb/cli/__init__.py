"""The command line, `pckd-nb` or `python -m pckd_nb`.

Modules that need torch are imported inside the commands, so that help, lists and messages about typing errors appear at
once.
"""

from .app import app
from .entry import main

__all__ = ["app", "main"]
