"""Processes that torchrun starts share a run: they come to what one process comes to, and to the same bits each time."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SHORT = [
    "--num-cycles",
    "1",
    "--max-steps-per-cycle",
    "20",
    "--max-eval-windows",
    "9",
    "--strategy",
    "magnitude",
    "--sequence-length",
    "64",
]


def torchrun(*words: object, restarts: int = 0) -> list[str]:
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return [sys.executable, "-m", *launch, *map(str, words)]


def run(command: list[str], cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def optimize(out: object, *more: str) -> list[str]:
    return ["-m", "upgrayedd", "optimize", *SHORT, "--out", str(out), *more]


def weights(run_dir: pathlib.Path) -> bytes:
    return (run_dir / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("torchrun")
    done = run(torchrun(*optimize("shared", "--json")), folder)
    assert done.returncode == 0, done.stderr
    # One of them prints.
    assert json.loads(done.stdout)["run"] == "shared"
    return folder / "shared"


def test_two_processes_come_to_what_one_does(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run([sys.executable, *optimize("alone", "--json")], tmp_path)
    assert done.returncode == 0, done.stderr
    alone, shared = json.loads(done.stdout), json.loads((whole / "summary.json").read_text())
    for moment in ("before", "after"):
        losses = [summary[moment]["evaluation"]["loss"] for summary in (alone, shared)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert alone["after"]["heads"] == shared["after"]["heads"]
    events = [(folder / "events.jsonl").read_text().splitlines() for folder in (whole, tmp_path / "alone")]
    steps = [[e["loss"] for e in map(json.loads, lines) if e["event"] == "step"] for lines in events]
    assert len(steps[0]) == 20
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_costs_what_was_not_saved(whole: pathlib.Path, tmp_path: pathlib.Path, victim: int) -> None:
    """Started anew by torchrun, the run goes on from its checkpoint and ends with the bits of the undisturbed one."""
    out = tmp_path / "run"
    command = torchrun(*optimize(out, "--checkpoint-every", "4"), restarts=1)
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_checkpoint(out, process)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    ranks = {rank_of(int(pid)): int(pid) for pid in workers}
    os.kill(ranks[victim], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert weights(out) == weights(whole)


def test_ctrl_c_is_saved_and_one_process_goes_on(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    command = torchrun(*optimize(out, "--checkpoint-every", "4"))
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_checkpoint(out, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode != 0, output
    assert "stopped; what has been learned is saved" in output
    assert not (out / "model").exists()
    done = run([sys.executable, "-m", "upgrayedd", "resume", str(out)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").is_file()


SCRIPT = """
import torch.distributed as dist
from upgrayedd import UpgrayeddPipeline
from upgrayedd.strategies.base import BasePruningStrategy

class Last(BasePruningStrategy):
    def select_heads_to_prune(self, model, head_importances):
        return {name: heads[-2:] for name, heads in model.active_heads.items()}

    def select_heads_to_grow(self, model, pruned_heads, metrics):
        return {}

dist.init_process_group("gloo")
texts = [f"{name} was a kind child. One day {name} met a dog in the park." for name in ("Mia", "Tom", "Ben", "Lily")] * 40
pipeline = UpgrayeddPipeline("builtin", strategy=Last(), output_dir=OUT, max_steps_per_cycle=3, sequence_length=32)
model = pipeline.run_optimization(texts, num_cycles=1)
print("rank", dist.get_rank(), sum(map(len, model.active_heads.values())), flush=True)
"""


def test_a_pipeline_inside_a_process_group_is_shared(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("OUT", "'run'"))
    done = run(torchrun(script), tmp_path)
    assert done.returncode == 0, done.stderr
    assert {line for line in done.stdout.splitlines() if line.startswith("rank")} == {"rank 0 24", "rank 1 24"}
    assert (tmp_path / "run" / "summary.json").is_file()
    script.write_text(SCRIPT.replace("OUT", "None"))
    done = run(torchrun(script), tmp_path)
    assert done.returncode != 0 and "several processes share the run: name its folder, output_dir" in done.stderr


DIFFERENT = """
import random
import torch.distributed as dist
from upgrayedd import UpgrayeddPipeline
from upgrayedd.strategies.base import BasePruningStrategy

class Own(BasePruningStrategy):
    def select_heads_to_prune(self, model, head_importances):
        return {name: [heads[dist.get_rank()]] for name, heads in model.active_heads.items()}

    def select_heads_to_grow(self, model, pruned_heads, metrics):
        return {}

def shuffled():
    rows = list(range(48))
    random.Random(dist.get_rank()).shuffle(rows)
    return ([{"input_ids": [[row + 1] * 16]} for row in rows].__iter__)()

dist.init_process_group("gloo")
own = WHAT == "strategy"
data = ["Mia had a red ball and ran home with Tom."] * 60 if own else shuffled
options = {"output_dir": WHAT, "max_steps_per_cycle": 2, "sequence_length": 16, "strategy": Own() if own else "magnitude"}
UpgrayeddPipeline("builtin", **options).run_optimization(data, num_cycles=1)
"""


@pytest.mark.parametrize("what", ["strategy", "loader"])
def test_processes_that_decide_or_read_otherwise_are_refused(tmp_path: pathlib.Path, what: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(DIFFERENT.replace("WHAT", repr(what)))
    done = run(torchrun(script), tmp_path)
    assert done.returncode != 0
    assert "process 1 does not do what process 0 does" in done.stderr, done.stderr
    assert not (tmp_path / what / "model").exists()


def test_a_run_of_somebody_else_is_not_gone_on_with(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run(torchrun(*optimize(whole), restarts=1), tmp_path)
    assert done.returncode != 0 and "exists" in done.stderr, done.stderr
    assert "is complete" not in done.stderr


def test_what_cannot_be_shared_is_refused(tmp_path: pathlib.Path) -> None:
    done = run(torchrun("-m", "upgrayedd", "optimize", *SHORT), tmp_path)
    assert done.returncode != 0 and "name its folder, --out" in done.stderr
    assert not (tmp_path / "runs").exists()
    done = run(torchrun("-m", "upgrayedd", "inspect", "builtin"), tmp_path)
    assert done.returncode != 0 and "run this in one process" in done.stderr


def test_evaluate_and_score_are_shared(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Mia had {n} red apples and gave one to Tom." for n in range(400)))
    shared = ["--data", str(text), "--sequence-length", "64", "--json"]
    for words in (["evaluate", "--model", "builtin"], ["score", "--model", "builtin", "--score", "fisher", "--samples", "12"]):
        command = ["-m", "upgrayedd", *words, *shared]
        alone, both = run([sys.executable, *command], tmp_path), run(torchrun(*command), tmp_path)
        assert alone.returncode == both.returncode == 0, both.stderr
        for one, other in zip(numbers(json.loads(alone.stdout)), numbers(json.loads(both.stdout)), strict=True):
            assert other == pytest.approx(one, rel=1e-4)


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [float(value)] if isinstance(value, (int, float)) else []


def rank_of(pid: int) -> int:
    variables = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(v.split(b"=")[1]) for v in variables if v.startswith(b"RANK=")), -1)


def wait_for_checkpoint(out: pathlib.Path, process: subprocess.Popen[str]) -> None:
    """Until a checkpoint inside the cycle is there, and more to come."""
    end = time.monotonic() + 300
    while not any(out.glob("checkpoints/*")):
        assert process.poll() is None and time.monotonic() < end, "no checkpoint was saved"
        time.sleep(0.02)
