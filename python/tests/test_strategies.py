"""Strategies on their own: parameters, decisions, subclasses."""

from typing import Any

import numpy as np
import pytest

from upgrayedd import InvalidValueError, Model, UpgrayeddPipeline
from upgrayedd.strategies import (
    STRATEGIES,
    EntropyPruningStrategy,
    MagnitudePruningStrategy,
    RandomPruningStrategy,
    get_strategy,
)
from upgrayedd.strategies.base import BasePruningStrategy

ALL = sorted(STRATEGIES)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_pretrained("builtin")


def rising(model: Model) -> dict[str, Any]:
    return {name: np.arange(count, dtype=float) for name, count in model.heads_per_layer.items()}


def test_parameters_have_their_published_names_and_defaults() -> None:
    strategy = get_strategy("entropy", pruning_ratio=0.3, growth_ratio=0.1)
    assert isinstance(strategy, EntropyPruningStrategy)
    assert (strategy.pruning_ratio, strategy.growth_ratio, strategy.min_heads, strategy.seed) == (0.3, 0.1, 1, None)
    assert (strategy.attention_samples, strategy.use_cached_entropy) == (128, True)
    magnitude = MagnitudePruningStrategy()
    assert (magnitude.weight_threshold, magnitude.use_cached_magnitudes) == (0.01, True)
    assert (
        repr(RandomPruningStrategy(0.5)) == "RandomPruningStrategy(pruning_ratio=0.5, growth_ratio=0.1, min_heads=1, seed=None)"
    )


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("entropy", {"pruning_ratio": 1.0}, "pruning_ratio is 1"),
        ("entropy", {"pruning_ratio": -0.1}, "pruning_ratio"),
        ("random", {"growth_ratio": 1.5}, "growth_ratio is 1.5: expected 0 to 1"),
        ("magnitude", {"min_heads": 0}, "min_heads is 0"),
        ("magnitude", {"weight_threshold": -1.0}, "weight_threshold"),
        ("entropy", {"attention_samples": 0}, "attention_samples is 0"),
        ("entropy", {"pruning_ratio": "much"}, "expected a number"),
        ("entropy", {"prune": 0.3}, "pruning_ratio"),
        ("entrpy", {}, "entropy"),
    ],
)
def test_wrong_parameters_are_value_errors_that_say_what_would_be_right(name: str, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        get_strategy(name, **parameters)
    assert isinstance(caught.value, InvalidValueError)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"auto"}))
def test_each_layer_loses_exactly_its_share(model: Model, name: str) -> None:
    chosen = get_strategy(name, pruning_ratio=0.25).select_heads_to_prune(model, rising(model))
    assert {layer: len(heads) for layer, heads in chosen.items()} == dict.fromkeys(model.layer_names, 2)


def test_auto_takes_the_lowest_of_all_layers(model: Model) -> None:
    importances = {name: values + 10.0 * i for i, (name, values) in enumerate(rising(model).items())}
    chosen = get_strategy("auto", pruning_ratio=0.25).select_heads_to_prune(model, importances)
    # Every layer keeps a head.
    assert chosen == {model.layer_names[0]: [0, 1, 2, 3, 4, 5, 6], model.layer_names[1]: [0]}


def test_the_gains_of_dormant_heads_say_where_to_grow(model: Model) -> None:
    pruned = {name: [0, 1] for name in model.layer_names}
    gains = {name: {0: -1.0, 1: float(i)} for i, name in enumerate(model.layer_names)}
    counts = get_strategy("fisher", growth_ratio=0.25).select_heads_to_grow(
        model, pruned, {"layer_means": dict.fromkeys(model.layer_names, 0.0), "gains": gains}
    )
    assert counts == {model.layer_names[2]: 1, model.layer_names[3]: 1}


def test_entropy_takes_the_highest_and_magnitude_the_lowest(model: Model) -> None:
    layer = model.layer_names[0]
    assert EntropyPruningStrategy(0.25).select_heads_to_prune(model, rising(model))[layer] == [6, 7]
    lists = {name: [100.0 + float(v) for v in values] for name, values in rising(model).items()}
    assert MagnitudePruningStrategy(0.25).select_heads_to_prune(model, lists)[layer] == [0, 1]


