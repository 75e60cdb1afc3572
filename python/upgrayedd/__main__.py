"""The command line, the same as the Rust program's: `python -m upgrayedd optimize --help`."""

import signal
import sys

from upgrayedd import _native


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    # The program saves what it has and says so: Python would raise KeyboardInterrupt after that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.main(["upgrayedd", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
