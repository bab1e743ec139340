"""The program: `pckd-nb`, or `python -m pckd_nb`."""

import os
import signal
import sys
from types import FrameType


def run() -> None:
    """Run the command line of this process, and exit with its status.

    Characters that the terminal's encoding lacks are printed as escape sequences.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored in jobs in the background
        signal.signal(signal.SIGINT, interrupt)
    from .cli import main

    status = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the interpreter shuts down: nothing is left to interrupt
    sys.exit(status)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Answer Ctrl-C: exit at once while modules are imported, otherwise raise KeyboardInterrupt.

    The import of a library can swallow an exception, or print a traceback of it. Nothing is written meanwhile.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"\npckd-nb: interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
