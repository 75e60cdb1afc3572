"""The command line, the same as the Rust program's: `python -m upgrayedd optimize --help`.

`torchrun --nproc-per-node N -m upgrayedd optimize …` shares the work between processes, as it does that of `resume`, `score` and
`evaluate`. `python -m upgrayedd sweep sweep.toml` runs many on Ray.
"""

import signal
import sys

from upgrayedd import _group, _native, _sweep


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    if sys.argv[1:2] == ["sweep"]:
        return _sweep.main(sys.argv[2:])
    group = _group.launched()
    # The program saves what it has and says so: Python would raise KeyboardInterrupt after that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = _native.main(["upgrayedd", *sys.argv[1:]], group)
    if group is not None:
        _group.leave()
    return code


if __name__ == "__main__":
    sys.exit(main())
