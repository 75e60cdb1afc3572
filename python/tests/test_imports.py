"""Imports of the package go one way."""

import ast
import pathlib

import upgrayedd

PACKAGE = pathlib.Path(upgrayedd.__file__).parent


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
