"""What strategies of the user's return is checked; what they raise comes through."""

import json
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from upgrayedd import FileError, Model, UpgrayeddPipeline
from upgrayedd.strategies.base import BasePruningStrategy
from upgrayedd.strategies.magnitude import MagnitudePruningStrategy
from upgrayedd.strategies.scored import AutoPruningStrategy

Decision = Callable[[Model], Any]


class Fixed(BasePruningStrategy):
    """Returns what the test says."""

    def __init__(self, prune: Decision, grow: Decision = lambda model: {}, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.prune, self.grow = prune, grow
        self.seen: list[dict[str, Any]] = []

    def select_heads_to_prune(self, model: Model, head_importances: Any) -> dict[str, list[int]]:
        return self.prune(model)  # type: ignore[no-any-return]

    def select_heads_to_grow(self, model: Model, pruned_heads: Any, metrics: Any) -> dict[str, int]:
        self.seen.append(dict(metrics))
        return self.grow(model)  # type: ignore[no-any-return]


def run(strategy: BasePruningStrategy, texts: list[str], out: pathlib.Path, cycles: int = 2, **more: Any) -> Model:
    options: dict[str, Any] = {"max_steps_per_cycle": 2, "sequence_length": 64, **more}
    return UpgrayeddPipeline("builtin", strategy=strategy, output_dir=out, **options).run_optimization(texts, num_cycles=cycles)


FIRST = "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (Fixed(lambda m: {"layers.9": [0]}), "unknown layer 'layers.9'.*model.layers.0.self_attn"),
        (Fixed(lambda m: {FIRST: [8]}), "head 8 .*does not exist: the layer has heads 0 to 7"),
        (Fixed(lambda m: {FIRST: [-1]}), "head -1 .*does not exist"),
        (Fixed(lambda m: {FIRST: [2]}), "head 2 of layer 0 is already pruned: the active heads are"),
        (Fixed(lambda m: {FIRST: [1, 1]}), "head 1 of layer 0 is named twice"),
        (Fixed(lambda m: {FIRST: list(range(7))}, min_heads=2), "leave layer 0 with 1 of its 8 heads: at least 2 must stay"),
        (Fixed(lambda m: {FIRST: 3}), "expected a list of head indices"),
        (Fixed(lambda m: [3]), "expected layer name"),
        (Fixed(lambda m: {FIRST: [1]}, lambda m: {FIRST: 2}), "2 heads are to grow in layer 0, which has 1 to restore"),
        (Fixed(lambda m: {FIRST: [1]}, lambda m: {"x": 1}), "select_heads_to_grow: unknown layer 'x'"),
        (Fixed(lambda m: {FIRST: [1]}, lambda m: {FIRST: "all"}), "expected a number of heads"),
        (Fixed(lambda m: {FIRST: [1]}, lambda m: 1), "expected layer name"),
    ],
)
def test_impossible_decisions_are_value_errors(strategy: Fixed, says: str, texts: list[str], out: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=says):
        run(strategy, texts, out)


def test_metrics_are_filled(texts: list[str], out: pathlib.Path) -> None:
    strategy = Fixed(lambda m: {name: heads[:1] for name, heads in m.active_heads.items()}, growth_ratio=0.5)
    model = run(strategy, texts, out)
    first, second = strategy.seen
    assert first["loss"] > 0 and first["perplexity"] > 1 and first["tokens"] > 0
    assert (first["cycle"], second["cycle"]) == (1, 2)
    assert (first["allowed"], second["allowed"]) == (2, 4)
    assert first["history"] == [] and second["history"][0]["loss_learned"] > 0
    assert list(first["layer_means"]) == model.layer_names
    assert model.heads_per_layer == dict.fromkeys(model.layer_names, 6)


def test_an_exception_arrives_as_it_was_raised_and_the_run_can_be_continued(texts: list[str], out: pathlib.Path) -> None:
    class Mine(Exception):
        pass

    class Fails(MagnitudePruningStrategy):
        broken = True

        def select_heads_to_grow(self, model: Model, pruned_heads: Any, metrics: Any) -> dict[str, int]:
            if self.broken and metrics["cycle"] == 2:
                raise Mine("a bug of the user's")
            return super().select_heads_to_grow(model, pruned_heads, metrics)

    strategy = Fails()
    with pytest.raises(Mine, match="a bug of the user's") as caught:
        run(strategy, texts, out, cycles=3)
    assert "raise Mine" in "".join(traceback.format_tb(caught.tb))
    strategy.broken = False
    resumed = UpgrayeddPipeline.resume(out, strategy=strategy)
    model = resumed.finish(texts)
    assert [c.cycle for c in resumed.history] == [1, 2, 3]

    whole = run(strategy, texts, out.parent / "whole", cycles=3)
    assert model.active_heads == whole.active_heads
    a, b = model.named_parameters(), whole.named_parameters()
    assert all((a[name] == b[name]).all() for name in a)


