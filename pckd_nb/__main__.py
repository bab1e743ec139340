"""The command `pckd-nb`, which is also `python -m pckd_nb`."""

import os
import signal
import sys
from types import FrameType


def run() -> None:
    """Run the command line, and exit with its status.

    Characters that the terminal cannot show are printed as escape sequences.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # it is ignored in a background job
        signal.signal(signal.SIGINT, interrupt)
    from .cli import main

    status = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python shuts down, there is nothing left to interrupt
    sys.exit(status)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C: exit at once during an import, and raise KeyboardInterrupt at any other time.

    A library that is being imported could catch the exception or print its traceback. No files are written during
    imports, so exiting is safe.

    Parameters
    ----------
    number : int
        Number of the signal.
    frame : frame or None
        Where Python was interrupted.

    Raises
    ------
    KeyboardInterrupt
        If no module is being imported.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"\npckd-nb: interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
