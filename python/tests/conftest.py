"""What the tests of the package share."""

import pathlib

import pytest

STORY = "Mia was a kind girl. She had a red ball. She put the ball in the garden. "


@pytest.fixture
def texts() -> list[str]:
    return [STORY * 2] * 150


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "run"