@pytest.mark.parametrize("name", ALL)
def test_growth_is_the_share_of_what_was_pruned(model: Model, name: str) -> None:
    strategy = get_strategy(name, growth_ratio=0.5, seed=1)
    strategy.select_heads_to_prune(model, rising(model))
    pruned = {model.layer_names[1]: [0, 1, 2], model.layer_names[3]: [4]}
    counts = strategy.select_heads_to_grow(model, pruned, {"loss": 2.0})
    assert sum(counts.values()) == 2
    assert all(count <= len(pruned[layer]) for layer, count in counts.items())


def test_entropy_grows_where_the_rest_is_most_focused(model: Model) -> None:
    means = {name: float(i != 2) for i, name in enumerate(model.layer_names)}
    pruned = {name: [0] for name in model.layer_names}
    counts = EntropyPruningStrategy(growth_ratio=0.25).select_heads_to_grow(model, pruned, {"layer_means": means})
    assert counts == {model.layer_names[2]: 1}
    with pytest.raises(ValueError, match="layer_means"):
        EntropyPruningStrategy().select_heads_to_grow(model, pruned, {})


def test_scores_are_what_they_say(model: Model, texts: list[str]) -> None:
    strategy = EntropyPruningStrategy()
    assert strategy.calculate_heads_per_layer(model) == dict.fromkeys(model.layer_names, 8)
    entropies = strategy.calculate_attention_entropy(model, texts)
    assert all(values.shape == (8,) and (values >= 0).all() and (values <= 1).all() for values in entropies.values())
    weights = model.named_parameters()
    name = model.layer_names[0]
    parts = [weights[f"{name}.{part}_proj.weight"] for part in "qkv"]
    head = sum(float((part[16:32].astype(np.float64) ** 2).sum()) for part in parts)
    head += float((weights[f"{name}.o_proj.weight"][:, 16:32].astype(np.float64) ** 2).sum())
    assert strategy.calculate_head_magnitudes(model)[name][1] == pytest.approx(head**0.5, rel=1e-6)


def test_importances_that_do_not_fit_are_refused(model: Model) -> None:
    strategy = MagnitudePruningStrategy()
    for importances, says in [
        ({"nowhere": [1.0]}, "unknown layer 'nowhere'"),
        ({name: [1.0] for name in model.layer_names}, "1 values for the 8 active heads"),
        ({model.layer_names[0]: [1.0] * 8}, "no values for layer"),
        ([1.0], "expected layer name"),
        (dict.fromkeys(model.layer_names), "None for layer .* expected a number for each active head"),
        (dict.fromkeys(model.layer_names, "high"), "expected a number for each active head"),
        (dict.fromkeys(model.layer_names, np.ones((8, 1))), "2 dimensions for layer"),
        ({-1: [1.0] * 8}, "unknown layer -1"),
    ]:
        with pytest.raises(ValueError, match=says):
            strategy.select_heads_to_prune(model, importances)  # type: ignore[arg-type]


def test_a_strategy_that_is_not_made_as_it_should_be_is_refused() -> None:
    class Forgetful(MagnitudePruningStrategy):
        def __init__(self) -> None:
            self.mine = 1

    with pytest.raises(ValueError, match=r"Forgetful has no pruning_ratio: its __init__ has to call super\(\)"):
        UpgrayeddPipeline("builtin", strategy=Forgetful())
    with pytest.raises(ValueError, match="strategy is a NoneType"):
        get_strategy(None)  # type: ignore[arg-type]


def test_a_strategy_must_decide_both_things() -> None:
    class Half(BasePruningStrategy):
        def select_heads_to_prune(self, model: Model, head_importances: Any) -> dict[str, list[int]]:
            return {}

    with pytest.raises(TypeError, match="select_heads_to_grow"):
        Half()  # type: ignore[abstract]
