"""Run the script of a task for `compare.py`, and end when that process ends, for whatever reason.

This process reads a pipe that nothing is written to. When `compare.py` is stopped, killed or crashes, the operating
system closes the other end. The read then returns, and the training stops at once.
"""

import os
import signal
import sys
import threading


def exit_with_parent() -> None:
    """Exit the process at the end of standard input."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    from comparison.example_scripts import script_of  # type: ignore[import-not-found]  # a sibling of this script

    sys.exit(script_of(sys.argv.pop(1)).main())
