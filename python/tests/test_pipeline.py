"""Runs: history, callbacks, stopping and continuing, and the same bits as the command line."""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types
from typing import Any

import numpy as np
import pytest

from upgrayedd import Callback, Control, Model, UpgrayeddPipeline, _native
from upgrayedd.callbacks import MetricsCallback, MLflowCallback, WandbCallback
from upgrayedd.options import RunOptions
from upgrayedd.pipeline import ELSEWHERE, plain
from upgrayedd.strategies import STRATEGIES, get_strategy

SMALL: dict[str, Any] = {"max_steps_per_cycle": 3, "sequence_length": 64}


def same_weights(a: Model, b: Model) -> bool:
    one, two = a.named_parameters(), b.named_parameters()
    return a.active_heads == b.active_heads and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"task"}))
def test_python_and_the_command_line_give_the_same_bits(name: str, texts: list[str], tmp_path: pathlib.Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts))
    Model.from_pretrained("builtin").save_pretrained(tmp_path / "model")
    options = ["--num-cycles", "2", "--max-steps-per-cycle", "3", "--sequence-length", "64", "--seed", "7"]
    command = ["optimize", "--model", str(tmp_path / "model"), "--data", str(file), "--strategy", name, *options]
    run_command([*command, "--out", str(tmp_path / "cli")])
    from_cli = Model.from_pretrained(tmp_path / "cli")

    strategy = get_strategy(name, seed=7)
    by_path = UpgrayeddPipeline(tmp_path / "model", strategy=strategy, output_dir=tmp_path / "a", seed=7, **SMALL)
    assert same_weights(by_path.run_optimization(file, num_cycles=2), from_cli)
    in_memory = UpgrayeddPipeline(
        Model.from_pretrained(tmp_path / "model"), strategy=strategy, output_dir=tmp_path / "b", seed=7, **SMALL
    )
    assert same_weights(in_memory.run_optimization(file, num_cycles=2), from_cli)
    events = [(tmp_path / run / "events.jsonl").read_text() for run in ("cli", "a", "b")]
    assert events[0] == events[1] == events[2]


def run_command(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "upgrayedd", *arguments], capture_output=True, text=True, check=True, **options)


def test_the_task_strategy_wants_labels(texts: list[str], out: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="labels"):
        UpgrayeddPipeline("builtin", strategy="task", output_dir=out, **SMALL).run_optimization(texts, num_cycles=1)
    assert not out.exists()
    prompt = [{"input_ids": [5, 6, 7, i], "labels": [-100, -100, -100, i]} for i in range(2, 60)]
    pipeline = UpgrayeddPipeline("builtin", strategy="task", output_dir=out, **SMALL)
    assert sum(pipeline.run_optimization(prompt, num_cycles=1).heads_per_layer.values()) == 23


def test_learning_from_the_parent_and_keeping_the_best_state(texts: list[str], out: pathlib.Path) -> None:
    options = {**SMALL, "max_steps_per_cycle": 8, "learning_rate": 0.05, "lr_schedule": "constant"}
    options |= {"eval_every": 1, "patience": 2, "distill": 0.5}
    pipeline = UpgrayeddPipeline("builtin", strategy="auto", output_dir=out, **options)
    pipeline.run_optimization(texts, num_cycles=1)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    measured = [e["loss"] for e in events if e.get("phase") == "learning"]
    (learned,) = [e["loss"] for e in events if e.get("phase") == "learned"]
    # So high a rate makes it worse: it stops two measurements after the best and goes back there.
    assert len(measured) < 8 and len(measured) == measured.index(min(measured)) + 3
    assert learned == min(measured)


