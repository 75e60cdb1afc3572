"""Strategies that follow one score. A gate is a factor of 1 on a head's output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from upgrayedd import _native
from upgrayedd.strategies.base import BuiltInStrategy

if TYPE_CHECKING:
    from upgrayedd.model import Model


class ScoredStrategy(BuiltInStrategy):
    """Prunes the heads with the lowest score; brings the heads back whose gates the loss wants open.

    Outside a run, without `metrics["gains"]`, it grows in the layers whose remaining heads have the highest mean.

    Args:
        pruning_ratio: Share of the active heads pruned per cycle, 0 ≤ r < 1.
        growth_ratio: Share of the pruned heads grown back per cycle, 0 to 1.
        min_heads: Heads that every layer keeps, at least 1.
        seed: Of random choices; None takes the run's.
        calibration_samples: Sequences that the score is averaged over.
    """

    def __init__(
        self,
        pruning_ratio: float = 0.3,
        growth_ratio: float = 0.1,
        min_heads: int = 1,
        seed: int | None = None,
        calibration_samples: int = 128,
    ) -> None:
        super().__init__(pruning_ratio, growth_ratio, min_heads, seed)
        self.calibration_samples = calibration_samples
        _native.check_strategy(self.name, self._params())

    def calculate_head_importances(self, model: Model, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Layer name → the strategy's score of each active head."""
        return dict(model.score(self.name, dataloader, samples=self.calibration_samples))

    def _samples(self) -> int:
        return self.calibration_samples

    def _options(self) -> dict[str, Any]:
        return {"calibration_samples": self.calibration_samples}


class AutoPruningStrategy(ScoredStrategy):
    """What the measurements recommend: the score "surgeon" over all layers (scope "global"). See `ScoredStrategy`."""

    name = "auto"

    def calculate_head_importances(self, model: Model, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Layer name → the score "surgeon" of each active head."""
        return dict(model.score("surgeon", dataloader, samples=self.calibration_samples))


class GradientPruningStrategy(ScoredStrategy):
    """Mean over sequences of |∂loss/∂gate|, the absolute value per sequence (Michel et al. 2019). See `ScoredStrategy`."""

    name = "gradient"


class TaylorPruningStrategy(ScoredStrategy):
    """The gate gradient divided by its L2 norm over the layer (Molchanov et al. 2017). See `ScoredStrategy`."""

    name = "taylor"


class FisherPruningStrategy(ScoredStrategy):
    """Mean over sequences of (∂loss/∂gate)², the diagonal Fisher information (Kwon et al. 2022). See `ScoredStrategy`.

    In a run, heads of a layer are swapped while that lowers the sum over their block of the Fisher information. A subclass, or a
    call outside a run, knows the importances alone and takes the lowest.
    """

    name = "fisher"


class SurgeonPruningStrategy(ScoredStrategy):
    """What the loss rises by without the head once the others are refitted: optimal brain surgeon with Kronecker-factored
    curvature (van der Ouderaa et al. 2024). See `ScoredStrategy`.
    """

    name = "surgeon"


class TaskPruningStrategy(ScoredStrategy):
    """`fisher` under the labels of a task; refuses data without labels. See `FisherPruningStrategy`."""

    name = "task"


class WandaPruningStrategy(ScoredStrategy):
    """Mean of |weight| · input norm over the head's output projection (Sun et al. 2024). See `ScoredStrategy`."""

    name = "wanda"


class SimilarityPruningStrategy(ScoredStrategy):
    """How little a head repeats another of its layer; of a similar pair the weaker goes, never both. See `ScoredStrategy`."""

    name = "similarity"


class LossImpactPruningStrategy(ScoredStrategy):
    """What the loss rises by without the head, measured head by head: exact and slow. See `ScoredStrategy`."""

    name = "loss_impact"

    def __init__(
        self,
        pruning_ratio: float = 0.3,
        growth_ratio: float = 0.1,
        min_heads: int = 1,
        seed: int | None = None,
        calibration_samples: int = 16,
    ) -> None:
        super().__init__(pruning_ratio, growth_ratio, min_heads, seed, calibration_samples)
