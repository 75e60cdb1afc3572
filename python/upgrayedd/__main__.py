"""The command line, the same as the Rust program's: `python -m upgrayedd optimize --help`."""

import sys

from upgrayedd import _native


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    return _native.main(["upgrayedd", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
