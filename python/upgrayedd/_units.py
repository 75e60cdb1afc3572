"""Units as users name them: by layer, checked before anything is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upgrayedd import _native
from upgrayedd.errors import InvalidValueError


def layer_index(core: _native.Model, name: Any, who: str, kind: str = "heads") -> int:
    """A layer by its name, or by its number."""
    names = core.layer_names(kind)
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(names):
        return name
    if name not in names:
        raise InvalidValueError(f"{who}: unknown layer {name!r}: the layers are {', '.join(names)}")
    index: int = names.index(name)
    return index


def by_layer(core: _native.Model, units: Any, who: str, kind: str = "heads") -> dict[int, list[int]]:
    """Layer index → unit indices, of layer name → unit indices."""
    one = kind.removesuffix("s")
    if not isinstance(units, Mapping):
        raise InvalidValueError(f"{who}: {type(units).__name__} given: expected layer name → list of {one} indices")
    result: dict[int, list[int]] = {}
    totals = core.original_units(kind)
    for name, indices in units.items():
        layer = layer_index(core, name, who, kind)
        try:
            result[layer] = [int(i.__index__()) for i in indices]
        except (TypeError, AttributeError) as error:
            raise InvalidValueError(f"{who}: {indices!r} for layer {name!r}: expected a list of {one} indices") from error
        wrong = [i for i in result[layer] if not 0 <= i < totals[layer]]
        if wrong:
            raise InvalidValueError(
                f"{who}: {one} {wrong[0]} of layer {name!r} does not exist: the layer has {kind} 0 to {totals[layer] - 1}"
            )
    return result


def values_by_layer(core: _native.Model, values: Any, who: str, kind: str = "heads") -> list[list[float]]:
    """A number for each active unit, layer after layer, of layer name → values."""
    import numpy as np

    one = kind.removesuffix("s")
    if not isinstance(values, Mapping):
        raise InvalidValueError(f"{who}: {type(values).__name__} given: expected layer name → values of its active {kind}")
    for name in values:
        layer_index(core, name, who, kind)
    result = []
    for name, units in zip(core.layer_names(kind), core.active_units(kind), strict=True):
        if name not in values:
            raise InvalidValueError(f"{who}: no values for layer {name!r}")
        given = values[name]
        try:
            given = given.detach().cpu().tolist() if hasattr(given, "detach") else given
            numbers = np.asarray(given if hasattr(given, "ndim") else list(given), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidValueError(f"{who}: {given!r} for layer {name!r}: expected a number for each active {one}") from error
        if numbers.ndim != 1:
            raise InvalidValueError(
                f"{who}: {numbers.ndim} dimensions for layer {name!r}: expected a number for each active {one}"
            )
        if len(numbers) != len(units):
            raise InvalidValueError(f"{who}: {len(numbers)} values for the {len(units)} active {kind} of layer {name!r}")
        if not np.isfinite(numbers).all():
            raise InvalidValueError(f"{who}: {numbers[~np.isfinite(numbers)][0]} for layer {name!r}: expected finite numbers")
        result.append(numbers.tolist())
    return result
