"""Sweeps on a local Ray: whatever dies, they end with the runs that undisturbed ones make."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

import upgrayedd

SHORT: dict[str, Any] = {"num_cycles": 1, "max_eval_windows": 4, "sequence_length": 32, "growth_ratio": 0.0, "refit": False}

FILE = """
output_dir = "swept"
num_cycles = 1
max_steps_per_cycle = 60
max_eval_windows = 4
sequence_length = 32
batch_size = 2
growth_ratio = 0.0
refit = false
checkpoint_every = 3
strategy = "magnitude"

[space]
pruning_ratio = [0.2, 0.4, 0.9]
min_heads = 2

[ray]
concurrent = 2
"""


def weights(run: pathlib.Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def holder(path: pathlib.Path) -> int | None:
    """The process that has a file open."""
    for link in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path):
                return int(link.parts[2])
        except OSError:
            continue
    return None


def saved(run: pathlib.Path, process: subprocess.Popen[str]) -> int:
    """Waits for a checkpoint and returns who works on the run."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if any(run.glob("checkpoints/*")) and (found := holder(run / ".lock")):
            return found
        time.sleep(0.05)
    raise AssertionError("no checkpoint was saved")


def test_workers_and_the_driver_may_die(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sweep.toml").write_text(FILE)
    command = [sys.executable, "-m", "upgrayedd", "sweep", str(tmp_path / "sweep.toml"), "--json"]
    swept = tmp_path / "swept"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    driver = start()
    os.kill(saved(swept / "trial-001", driver), signal.SIGKILL)
    saved(swept / "trial-002", driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    # Its workers go with it.
    end = time.monotonic() + 60
    while any(holder(lock) for lock in swept.glob("*/.lock")) and time.monotonic() < end:
        time.sleep(0.1)
    assert not (swept / "trial-003" / "model").exists()
    driver = start()
    output, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    trials = json.loads(output)
    assert [trial["options"]["pruning_ratio"] for trial in trials] == [0.2, 0.4, 0.9]
    assert trials[0]["parameters"] > trials[1]["parameters"] > trials[2]["parameters"]
    page = (swept / "sweep.html").read_text()
    assert "<svg" in page and "trial-003" in page and "http" not in page.split("<svg")[0]
    # What a trial prints as its command makes the same model.
    words = trials[1]["command"].split()
    assert words[0] == "upgrayedd"
    done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "again") == weights(swept / "trial-002")


def test_a_sweep_from_python(tmp_path: pathlib.Path) -> None:
    import ray
    from ray import tune

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:

        def space() -> dict[str, Any]:
            return {"strategy": ["magnitude", "entropy"], "pruning_ratio": tune.uniform(0.1, 0.6)}

        found = upgrayedd.sweep(None, [], space(), tmp_path / "swept", max_steps_per_cycle=2, **SHORT)
        again = upgrayedd.sweep(None, [], space(), tmp_path / "swept", max_steps_per_cycle=2, **SHORT)
        with pytest.raises(upgrayedd.FileError, match="another sweep"):
            upgrayedd.sweep(None, [], space(), tmp_path / "swept", max_steps_per_cycle=3, **SHORT)
        # What cannot be pruned so is said, and the others are there.
        mixed = upgrayedd.sweep(
            "builtin", [], {"target": ["parameters=0.9x", "parameters=5"]}, tmp_path / "mixed", max_steps_per_cycle=2, **SHORT
        )
    finally:
        ray.shutdown()
    assert len(found) == 2 and all(trial.error is None for trial in found)
    assert [(trial.loss, trial.options) for trial in found] == [(trial.loss, trial.options) for trial in again]
    best = found.pareto("macs")
    assert best and min(trial.loss or 9.0 for trial in found) == best[-1].loss
    assert "entropy" in found.table() and "trial-002" in found._repr_html_()
    assert mixed[0].loss is not None and mixed[1].loss is None and "target" in str(mixed[1].error)
    assert "1 failed" in repr(mixed)


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "swept"
    spaces: list[tuple[dict[str, Any], str]] = [
        ({"strategy": ["magnitud"]}, "magnitude"),
        ({"pruning_ratio": [0.2, 1.2]}, "pruning_ratio"),
        ({"pruning_ratio": []}, "has no values"),
        ({"num_cycles": [1]}, "given for all trials"),
        ({"nonsense": [1]}, "nonsense"),
    ]
    for space, message in spaces:
        with pytest.raises(upgrayedd.InvalidValueError, match=message):
            upgrayedd.sweep(None, [], space, out, num_cycles=1)
    assert not out.exists()
    with pytest.raises(upgrayedd.InvalidValueError, match="data is missing"):
        upgrayedd.sweep("some-model", [], {"seed": [1, 2]}, out)
    (tmp_path / "bad.toml").write_text("[space]\n")
    command = [sys.executable, "-m", "upgrayedd", "sweep", str(tmp_path / "bad.toml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "output_dir is missing" in done.stderr
