"""Weight magnitude: heads with small weights say little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from upgrayedd import _native
from upgrayedd.strategies.base import BuiltInStrategy

if TYPE_CHECKING:
    from upgrayedd.model import Model


class MagnitudePruningStrategy(BuiltInStrategy):
    """Prunes the heads with the lowest L2 norm of Q, K, V and O; grows in the layers whose remaining heads have the highest.

    Args:
        pruning_ratio: Share of the active heads pruned per cycle, 0 ≤ r < 1.
        growth_ratio: Share of the pruned heads grown back per cycle, 0 to 1.
        min_heads: Heads that every layer keeps, at least 1.
        seed: Of random choices; None takes the run's.
        weight_threshold: A head whose root mean square weight is below is dead and goes even beyond the ratio.
        use_cached_magnitudes: Whether a run uses values again that it computed for this very state of the model.
    """

    name = "magnitude"

    def __init__(
        self,
        pruning_ratio: float = 0.3,
        growth_ratio: float = 0.1,
        min_heads: int = 1,
        seed: int | None = None,
        weight_threshold: float = 0.01,
        use_cached_magnitudes: bool = True,
    ) -> None:
        super().__init__(pruning_ratio, growth_ratio, min_heads, seed)
        self.weight_threshold = weight_threshold
        self.use_cached_magnitudes = use_cached_magnitudes
        _native.check_strategy(self.name, self._params())

    def _means_without_metrics(self, model: Model) -> Mapping[str, float]:
        return {name: float(values.mean()) for name, values in self.calculate_head_magnitudes(model).items()}

    def _options(self) -> dict[str, Any]:
        return {"weight_threshold": self.weight_threshold, "use_cached_magnitudes": self.use_cached_magnitudes}
