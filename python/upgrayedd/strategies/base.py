"""What every strategy shares, and how to write one."""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from upgrayedd import _native
from upgrayedd._units import by_layer, layer_index, values_by_layer
from upgrayedd.errors import InvalidValueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from upgrayedd.model import Model


class BasePruningStrategy(ABC):
    """Decides which heads go and where heads come back. Decisions are pure: the pipeline carries them out and checks them.

    A strategy of your own implements `select_heads_to_prune` and `select_heads_to_grow`, and may override
    `calculate_head_importances`. Head indices are the original ones for the whole life of a model; arrays of importances
    follow the order of `model.active_heads[layer]`.

    One that decides about channels too overrides `select_units_to_prune`, and `calculate_unit_importances` and
    `select_units_to_grow` where it wants to. What the run's option `units` names is what it is asked about.

    Args:
        pruning_ratio: Share of the active heads pruned per cycle, 0 ≤ r < 1.
        growth_ratio: Share of the pruned heads grown back per cycle, 0 to 1.
        min_heads: Heads that every layer keeps, at least 1.
        seed: Of random choices; None takes the run's.

    Raises:
        InvalidValueError: (a ValueError) for a value out of range.
    """

    name: ClassVar[str] = ""
    """The registered name of a built-in strategy; the class's own for others."""
    higher_keeps: ClassVar[bool] = True
    """Whether heads with high importances are the ones to keep."""

    def __init__(
        self, pruning_ratio: float = 0.3, growth_ratio: float = 0.1, min_heads: int = 1, seed: int | None = None
    ) -> None:
        self.pruning_ratio: float = number(pruning_ratio)
        self.growth_ratio: float = number(growth_ratio)
        self.min_heads: int = number(min_heads)
        self.seed: int | None = number(seed)
        BasePruningStrategy._check(self)

    @abstractmethod
    def select_heads_to_prune(self, model: Model, head_importances: Mapping[str, Any]) -> dict[str, list[int]]:
        """The heads to prune: layer name → original indices.

        Args:
            model: The model before pruning.
            head_importances: Layer name → importance of each active head, in the order of `model.active_heads[layer]`.
        """

    @abstractmethod
    def select_heads_to_grow(
        self, model: Model, pruned_heads: Mapping[str, list[int]], metrics: Mapping[str, Any]
    ) -> dict[str, int]:
        """How many heads come back in which layer: layer name → count.

        Args:
            model: The model after pruning.
            pruned_heads: Layer name → original indices of the heads that can come back.
            metrics: `loss`, `perplexity` (or `accuracy`, `spearman`) and `tokens` of the held-out measurement after pruning;
                `gains`, layer name → pruned head → what its return promises (see `Model.growth_gains`);
                `layer_means`, layer name → mean importance of the heads that are left; `allowed`, how many heads the
                growth ratio lets back; `cycle`, from 1; `history`, one dictionary per cycle before.
        """

    def calculate_head_importances(self, model: Model, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The importances that the pipeline hands to `select_heads_to_prune`; by default weight magnitudes.

        Args:
            model: The model before pruning.
            dataloader: The calibration batches: dictionaries of `input_ids`, `attention_mask` and `labels`, NumPy arrays
                of shape (batch, length).
        """
        return dict(self.calculate_head_magnitudes(model))

    def select_units_to_prune(
        self, model: Model, importances: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, list[int]]]:
        """The units to prune: kind (`heads`, `channels`) → layer name → original indices; by default heads alone.

        Args:
            model: The model before pruning.
            importances: Kind → layer name → importance of each active unit, in the order of `model.active_heads` and
                `model.active_channels`.
        """
        return {"heads": self.select_heads_to_prune(model, importances["heads"])}

    def select_units_to_grow(
        self, model: Model, kind: str, pruned_units: Mapping[str, list[int]], metrics: Mapping[str, Any]
    ) -> dict[str, int]:
        """How many units of a kind come back in which layer: layer name → count; by default heads, and no channels.

        Args:
            model: The model after pruning.
            kind: `heads` or `channels`.
            pruned_units: Layer name → original indices of those that can come back.
            metrics: As for `select_heads_to_grow`, about units of this kind.
        """
        return self.select_heads_to_grow(model, pruned_units, metrics) if kind == "heads" else {}

    def calculate_unit_importances(self, model: Model, dataloader: Iterable[Mapping[str, Any]], kind: str) -> dict[str, Any]:
        """The importances of a kind that `select_units_to_prune` gets; by default `calculate_head_importances`, and weight
        magnitudes of channels.

        Args:
            model: The model before pruning.
            dataloader: The calibration batches, as for `calculate_head_importances`.
            kind: `heads` or `channels`.
        """
        if kind == "heads":
            return self.calculate_head_importances(model, dataloader)
        return dict(model.score("magnitude", units="channels"))

    def calculate_heads_per_layer(self, model: Model) -> dict[str, int]:
        """Layer name → number of heads that it still has."""
        return dict(model.heads_per_layer)

    def calculate_attention_entropy(self, model: Model, dataloader: Any) -> dict[str, NDArray[np.float64]]:
        """Layer name → attention entropy of each active head, divided by the log of the visible keys, in [0, 1].

        Padding never counts. High entropy is attention that is spread out.
        """
        return model.score("entropy", dataloader, samples=self._samples() or 128)

    def calculate_head_magnitudes(self, model: Model) -> dict[str, NDArray[np.float64]]:
        """Layer name → L2 norm over the Q, K, V and O weights of each active head."""
        return model.score("magnitude")

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Names of the constructor's parameters."""
        return [name for name in inspect.signature(cls).parameters if name != "self"]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.parameter_names() if hasattr(self, name))
        return f"{type(self).__name__}({values})"

    def _samples(self) -> int | None:
        """Calibration sequences that the strategy asks for."""
        return None

    _allowed: str | None = None
    """What the cycle that asks allows; outside of a run the ratios decide."""

    @contextmanager
    def _within(self, allowed: str) -> Iterator[None]:
        """Has built-in decisions keep to what a cycle allows."""
        self._allowed = allowed
        try:
            yield
        finally:
            self._allowed = None

    def _built_in(self) -> str | None:
        """The built-in strategy that this one is or refines."""
        return None

    def _common(self) -> dict[str, Any]:
        names = ("pruning_ratio", "growth_ratio", "min_heads", "seed")
        return {name: getattr(self, name) for name in names}

    def _options(self) -> dict[str, Any]:
        """The parameters that only this strategy has, for the core."""
        return {}

    def _params(self) -> str:
        return json.dumps({**self._common(), "options": self._options()})

    def _check(self) -> None:
        for name in ("pruning_ratio", "growth_ratio"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InvalidValueError(f"{name} is {value!r}: expected a number")
        for name in ("min_heads", "seed"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InvalidValueError(f"{name} is {value!r}: expected a whole number that is not negative")
        _native.check_strategy(None, json.dumps({**self._common(), "options": {}}))


def number(value: Any) -> Any:
    """Python's number for one of NumPy's; everything else stays what it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


class BuiltInStrategy(BasePruningStrategy):
    """A strategy whose decisions the core takes. Subclasses may override one and call `super()` for the other."""

    def __init__(
        self, pruning_ratio: float = 0.3, growth_ratio: float = 0.1, min_heads: int = 1, seed: int | None = None
    ) -> None:
        super().__init__(pruning_ratio, growth_ratio, min_heads, seed)
        self._last_importances: dict[str, Any] | None = None

    def _built_in(self) -> str | None:
        return self.name

    def select_heads_to_prune(self, model: Model, head_importances: Mapping[str, Any]) -> dict[str, list[int]]:
        """The heads that this strategy prunes. See `BasePruningStrategy.select_heads_to_prune`."""
        layers = values_by_layer(model._core, head_importances, "head_importances")
        self._last_importances = dict(head_importances)
        chosen = _native.select_to_prune(self.name, self._params(), model._core, layers, self._allowed)
        return {model.layer_names[layer]: heads for layer, heads in chosen.items() if heads}

    def select_heads_to_grow(
        self, model: Model, pruned_heads: Mapping[str, list[int]], metrics: Mapping[str, Any]
    ) -> dict[str, int]:
        """Where this strategy grows heads back. See `BasePruningStrategy.select_heads_to_grow`."""
        restorable = [0] * len(model.layer_names)
        for layer, heads in by_layer(model._core, pruned_heads, "pruned_heads").items():
            restorable[layer] = len(heads)
        means = self._layer_means(model, metrics)
        given = metrics.get("gains", {}).items()
        gains = {layer_index(model._core, name, "metrics['gains']"): dict(heads) for name, heads in given}
        counts = _native.select_to_grow(self.name, self._params(), model._core, restorable, means, gains, self._allowed)
        return {model.layer_names[layer]: count for layer, count in counts.items() if count}

    def _layer_means(self, model: Model, metrics: Mapping[str, Any]) -> list[float]:
        given = metrics.get("layer_means")
        if given is None:
            given = self._means_without_metrics(model)
        missing = [name for name in model.layer_names if name not in given]
        if missing:
            raise InvalidValueError(f"metrics['layer_means'] has no value for layer {missing[0]!r}")
        return [float(given[name]) for name in model.layer_names]

    def _means_without_metrics(self, model: Model) -> Mapping[str, float]:
        """For a strategy that is used on its own: the importances that it was given last."""
        if self._last_importances is None:
            raise InvalidValueError(
                f"{type(self).__name__} grows by the importance of the heads that are left: give metrics['layer_means'] "
                "(layer name → mean importance), or call select_heads_to_prune first"
            )
        return {name: sum(map(float, values)) / max(len(values), 1) for name, values in self._last_importances.items()}
