"""The options of a run by name, so that editors and type checkers know them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict


class RunOptions(TypedDict, total=False):
    """What `UpgrayeddPipeline` takes beside its own arguments: `upgrayedd optimize --help` says what each does."""

    batch_size: int
    budget: Literal["units", "parameters", "macs", "bytes", "kv-cache", "latency"]
    chat_loss: Literal["assistant", "all"]
    checkpoint_every: int | None
    columns: Sequence[str] | None
    control: bool
    delimiter: str | None
    distill: float | None
    distill_temperature: float
    documents: Literal["packed", "separate"]
    dtype: Literal["float32", "float16", "bfloat16"] | None
    eval_every: int | None
    gate_warmup: float
    gradient_accumulation: int
    gradient_checkpointing: bool
    growth_lr_multiplier: float
    label_field: str
    lr_schedule: Literal["linear", "cosine", "constant"]
    max_eval_windows: int | None
    max_gradient_norm: float
    max_loss_increase: float | None
    max_steps_per_cycle: int | None
    memory: str | None
    multiple: int
    patience: int
    refit: bool
    refit_samples: int
    samples: int
    schedule: Literal["per-cycle", "target"]
    scope: Literal["layer", "global"] | None
    sequence_length: int | None
    shape: Literal["free", "uniform"]
    prompt: Sequence[str]
    precision: Literal["bf16", "tf32", "f32"]
    pruning_steps: int | None
    target: str | None
    teacher: str | os.PathLike[str] | None
    text_field: str | None
    text_pair_field: str | None
    timings: str | os.PathLike[str] | None
    units: str
    warmup_steps: int
    weight_decay: float
