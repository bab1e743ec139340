"""The command line, `pckd-nb` or `python -m pckd_nb`.

What needs torch is imported inside the commands: help, lists and typing errors take a moment only.
"""

from .app import app
from .entry import main

__all__ = ["app", "main"]
