"""Strategies: which heads go, and in which layers heads come back."""

from __future__ import annotations

from typing import Any

from upgrayedd import _native
from upgrayedd.errors import InvalidValueError
from upgrayedd.strategies.base import BasePruningStrategy
from upgrayedd.strategies.entropy import EntropyPruningStrategy
from upgrayedd.strategies.magnitude import MagnitudePruningStrategy
from upgrayedd.strategies.random import RandomPruningStrategy
from upgrayedd.strategies.scored import (
    AutoPruningStrategy,
    FisherPruningStrategy,
    GradientPruningStrategy,
    LossImpactPruningStrategy,
    SimilarityPruningStrategy,
    SurgeonPruningStrategy,
    TaskPruningStrategy,
    TaylorPruningStrategy,
    WandaPruningStrategy,
)

STRATEGIES: dict[str, type[BasePruningStrategy]] = {
    cls.name: cls
    for cls in (
        AutoPruningStrategy,
        RandomPruningStrategy,
        EntropyPruningStrategy,
        MagnitudePruningStrategy,
        GradientPruningStrategy,
        TaylorPruningStrategy,
        FisherPruningStrategy,
        TaskPruningStrategy,
        WandaPruningStrategy,
        SimilarityPruningStrategy,
        SurgeonPruningStrategy,
        LossImpactPruningStrategy,
    )
}
"""Every built-in strategy by name."""

__all__ = [
    "STRATEGIES",
    "AutoPruningStrategy",
    "BasePruningStrategy",
    "EntropyPruningStrategy",
    "FisherPruningStrategy",
    "GradientPruningStrategy",
    "LossImpactPruningStrategy",
    "MagnitudePruningStrategy",
    "RandomPruningStrategy",
    "SimilarityPruningStrategy",
    "SurgeonPruningStrategy",
    "TaskPruningStrategy",
    "TaylorPruningStrategy",
    "WandaPruningStrategy",
    "get_strategy",
]


def get_strategy(name: str, **parameters: Any) -> BasePruningStrategy:
    """The built-in strategy called `name`.

    Args:
        name: One of `STRATEGIES`.
        parameters: Those of its constructor.

    Raises:
        InvalidValueError: (a ValueError) for an unknown name, an unknown parameter, or a value out of range.

    >>> get_strategy("entropy", pruning_ratio=0.3, growth_ratio=0.1)
    EntropyPruningStrategy(pruning_ratio=0.3, growth_ratio=0.1, min_heads=1, seed=None, attention_samples=128, \
use_cached_entropy=True)
    """
    if not isinstance(name, str):
        raise InvalidValueError(f"strategy is a {type(name).__name__}: expected {', '.join(map(repr, STRATEGIES))}")
    if name not in STRATEGIES:
        # The core knows the nearest name.
        _native.check_strategy(name, "{}")
    cls = STRATEGIES[name]
    try:
        return cls(**parameters)
    except TypeError as error:
        known = ", ".join(cls.parameter_names())
        raise InvalidValueError(f"strategy {name!r}: {error}; its parameters are {known}") from error