def test_history_and_result_tell_the_same(texts: list[str], out: pathlib.Path) -> None:
    pipeline = UpgrayeddPipeline("builtin", output_dir=out, **SMALL)
    model = pipeline.run_optimization(texts, num_cycles=2)
    assert pipeline.run_dir == out
    assert [row["cycle"] for row in pipeline.history.rows()] == [1, 2]
    summary = pipeline.history.summary
    assert summary is not None and pipeline.history.baseline is not None
    assert summary["before"]["evaluation"]["loss"] == pipeline.history.baseline["loss"]
    for cycle, recorded in zip(pipeline.history, summary["cycles"], strict=True):
        assert sum(map(len, cycle.pruned.values())) == recorded["pruned"]
        assert sum(map(len, cycle.grown.values())) == recorded["grown"]
        assert (cycle.loss_pruned, cycle.loss_learned) == (recorded["loss_pruned"], recorded["loss_learned"])
    assert sum(model.heads_per_layer.values()) == pipeline.history[-1].active
    assert json.loads(json.dumps(pipeline.history.to_dict()))["cycles"][1]["cycle"] == 2
    assert len(pipeline.history.steps) == 6


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_begin(self, control: Control, **event: Any) -> None:
        self.calls.append("begin")

    def on_step_end(self, control: Control, **event: Any) -> None:
        self.calls.append("step")

    def on_evaluate(self, control: Control, **event: Any) -> None:
        self.calls.append(event["phase"])

    def on_prune(self, control: Control, **event: Any) -> None:
        self.calls.append("prune")

    def on_grow(self, control: Control, **event: Any) -> None:
        self.calls.append("grow")

    def on_cycle_end(self, control: Control, **event: Any) -> None:
        self.calls.append(f"cycle {event['accepted']}")

    def on_save(self, control: Control, **event: Any) -> None:
        self.calls.append("save")

    def on_train_end(self, control: Control, **event: Any) -> None:
        self.calls.append("end")


def test_callbacks_are_called_in_order(texts: list[str], out: pathlib.Path) -> None:
    recorder = Recorder()
    UpgrayeddPipeline("builtin", output_dir=out, callbacks=[recorder], **SMALL).run_optimization(texts, num_cycles=1)
    assert recorder.calls == [
        "begin", "baseline", "prune", "pruned", "grow", "step", "step", "step", "learned", "cycle True", "save", "result", "end"
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["stop", "false"])
def test_a_callback_stops_a_run_which_still_gives_its_result(way: str, texts: list[str], out: pathlib.Path) -> None:
    class Stops(Callback):
        def on_step_end(self, control: Control, **event: Any) -> bool | None:
            if way == "stop":
                control.stop()
            return None if way == "stop" else False

    pipeline = UpgrayeddPipeline("builtin", output_dir=out, callbacks=[Stops()], **SMALL)
    model = pipeline.run_optimization(texts, num_cycles=3)
    assert len(pipeline.history) == 1 and len(pipeline.history.steps) == 1
    assert sum(model.heads_per_layer.values()) == pipeline.history[0].active < 32


def test_a_callback_that_nothing_would_call_is_refused() -> None:
    with pytest.raises(ValueError, match="Watches.on_evaluated: .*did you mean on_evaluate"):

        class Watches(Callback):
            def on_evaluated(self, control: Any, **event: Any) -> None:
                """Never called."""


def test_metrics_callbacks_write_numbers(texts: list[str], out: pathlib.Path) -> None:
    written: list[tuple[int, dict[str, float]]] = []

    class Keeps(MetricsCallback):
        def write(self, values: dict[str, float], step: int) -> None:
            written.append((step, values))

    UpgrayeddPipeline("builtin", output_dir=out, callbacks=[Keeps()], **SMALL).run_optimization(texts, num_cycles=1)
    names = {name for _, values in written for name in values}
    assert {"train/loss", "eval/learned/perplexity", "heads/active"} <= names
    assert [step for step, values in written if "train/loss" in values] == [1, 2, 3]


