"""What the tests share: the program, its examples, and real models where they are at hand."""

import json
import os
import pathlib
import subprocess

import pytest
from places import BUILD


class Program:
    """Runs the program and its examples."""

    def run(self, *args):
        result = subprocess.run([BUILD / "upgrayedd", *map(str, args)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def json(self, *args):
        return json.loads(self.run(*args, "--json"))

    def example(self, name, *args):
        subprocess.run([BUILD / "examples" / name, *map(str, args)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def program():
    return Program()


@pytest.fixture(scope="session")
def real():
    """The folder of real models (`UPGRAYEDD_MODELS`, one or several), for checks that run only where they are."""

    def find(name):
        for folder in os.environ.get("UPGRAYEDD_MODELS", "").split(os.pathsep):
            if folder and (pathlib.Path(folder) / name / "config.json").is_file():
                return pathlib.Path(folder) / name
        pytest.skip(f"{name} is not there: set UPGRAYEDD_MODELS to the folders that hold it")

    return find


@pytest.fixture(scope="session")
def differences():
    """Notes how far a client's results are from ours: `scripts/formats-table` makes its table of them
    (`UPGRAYEDD_DIFFERENCES` names the file)."""
    noted = []

    def note(client, version, family, shape, difference):
        noted.append({"client": client, "version": version, "family": family, "shape": shape, "difference": float(difference)})

    yield note
    if path := os.environ.get("UPGRAYEDD_DIFFERENCES"):
        with open(path, "a") as out:
            out.writelines(json.dumps(line) + "\n" for line in noted)


@pytest.fixture(scope="session")
def text():
    def find(name):
        path = pathlib.Path(os.environ.get("UPGRAYEDD_TEXTS", "")) / name
        if not path.is_file():
            pytest.skip(f"{name} is not there: set UPGRAYEDD_TEXTS to the folder that holds it")
        return path

    return find
