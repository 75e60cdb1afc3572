"""Attention entropy: heads that look everywhere look at nothing in particular."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from upgrayedd import _native
from upgrayedd.strategies.base import BuiltInStrategy

if TYPE_CHECKING:
    from upgrayedd.model import Model


class EntropyPruningStrategy(BuiltInStrategy):
    """Prunes the heads with the highest attention entropy; grows in the layers whose remaining heads have the lowest mean.

    Args:
        pruning_ratio: Share of the active heads pruned per cycle, 0 ≤ r < 1.
        growth_ratio: Share of the pruned heads grown back per cycle, 0 to 1.
        min_heads: Heads that every layer keeps, at least 1.
        seed: Of random choices; None takes the run's.
        attention_samples: Sequences that the entropy is averaged over.
        use_cached_entropy: Whether a run uses values again that it computed for this very state of the model and this data.
    """

    name = "entropy"
    higher_keeps = False

    def __init__(
        self,
        pruning_ratio: float = 0.3,
        growth_ratio: float = 0.1,
        min_heads: int = 1,
        seed: int | None = None,
        attention_samples: int = 128,
        use_cached_entropy: bool = True,
    ) -> None:
        super().__init__(pruning_ratio, growth_ratio, min_heads, seed)
        self.attention_samples = attention_samples
        self.use_cached_entropy = use_cached_entropy
        _native.check_strategy(self.name, self._params())

    def calculate_head_importances(self, model: Model, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Layer name → attention entropy; see `calculate_attention_entropy`."""
        return dict(self.calculate_attention_entropy(model, dataloader))

    def _samples(self) -> int:
        return self.attention_samples

    def _options(self) -> dict[str, Any]:
        return {"attention_samples": self.attention_samples, "use_cached_entropy": self.use_cached_entropy}
