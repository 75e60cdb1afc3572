"""A strategy object as the core asks it: layers by index, answers checked before anything is done with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from upgrayedd.errors import InvalidValueError
from upgrayedd.model import Model

if TYPE_CHECKING:
    from upgrayedd.strategies.base import BasePruningStrategy


class Adapter:
    """A strategy object as the core asks it: layers by index in, layers by index out."""

    def __init__(self, strategy: BasePruningStrategy) -> None:
        self._strategy = strategy
        self.name = type(strategy).__name__
        self.higher_keeps = strategy.higher_keeps
        self.samples = strategy._samples()
        # What a subclass of a built-in strategy does not decide anew is as it is there.
        self.built_in = strategy._built_in()

    def params(self) -> str:
        """The parameters as JSON."""
        return self._strategy._params()

    def importances(self, core: Any, batches: list[dict[str, Any]], seed: int) -> list[list[float]]:
        """`calculate_head_importances`, checked."""
        model = Model._of(core)
        model._seed = seed
        found = self._strategy.calculate_head_importances(model, batches)
        return model._values_by_layer(found, "calculate_head_importances")

    def prune(self, core: Any, importances: list[list[float]], allowed: str) -> dict[int, list[int]]:
        """`select_heads_to_prune`, checked; `allowed` is what the cycle lets go, in the core's words."""
        import numpy as np

        model = Model._of(core)
        named = dict(zip(model.layer_names, map(np.asarray, importances), strict=True))
        with self._strategy._within(allowed):
            chosen = self._strategy.select_heads_to_prune(model, named)
        return model._by_layer(chosen, "select_heads_to_prune")

    def grow(self, core: Any, metrics: str, allowed: str) -> dict[int, int]:
        """`select_heads_to_grow`, checked; `allowed` is what the cycle lets return, in the core's words."""
        model = Model._of(core)
        given = json.loads(metrics)
        evaluation = given.pop("evaluation")
        given["gains"] = {layer: {int(head): gain for head, gain in heads.items()} for layer, heads in given["gains"].items()}
        named = {**evaluation, **given, "layer_means": dict(zip(model.layer_names, given["layer_means"], strict=True))}
        with self._strategy._within(allowed):
            counts = self._strategy.select_heads_to_grow(model, model.pruned_heads, named)
        if not isinstance(counts, Mapping):
            raise InvalidValueError(f"select_heads_to_grow returned a {type(counts).__name__}: expected layer name → count")
        return {model._layer(name, "select_heads_to_grow"): count_of(name, count) for name, count in counts.items()}


def count_of(layer: str, count: Any) -> int:
    """A whole number of heads, or an error that names the layer."""
    if isinstance(count, bool) or not hasattr(count, "__index__") or int(count) < 0:
        raise InvalidValueError(f"select_heads_to_grow: {count!r} for layer {layer!r}: expected a number of heads, 0 or more")
    return int(count)
