"""The guide's examples run as written, from top to bottom."""

import doctest
import importlib.util
import pathlib
import re

import pytest

import upgrayedd.strategies

GUIDE = pathlib.Path(__file__).parents[2] / "docs/python.md"
BLOCK = re.compile(r"(?:<!-- (?P<note>[\w ]+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def test_examples_in_docstrings_hold() -> None:
    modules = [upgrayedd.strategies]
    results = [doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE) for module in modules]
    assert all(r.attempted > 0 and r.failed == 0 for r in results)


def test_the_guide_runs_as_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) > 10
    has_torch = importlib.util.find_spec("torch") is not None
    namespace: dict[str, object] = {"__name__": "guide"}
    for block in blocks:
        if block["note"] == "not run" or (block["note"] == "needs torch" and not has_torch):
            continue
        line = text[: block.start("code")].count("\n")
        # Empty lines put the guide's line numbers into tracebacks.
        exec(compile("\n" * line + block["code"], str(GUIDE), "exec"), namespace)
