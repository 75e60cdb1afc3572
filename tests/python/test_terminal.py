"""What the program shows on a terminal: one line a phase with a bar, colours, and nothing wider than the window."""

import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import termios

import pytest
from places import BUILD


def on_terminal(words: list[str], columns: int, place: pathlib.Path, **environment: str) -> str:
    """What a program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CLICOLOR_FORCE")}
    search = {**plain, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen([BUILD / "upgrayedd", *words], cwd=place, env=search, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    # The system ends a terminal that nobody writes to any more by an error.
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:
            break
        if not more:
            break
        text += more
    os.close(ours)
    assert process.wait() == 0, text
    return text.decode()


RUN = ["optimize", "--num-cycles", "1", "--max-steps-per-cycle", "3", "--max-eval-windows", "4", "--strategy", "magnitude"]


@pytest.mark.parametrize("columns", [110, 50])
def test_a_run_shows_bars_and_a_coloured_map(columns: int, tmp_path: pathlib.Path) -> None:
    text = on_terminal([*RUN, "--refit", "false", "--out", "run"], columns, tmp_path)
    assert "\x1b[34m█\x1b[0m" in text and "\x1b[2m·\x1b[0m" in text
    bars = [line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)) if " left" in line and "/" in line]
    assert any("cycle 1 of 1: learn" in line for line in bars), text
    assert all(len(line) <= columns for line in bars), bars
    assert any("/s" in line and "█" in line for line in bars) == (columns == 110), bars


def test_no_colours_where_they_are_not_wanted(tmp_path: pathlib.Path) -> None:
    assert "\x1b[3" not in on_terminal(["inspect", "builtin"], 80, tmp_path, NO_COLOR="1")
    assert "\x1b[3" not in on_terminal(["inspect", "builtin", "--color", "never"], 80, tmp_path)
    assert "\x1b[3" in on_terminal(["inspect", "builtin"], 80, tmp_path)
