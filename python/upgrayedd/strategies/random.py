"""Uniform random choices: the baseline that any other strategy must beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from upgrayedd.strategies.base import BuiltInStrategy

if TYPE_CHECKING:
    from upgrayedd.model import Model


class RandomPruningStrategy(BuiltInStrategy):
    """Prunes and grows uniformly at random.

    Args:
        pruning_ratio: Share of the active heads pruned per cycle, 0 ≤ r < 1.
        growth_ratio: Share of the pruned heads grown back per cycle, 0 to 1.
        min_heads: Heads that every layer keeps, at least 1.
        seed: Of the choices; None takes the run's.
    """

    name = "random"

    def calculate_head_importances(self, model: Model, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Layer name → uniform random numbers in [0, 1)."""
        return dict(model.score("random", seed=model._seed if self.seed is None else self.seed))

    def _means_without_metrics(self, model: Model) -> Mapping[str, float]:
        return dict.fromkeys(model.layer_names, 0.0)

    def _layer_means(self, model: Model, metrics: Mapping[str, Any]) -> list[float]:
        return [0.0] * len(model.layer_names)