def test_a_run_with_parts_of_the_callers_says_what_it_needs(texts: list[str], out: pathlib.Path) -> None:
    class Fails(MagnitudePruningStrategy):
        def select_heads_to_prune(self, model: Model, head_importances: Any) -> dict[str, list[int]]:
            raise RuntimeError("stop")

    class Other(MagnitudePruningStrategy):
        pass

    with pytest.raises(RuntimeError, match="stop"):
        run(Fails(), texts, out)
    with pytest.raises(ValueError, match="give it again as strategy="):
        UpgrayeddPipeline.resume(out)
    with pytest.raises(ValueError, match="give the same again"):
        UpgrayeddPipeline.resume(out, strategy=Fails()).finish()
    with pytest.raises(ValueError, match="was started with a Fails, not a Other"):
        UpgrayeddPipeline.resume(out, strategy=Other())
    Other.__name__ = "Fails"
    with pytest.raises(FileError, match="data has changed"):
        UpgrayeddPipeline.resume(out, strategy=Other()).finish([*texts[:-1], "Else."])


@pytest.mark.parametrize("built_in", [MagnitudePruningStrategy, AutoPruningStrategy])
def test_a_subclass_of_a_built_in_strategy_decides_as_it_does(
    built_in: type[BasePruningStrategy], texts: list[str], out: pathlib.Path
) -> None:
    class Same(built_in):  # type: ignore[misc, valid-type]
        pass

    ours = run(Same(), texts, out)
    theirs = run(built_in(), texts, out.parent / "built-in")
    assert ours.active_heads == theirs.active_heads

    def decisions(folder: pathlib.Path) -> list[Any]:
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        return [e for e in events if e["event"] in ("pruned", "grown", "step", "evaluated")]

    assert decisions(out) == decisions(out.parent / "built-in")


class Narrow(BasePruningStrategy):
    """Takes the weakest channel of every layer and its first head, and brings a channel back."""

    def select_heads_to_prune(self, model: Model, head_importances: Any) -> dict[str, list[int]]:
        raise AssertionError("asked about units")

    def select_heads_to_grow(self, model: Model, pruned_heads: Any, metrics: Any) -> dict[str, int]:
        assert metrics["gains"].keys() == pruned_heads.keys()
        return {}

    def select_units_to_prune(self, model: Model, importances: Any) -> dict[str, dict[str, list[int]]]:
        weakest = {
            mlp: [model.active_channels[mlp][int(values.argmin())]] for mlp, values in importances.get("channels", {}).items()
        }
        return {"heads": {name: heads[:1] for name, heads in model.active_heads.items()}, "channels": weakest}

    def select_units_to_grow(self, model: Model, kind: str, pruned_units: Any, metrics: Any) -> dict[str, int]:
        if kind == "heads":
            return super().select_units_to_grow(model, kind, pruned_units, metrics)
        first = model.mlp_names[0]
        assert list(metrics["gains"][first]) == pruned_units[first] and first in metrics["layer_means"]
        return {first: 1}


def test_a_strategy_may_decide_about_channels_too(texts: list[str], tmp_path: pathlib.Path) -> None:
    smaller = run(Narrow(), texts, tmp_path / "run", 1, units="all")
    assert list(smaller.channels_per_layer.values()) == [352, 351, 351, 351]
    assert set(smaller.heads_per_layer.values()) == {7}
    # Asked about heads alone, it answers about heads alone.
    with pytest.raises(ValueError, match="expected heads → layer name"):
        run(Narrow(), texts, tmp_path / "heads", 1, units="heads")


class Wrong(Narrow):
    def select_units_to_prune(self, model: Model, importances: Any) -> dict[str, dict[str, list[int]]]:
        return {"channels": {model.mlp_names[0]: [4000]}}


def test_channels_that_do_not_exist_are_refused(texts: list[str], tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="channel 4000 of layer .* does not exist"):
        run(Wrong(), texts, tmp_path / "run", 1, units="all")
