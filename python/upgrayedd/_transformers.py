"""To and from transformers' models, weights in memory."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

from upgrayedd import _native
from upgrayedd.errors import InvalidValueError, UpgrayeddWarning

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
"""Classes of torch that hold a model in their `module`."""


def unwrapped(model: Any) -> Any:
    """The model inside of what `torch.compile` and data-parallel training put around it."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in WRAPPERS:
            model = model.module
        else:
            break
    if any(base.__name__ == "PeftModel" for base in type(model).__mro__):
        raise InvalidValueError("the model has an adapter (PEFT): merge it first, with model.merge_and_unload()")
    if not hasattr(model, "config"):
        raise InvalidValueError(f"model is a {type(model).__name__} without a config: expected a transformers.PreTrainedModel")
    return model


def take(model: Any) -> _native.Model:
    """The core's model of a transformers model: one copy of each weight."""
    import torch

    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config.pop("auto_map", None)
    output, given = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None:
        # What counts is whether the weights are shared, whatever the configuration says.
        config["tie_word_embeddings"] = output.weight.data_ptr() == given.weight.data_ptr()
    arrays = {}
    if any(p.dtype == torch.float64 for p in model.parameters()):
        warnings.warn("the model's 64-bit numbers are rounded to 32 bits", UpgrayeddWarning, stacklevel=3)
    parameters = dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in ("float32", "float16", "bfloat16", "float64"):
            # Positions and masks are computed anew.
            if name not in parameters:
                continue
            raise InvalidValueError(f"{name} holds {kind} values: quantised models are not read, load it in float32 or bfloat16")
        wide = tensor.detach().to("cpu", torch.float32).contiguous()
        arrays[name] = (wide.numpy(), kind if kind in ("float16", "bfloat16") else "float32")
    return _native.Model.from_arrays(json.dumps(config, default=str), arrays)


def give(config: dict[str, Any], info: dict[str, Any], parameters: Mapping[str, Any]) -> Any:
    """A transformers model of ours, in its own element type."""
    import torch
    import transformers

    family, classes = info["family"], info["classes"]
    if classes is None:
        raise InvalidValueError(f"transformers has no class for a {family} model with objective {info['objective']}")
    if "upgrayedd" in config:
        module = importlib.import_module(f"upgrayedd.modeling.{family.replace('-', '_')}")
        cls = getattr(module, classes["pruned"])
        # So that save_pretrained writes the code beside the weights, for trust_remote_code.
        cls.register_for_auto_class(classes["auto"])
    else:
        cls = getattr(transformers, classes["stock"])
    values = {k: v for k, v in config.items() if k not in ("auto_map", "model_type")}
    settings = transformers.AutoConfig.for_model(family, **values)
    dtype = getattr(torch, info["dtype"])
    state = {name: torch.tensor(array).to(dtype) for name, array in parameters.items()}
    return cls.from_pretrained(None, config=settings, state_dict=state, dtype=dtype)
