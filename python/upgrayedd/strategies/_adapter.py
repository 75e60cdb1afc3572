"""A strategy object as the core asks it: layers by index, answers checked before anything is done with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from upgrayedd._units import by_layer, layer_index, values_by_layer
from upgrayedd.errors import InvalidValueError
from upgrayedd.model import Model
from upgrayedd.strategies.base import BasePruningStrategy


class Adapter:
    """A strategy object as the core asks it: layers by index in, layers by index out."""

    def __init__(self, strategy: BasePruningStrategy) -> None:
        self._strategy = strategy
        self.name = type(strategy).__name__
        self.higher_keeps = strategy.higher_keeps
        self.samples = strategy._samples()
        # Whether it decides about more than heads.
        self.all_units = type(strategy).select_units_to_prune is not BasePruningStrategy.select_units_to_prune
        # What a subclass of a built-in strategy does not decide anew is as it is there.
        self.built_in = strategy._built_in()

    def params(self) -> str:
        """The parameters as JSON."""
        return self._strategy._params()

    def importances(self, core: Any, batches: list[dict[str, Any]], seed: int, kinds: list[str]) -> dict[str, list[list[float]]]:
        """`calculate_unit_importances` of each kind, checked."""
        model = Model._of(core)
        model._seed = seed
        names = {"heads": "calculate_head_importances"}
        found = {kind: self._strategy.calculate_unit_importances(model, batches, kind) for kind in kinds}
        return {
            kind: values_by_layer(model._core, values, names.get(kind, "calculate_unit_importances"), kind)
            for kind, values in found.items()
        }

    def prune(self, core: Any, importances: dict[str, list[list[float]]], allowed: str) -> dict[str, dict[int, list[int]]]:
        """`select_units_to_prune`, checked; `allowed` is what the cycle lets go, in the core's words."""
        import numpy as np

        model = Model._of(core)
        named = {
            kind: dict(zip(model._core.layer_names(kind), map(np.asarray, layers), strict=True))
            for kind, layers in importances.items()
        }
        with self._strategy._within(allowed):
            chosen = self._strategy.select_units_to_prune(model, named)
        if not self.all_units:
            return {"heads": by_layer(model._core, chosen["heads"], "select_heads_to_prune")}
        if not isinstance(chosen, Mapping) or not set(chosen) <= set(named):
            kinds = " and ".join(named)
            raise InvalidValueError(f"select_units_to_prune returned {chosen!r}: expected {kinds} → layer name → indices")
        return {kind: by_layer(model._core, units, "select_units_to_prune", kind) for kind, units in chosen.items()}

    def grow(self, core: Any, kind: str, metrics: str, allowed: str) -> dict[int, int]:
        """`select_units_to_grow`, checked; `allowed` is what the cycle lets return, in the core's words."""
        model = Model._of(core)
        given = json.loads(metrics)
        evaluation = given.pop("evaluation")
        given["gains"] = {layer: {int(unit): gain for unit, gain in units.items()} for layer, units in given["gains"].items()}
        means = dict(zip(model._core.layer_names(kind), given["layer_means"], strict=True))
        named = {**evaluation, **given, "layer_means": means}
        pruned = model.pruned_heads if kind == "heads" else model.pruned_channels
        with self._strategy._within(allowed):
            counts = self._strategy.select_units_to_grow(model, kind, pruned, named)
        who = "select_units_to_grow" if self.all_units else "select_heads_to_grow"
        if not isinstance(counts, Mapping):
            raise InvalidValueError(f"{who} returned a {type(counts).__name__}: expected layer name → count")
        return {layer_index(model._core, name, who, kind): count_of(name, count, who, kind) for name, count in counts.items()}


def count_of(layer: str, count: Any, who: str, kind: str) -> int:
    """A whole number of units, or an error that names the layer."""
    if isinstance(count, bool) or not hasattr(count, "__index__") or int(count) < 0:
        raise InvalidValueError(f"{who}: {count!r} for layer {layer!r}: expected a number of {kind}, 0 or more")
    return int(count)
