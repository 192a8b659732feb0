"""Run `run_glue.py` for `compare.py`, and end when that ends, however it does.

This process reads a pipe that nobody writes to. When the other end closes, because `compare.py` was stopped, killed or
crashed, the read returns on every system, and the training stops at once.
"""

import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """Wait for the end of standard input; then there is nobody to train for."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    from run_glue import main

    sys.exit(main())