def test_wandb_and_mlflow_get_the_numbers(texts: list[str], out: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, list[Any]] = {"wandb": [], "mlflow": []}
    wandb = types.SimpleNamespace(run=None, init=lambda **options: logged["wandb"].append(options))
    wandb.log = lambda values, step: logged["wandb"].append((step, values))
    mlflow = types.SimpleNamespace(log_metrics=lambda values, step: logged["mlflow"].append((step, values)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    callbacks = [WandbCallback(project="p"), MLflowCallback()]
    UpgrayeddPipeline("builtin", output_dir=out, callbacks=callbacks, **SMALL).run_optimization(texts, num_cycles=1)
    assert logged["wandb"][0] == {"project": "p"} and logged["wandb"][1:] == logged["mlflow"]
    assert [step for step, values in logged["mlflow"] if "train/loss" in values] == [1, 2, 3]


def test_other_threads_go_on_while_the_core_works(texts: list[str]) -> None:
    model, ticks, done = Model.from_pretrained("builtin"), 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    model.evaluate(texts, batch_size=100)
    done.set()
    thread.join()
    assert ticks > 3


def test_an_error_in_a_callback_arrives_as_it_was_raised(texts: list[str], out: pathlib.Path) -> None:
    class Fails(Callback):
        def on_step_end(self, control: Control, **event: Any) -> None:
            raise LookupError("in the user's callback")

    with pytest.raises(LookupError, match="in the user's callback"):
        UpgrayeddPipeline("builtin", output_dir=out, callbacks=[Fails()], **SMALL).run_optimization(texts)


def test_run_continuous_ends_when_its_condition_holds(texts: list[str], out: pathlib.Path) -> None:
    pipeline = UpgrayeddPipeline("builtin", output_dir=out, **SMALL)
    model = pipeline.run_continuous(texts, until=lambda history: history[-1].active <= 20)
    actives = [cycle.active for cycle in pipeline.history]
    assert actives[-1] <= 20 < actives[-2] and sum(model.heads_per_layer.values()) == actives[-1]


def test_events_go_to_logging(texts: list[str], out: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="upgrayedd"):
        UpgrayeddPipeline("builtin", output_dir=out, **SMALL).run_optimization(texts, num_cycles=1)
    assert any("cycle 1: pruned" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"strategy": "entrpy"}, 'unknown strategy "entrpy".*entropy'),
        ({"strategy": 3}, "strategy is a int"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"bach_size": 4}, "bach_size"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"device": "cuda:99"}, "device .cuda:99. is not available.*use cpu or auto"),
        ({"device": "cpu:1"}, "unknown device"),
        ({"precision": "fp16"}, "unknown precision .fp16.: expected one of bf16, tf32, f32"),
        ({"scope": "everywhere"}, "^scope: unknown variant `everywhere`, expected `layer` or `global`$"),
        ({"seed": -1}, "^seed: "),
        ({"learning_rate": float("nan")}, "learning_rate is nan: expected a finite number"),
        ({"batch_size": print}, "batch_size is a builtin_function_or_method"),
        ({"pruning_ratio": 0.5}, r"use strategy=get_strategy\(name, pruning_ratio=…\)"),
        ({"num_cycles": 2}, r"use run_optimization\(num_cycles=…\)"),
        ({"eval_data": "x.txt"}, "eval_dataloader"),
        ({"tokenizer": "entropy"}, "'entropy' is no folder with a tokenizer.*given as strategy="),
        ({"callbacks": None}, "callbacks is a NoneType"),
        ({"callbacks": [print]}, "expected objects of a subclass of Callback"),
        ({"tokenizer": 3}, "tokenizer is a int"),
        ({"model": 3}, "model is a int"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        UpgrayeddPipeline(**{"model": "builtin", **arguments})


def test_numpys_numbers_and_paths_are_options_too(tmp_path: pathlib.Path) -> None:
    strategy = get_strategy("random", pruning_ratio=np.float32(0.25))
    numbers: dict[str, Any] = {"batch_size": np.int64(2), "max_eval_windows": np.array(3)}
    pipeline = UpgrayeddPipeline("builtin", strategy=strategy, **numbers)
    assert (pipeline._config["batch_size"], pipeline._config["max_eval_windows"]) == (2, 3)
    assert plain("teacher", tmp_path) == str(tmp_path)


def test_an_output_folder_that_exists_is_refused(texts: list[str], out: pathlib.Path) -> None:
    out.mkdir()
    with pytest.raises(OSError, match="already exists"):
        UpgrayeddPipeline("builtin", output_dir=out).run_optimization(texts)


def test_a_run_starts_from_the_pipelines_model_as_it_is(texts: list[str], out: pathlib.Path) -> None:
    pipeline = UpgrayeddPipeline("builtin", strategy=get_strategy("magnitude", growth_ratio=0.0), output_dir=out, **SMALL)
    pipeline.model.prune({pipeline.model.layer_names[0]: [5]})
    result = pipeline.run_optimization(texts, num_cycles=1)
    assert pipeline.history.summary is not None and 5 not in pipeline.history.summary["before"]["heads"][0]
    assert 5 not in result.active_heads[result.layer_names[0]]


def test_a_model_in_memory_can_be_continued_from_its_run_folder(texts: list[str], tmp_path: pathlib.Path) -> None:
    class Interrupts(Callback):
        def on_step_end(self, control: Control, **event: Any) -> None:
            if event["cycle"] == 2 and event["step"] == 2:
                raise KeyboardInterrupt

    def pipeline(name: str, **more: Any) -> UpgrayeddPipeline:
        model = Model.from_pretrained("builtin")
        model.prune({model.layer_names[0]: [5]})
        return UpgrayeddPipeline(model, output_dir=tmp_path / name, **SMALL, **more)

    whole = pipeline("whole").run_optimization(texts)
    with pytest.raises(KeyboardInterrupt):
        pipeline("cut", callbacks=[Interrupts()]).run_optimization(texts)
    resumed = UpgrayeddPipeline.resume(tmp_path / "cut")
    assert same_weights(resumed.finish(texts), whole)
    assert [cycle.cycle for cycle in resumed.history] == [1, 2, 3]
    events = [(tmp_path / run / "events.jsonl").read_text() for run in ("whole", "cut")]
    assert events[0] == events[1]


SLOW = """
import signal, sys
# A shell that puts a command in the background has it ignore Ctrl-C, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
from upgrayedd import Callback, UpgrayeddPipeline
class Tells(Callback):
    def on_step_end(self, control, **event):
        print("working", flush=True)
texts = ["Mia was a kind girl. She had a red ball."] * 3000
UpgrayeddPipeline("builtin", output_dir=sys.argv[1], callbacks=[Tells()], batch_size=64).run_optimization(texts, num_cycles=50)
"""


def test_ctrl_c_stops_within_a_second_and_the_run_can_be_continued(out: pathlib.Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    start = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    # The promise is a second; a shared machine gets some more.
    assert time.monotonic() - start < 5
    assert errors.rstrip().endswith("KeyboardInterrupt") and "panic" not in errors
    assert process.returncode in (130, -signal.SIGINT)
    assert UpgrayeddPipeline.resume(out).run_dir == out


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from upgrayedd.__main__ import main
sys.argv = ["upgrayedd", "optimize", "--max-steps-per-cycle", "1000", "--out", sys.argv[1]]
sys.exit(main())
"""


def test_the_command_ends_as_the_program_does_on_ctrl_c(out: pathlib.Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(out)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("learn: " in line for line in process.stderr)
    os.kill(process.pid, signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait(20) == 130
    assert "upgrayedd resume" in errors and "Traceback" not in errors


def test_the_command_line_is_the_same_program(tmp_path: pathlib.Path) -> None:
    inspected = json.loads(run_command(["inspect", "builtin", "--json"]).stdout)
    assert inspected["family"] == "llama" and inspected["heads"] == [8, 8, 8, 8]
    script = pathlib.Path(sys.executable).parent / "upgrayedd"
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert version == f"upgrayedd {_native.__version__}\n"
    wrong = subprocess.run([script, "optimize", "--strategy", "entrpy"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and "entropy" in wrong.stderr


def test_importing_is_light() -> None:
    code = "import sys, upgrayedd; sys.exit(bool({'torch', 'transformers', 'numpy', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_option_of_the_core_has_a_type_or_is_said_elsewhere() -> None:
    own = {"model", "strategy", "device", "learning_rate", "seed"}
    assert set(RunOptions.__annotations__) | own | set(ELSEWHERE) == set(_native.option_names())
    assert set(STRATEGIES) == set(_native.strategy_names())
