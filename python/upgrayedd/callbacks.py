"""Callbacks: who wants to know what a run does, and may stop it. Named as those of transformers.

```python
from upgrayedd import Callback

class StopWhenGoodEnough(Callback):
    def on_evaluate(self, control, *, loss, **event):
        if event["phase"] == "learned" and loss < 2.0:
            control.stop()
```
"""

from __future__ import annotations

import difflib
import importlib
import os
from typing import Any

from upgrayedd.errors import InvalidValueError


class Control:
    """How a callback stops a run."""

    def __init__(self) -> None:
        self.should_stop = False

    def stop(self) -> None:
        """Learn no further, complete this cycle, write the result and return it."""
        self.should_stop = True


class Callback:
    """Override what you need. Each method gets the run's control and the event as keywords; returning False stops the run.

    Every event has `event`, its name in `events.jsonl`, and most have `cycle`, from 1. `docs/run-folder.md` lists their fields.
    Here they have `run_step` too, the number of optimiser steps of the whole run so far.

    Raises:
        InvalidValueError: When a subclass is defined with a method `on_…` that is none of these, as nothing would call it.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in vars(cls):
            if name.startswith("on_") and not hasattr(Callback, name):
                names = [n for n in vars(Callback) if n.startswith("on_")]
                meant = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {meant[0]}?" if meant else "there are " + ", ".join(names)
                raise InvalidValueError(f"{cls.__name__}.{name}: no event calls it: {hint}")

    def on_train_begin(self, control: Control, **event: Any) -> bool | None:
        """The run begins: family, parameters, heads, sequences, steps_per_cycle."""

    def on_step_end(self, control: Control, **event: Any) -> bool | None:
        """An optimiser step: step, loss, learning_rate, gradient_norm, tokens."""

    def on_evaluate(self, control: Control, **event: Any) -> bool | None:
        """A held-out measurement: phase ("baseline", "pruned", "learned", "result"), loss, what goes with it, tokens."""

    def on_prune(self, control: Control, **event: Any) -> bool | None:
        """Units were removed: units ({"heads": {layer name: indices}, "channels": …}), budget, active, channels."""

    def on_grow(self, control: Control, **event: Any) -> bool | None:
        """Units came back: units ({"heads": {layer name: indices}, "channels": …}), active, channels."""

    def on_cycle_end(self, control: Control, **event: Any) -> bool | None:
        """A cycle was accepted or rolled back: accepted, loss_change (None where numbers were not finite any more)."""

    def on_save(self, control: Control, **event: Any) -> bool | None:
        """A cycle's checkpoint is complete."""

    def on_log(self, control: Control, **event: Any) -> bool | None:
        """Any event."""

    def on_progress(self, control: Control, *, task: str, done: int, total: int) -> bool | None:
        """Work went on: `done` of `total` units of `task`."""

    def on_train_end(self, control: Control, **event: Any) -> bool | None:
        """The run is complete: active, parameters."""


class ProgressCallback(Callback):
    """Shows progress bars with tqdm, in a notebook as widgets. Needs `tqdm`."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._make = tqdm
        self._bar: Any = None
        self._task = ""

    def on_progress(self, control: Control, *, task: str, done: int, total: int) -> bool | None:
        """Moves the bar of the task, or begins one."""
        if task != self._task:
            self._close()
            self._task, self._bar = task, self._make(total=total, desc=task)
        self._bar.update(done - self._bar.n)
        return None

    def on_step_end(self, control: Control, **event: Any) -> bool | None:
        """Shows the loss beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{event['loss']:.3f}", refresh=False)
        return None

    def on_train_end(self, control: Control, **event: Any) -> bool | None:
        """Closes the bar."""
        self._close()
        return None

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._task = None, ""


class MetricsCallback(Callback):
    """Sends numbers somewhere, against the run's own count of steps. Subclasses implement `write`."""

    def write(self, values: dict[str, float], step: int) -> None:
        """Records named numbers at a step of the run."""
        raise NotImplementedError

    def on_step_end(self, control: Control, **event: Any) -> bool | None:
        """Training loss, learning rate and gradient norm."""
        self.write({f"train/{name}": event[name] for name in ("loss", "learning_rate", "gradient_norm")}, event["run_step"])
        return None

    def on_evaluate(self, control: Control, **event: Any) -> bool | None:
        """Held-out loss, perplexity, accuracy, f1 or spearman by phase."""
        measured = {
            name: event[name] for name in ("loss", "perplexity", "accuracy", "f1", "spearman") if event.get(name) is not None
        }
        self.write({f"eval/{event['phase']}/{name}": value for name, value in measured.items()}, event["run_step"])
        return None

    def on_prune(self, control: Control, **event: Any) -> bool | None:
        """Heads that are left."""
        self.write({"heads/active": event["active"]}, event["run_step"])
        return None

    def on_grow(self, control: Control, **event: Any) -> bool | None:
        """Heads that there are now."""
        self.write({"heads/active": event["active"]}, event["run_step"])
        return None


class TensorBoardCallback(MetricsCallback):
    """Writes TensorBoard files. Needs `tensorboard` (with torch) or `tensorboardX`."""

    def __init__(self, log_dir: str | os.PathLike[str] = "runs/tensorboard") -> None:
        super().__init__()
        try:
            module: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            module = importlib.import_module("tensorboardX")
        self._writer = module.SummaryWriter(os.fspath(log_dir))

    def write(self, values: dict[str, float], step: int) -> None:
        """Adds scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def on_train_end(self, control: Control, **event: Any) -> bool | None:
        """Closes the files."""
        self._writer.close()
        return None


class WandbCallback(MetricsCallback):
    """Logs to Weights & Biases. Needs `wandb`; starts a run unless one is active."""

    def __init__(self, **init: Any) -> None:
        super().__init__()
        import wandb

        self._wandb = wandb
        if wandb.run is None:
            wandb.init(**init)

    def write(self, values: dict[str, float], step: int) -> None:
        """Logs at the step."""
        self._wandb.log(values, step=step)


class MLflowCallback(MetricsCallback):
    """Logs to MLflow. Needs `mlflow`; uses the active run or starts one."""

    def __init__(self) -> None:
        super().__init__()
        import mlflow

        self._mlflow = mlflow

    def write(self, values: dict[str, float], step: int) -> None:
        """Logs at the step."""
        self._mlflow.log_metrics(values, step=step)
