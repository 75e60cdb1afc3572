"""Imports of the package go one way."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import upgrayedd

PACKAGE = Path(upgrayedd.__file__).parent


def imports() -> dict[str, set[str]]:
    """Module → modules of the package that it imports, type checking included."""
    paths = {file: (PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
    names = {file: ".".join(parts).removesuffix(".__init__") for file, parts in paths.items() if "modeling" not in parts}
    found: dict[str, set[str]] = {}
    for file, name in names.items():
        targets = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        # `from upgrayedd import _native` needs nothing of the package's own.
        found[name] = {target for target in targets if target in names.values() and target not in (name, "upgrayedd")}
    return found


def test_modules_form_no_circle() -> None:
    graph = imports()
    assert sum(map(len, graph.values())) > 20
    for module in graph:
        seen: set[str] = set()
        queue = [module]
        while queue:
            new = graph[queue.pop()] - seen
            seen |= new
            queue += new
        assert module not in seen, f"{module} imports itself by way of {sorted(seen)}"


def test_libraries_that_pip_has_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia/cu13/lib/libcublasLt.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    program = "import os, upgrayedd; print(os.environ.get('UPGRAYEDD_CUDA_LIBRARIES'))"

    def named() -> str:
        return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.delenv("UPGRAYEDD_CUDA_LIBRARIES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert str(library.parent) in named().split(os.pathsep)
    monkeypatch.setenv("UPGRAYEDD_CUDA_LIBRARIES", "/mine")
    assert named() == "/mine"
