"""A run that was interrupted goes on with what it had, whatever the caller gives again."""

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from upgrayedd import Callback, Control, FileError, History, Model, UpgrayeddPipeline
from upgrayedd.callbacks import MetricsCallback
from upgrayedd.strategies import MagnitudePruningStrategy

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden"
SMALL: dict[str, Any] = {"sequence_length": 64, "max_steps_per_cycle": 3, "max_eval_windows": 4}


class Interrupts(Callback):
    """At the end of a cycle, once it is saved."""

    def __init__(self, cycle: int = 1) -> None:
        self.cycle = cycle

    def on_save(self, control: Control, **event: Any) -> None:
        if event["cycle"] == self.cycle:
            raise KeyboardInterrupt


def start(model: Any, data: Any, out: pathlib.Path, cycles: int = 2, cut: bool = True, **options: Any) -> UpgrayeddPipeline:
    pipeline = UpgrayeddPipeline(model, output_dir=out, callbacks=[Interrupts()] if cut else [], **options)
    if cut:
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_optimization(data, num_cycles=cycles)
    else:
        pipeline.run_optimization(data, num_cycles=cycles)
    return pipeline


def events(out: pathlib.Path) -> list[str]:
    return (out / "events.jsonl").read_text().splitlines()


class Shuffled:
    """Rows that nobody takes for another, in another order each time, even of the next program; remembers what was read."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return 30

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = np.random.default_rng(0).integers(3, 200, (120, 16))
        order = self.random.permutation(120)
        for i in range(0, 120, 4):
            yield {"input_ids": rows[order[i : i + 4]]}


def test_what_was_held_out_stays_so_when_the_loader_shuffles(out: pathlib.Path) -> None:
    start("builtin", Shuffled(1), out)
    kept = json.loads((out / "base" / "set_aside.json").read_text())
    assert len(kept["held_out"]) == 12 and len(kept["calibration"]) == 12
    pipeline = UpgrayeddPipeline.resume(out)
    pipeline.finish(Shuffled(2))
    assert pipeline.history.summary is not None
    before, after = (pipeline.history.summary[side]["evaluation"] for side in ("before", "after"))
    assert before["data_hash"] == after["data_hash"] and before["tokens"] == after["tokens"]
    assert len({json.loads(line)["data_hash"] for line in events(out) if '"evaluated"' in line}) == 1
    # 96 of the 120 rows are learned from in each cycle: nothing that was set aside comes back.
    assert [step["tokens"] for step in pipeline.history.steps][23::24] == [96 * 15, 2 * 96 * 15]


def test_a_damaged_record_of_what_was_held_out_is_refused(out: pathlib.Path) -> None:
    start("builtin", Shuffled(1), out)
    kept = out / "base" / "set_aside.json"
    text = kept.read_text()
    for content, says in [
        (text[:-9], "damaged"),
        (re.sub(r'"tokens":\[\d+', '"tokens":[99999', text, count=1), "token 99999 is not below"),
        (text.replace('"tokens":[', '"tokens":[7,', 1), "has 16 labels for 17 tokens"),
    ]:
        kept.write_text(content)
        with pytest.raises((OSError, ValueError), match=says):
            UpgrayeddPipeline.resume(out).finish(Shuffled(1))


def test_texts_are_not_a_loader(texts: list[str], out: pathlib.Path) -> None:
    start("builtin", texts, out, **SMALL)
    with pytest.raises(FileError, match="was not started with a data loader"):
        UpgrayeddPipeline.resume(out).finish(Shuffled(1))


def test_weights_that_the_models_type_does_not_have_are_kept_as_they_are(tmp_path: pathlib.Path) -> None:
    rows = [np.random.default_rng(i).integers(3, 200, (4, 32)) for i in range(20)]

    def refitted() -> Model:
        model = Model.from_pretrained("builtin")
        parent = model.copy()
        model.prune({model.layer_names[0]: [0, 1, 2, 3]})
        model.refit(parent, rows)
        assert model.summary()["dtype"] == "float16"
        weights = np.concatenate([w.ravel() for w in model.named_parameters().values()])
        assert (weights != weights.astype(np.float16)).any()
        return model

    start(refitted(), rows, tmp_path / "whole", cut=False, **SMALL)
    start(refitted(), rows, tmp_path / "cut", **SMALL)
    pipeline = UpgrayeddPipeline.resume(tmp_path / "cut")
    pipeline.finish(rows)
    assert events(tmp_path / "cut") == events(tmp_path / "whole")
    whole, cut = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "cut"))
    assert whole["before"]["cost"] == cut["before"]["cost"]


def test_random_directions_of_an_encoder_are_drawn_anew_in_each_cycle(tmp_path: pathlib.Path) -> None:
    rows = list(np.random.default_rng(1).integers(5, 40, (30, 4, 12)))
    for name, cut in (("whole", False), ("cut", True)):
        # A cycle that is rolled back leaves the very model that was scored before.
        model = Model.from_pretrained(GOLDEN / "bert_encoder")
        options = {**SMALL, "sequence_length": 12, "strategy": "fisher", "max_loss_increase": 0.0, "learning_rate": 0.1}
        start(model, rows, tmp_path / name, cut=cut, **options)
    assert any('"rolled_back"' in line for line in events(tmp_path / "whole"))
    UpgrayeddPipeline.resume(tmp_path / "cut").finish(rows)
    assert events(tmp_path / "cut") == events(tmp_path / "whole")


def test_a_run_without_a_number_of_cycles_goes_on_until_its_condition_holds(texts: list[str], tmp_path: pathlib.Path) -> None:
    def until(history: History) -> bool:
        return len(history) >= 3

    for name, callbacks in (("whole", []), ("cut", [Interrupts(2)])):
        pipeline = UpgrayeddPipeline("builtin", output_dir=tmp_path / name, callbacks=callbacks, **SMALL)
        try:
            pipeline.run_continuous(texts, until=until)
        except KeyboardInterrupt:
            assert name == "cut"
    with pytest.raises(ValueError, match="has no number of cycles: say with until="):
        UpgrayeddPipeline.resume(tmp_path / "cut").finish(texts)
    command = [sys.executable, "-m", "upgrayedd", "resume", str(tmp_path / "cut")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "has no number of cycles" in refused.stderr
    pipeline = UpgrayeddPipeline.resume(tmp_path / "cut")
    with pytest.raises(ValueError, match="continue it with finish"):
        pipeline.run_continuous(texts, until=until)
    pipeline.finish(texts, until=until)
    assert [cycle.cycle for cycle in pipeline.history] == [1, 2, 3]
    assert pipeline.history.baseline is not None
    assert events(tmp_path / "cut") == events(tmp_path / "whole")


def test_the_strategy_of_a_run_cannot_be_exchanged(texts: list[str], tmp_path: pathlib.Path) -> None:
    class Mine(MagnitudePruningStrategy):
        pass

    class Other(MagnitudePruningStrategy):
        pass

    start("builtin", texts, tmp_path / "named", **SMALL)
    with pytest.raises(ValueError, match="has a built-in strategy, auto"):
        UpgrayeddPipeline.resume(tmp_path / "named", strategy=MagnitudePruningStrategy())
    start("builtin", texts, tmp_path / "mine", strategy=Mine(0.25), **SMALL)
    for strategy, says in [
        (None, "give it again"),
        (Other(0.25), "a Mine, not a Other"),
        (Mine(0.5), "pruning_ratio=0.25, not 0.5"),
        ("magnitude", "strategy is a str"),
    ]:
        with pytest.raises(ValueError, match=says):
            UpgrayeddPipeline.resume(tmp_path / "mine", strategy=strategy)  # type: ignore[arg-type]
    UpgrayeddPipeline.resume(tmp_path / "mine", strategy=Mine(0.25)).finish(texts)


def test_a_folder_in_the_way_says_how_to_go_on(texts: list[str], tmp_path: pathlib.Path) -> None:
    start("builtin", texts, tmp_path / "run", **SMALL)
    with pytest.raises(FileError, match=r"choose another output_dir, or continue it with UpgrayeddPipeline\.resume"):
        UpgrayeddPipeline("builtin", output_dir=tmp_path / "run").run_optimization(texts)
    with pytest.raises(FileError, match="is not a run folder"):
        History.read(tmp_path)


def test_metrics_go_on_with_the_run_s_own_count_of_steps(texts: list[str], out: pathlib.Path) -> None:
    class Keeps(MetricsCallback):
        def write(self, values: dict[str, float], step: int) -> None:
            if "train/loss" in values:
                written.append(step)

    written: list[int] = []
    start("builtin", texts, out, **SMALL)
    UpgrayeddPipeline.resume(out, callbacks=[Keeps()]).finish(texts)
    assert written == [4, 5, 6]
