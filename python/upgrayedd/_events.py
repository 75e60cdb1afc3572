"""Events of the core → the run's history, callbacks, and Python's logging."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from upgrayedd.callbacks import Callback, Control

log = logging.getLogger("upgrayedd")

METHODS = {
    "run_started": "on_train_begin",
    "step": "on_step_end",
    "evaluated": "on_evaluate",
    "pruned": "on_prune",
    "grown": "on_grow",
    "accepted": "on_cycle_end",
    "rolled_back": "on_cycle_end",
    "saved": "on_save",
    "run_finished": "on_train_end",
}


class Dispatcher:
    """What the core tells about a run. Both methods return whether the run is to end."""

    def __init__(self, callbacks: Sequence[Callback], record: Callable[[dict[str, Any]], bool], steps: Callable[[], int]) -> None:
        self._callbacks = callbacks
        self._record = record
        self._steps = steps
        self._control = Control()
        # What nobody listens to costs nothing.
        self._wants_progress = [c for c in callbacks if type(c).on_progress is not Callback.on_progress]

    def event(self, text: str) -> bool:
        """Something happened."""
        event: dict[str, Any] = json.loads(text)
        kind = event["event"]
        if self._record(event):
            self._control.stop()
        self._log(kind, event)
        if kind in ("accepted", "rolled_back"):
            event["accepted"] = kind == "accepted"
        event["run_step"] = self._steps()
        method = METHODS.get(kind)
        for callback in self._callbacks:
            for name in (method, "on_log"):
                if name is not None and getattr(callback, name)(self._control, **event) is False:
                    self._control.stop()
        return self._control.should_stop

    def progress(self, task: str, done: int, total: int) -> bool:
        """Work went on."""
        for callback in self._wants_progress:
            if callback.on_progress(self._control, task=task, done=done, total=total) is False:
                self._control.stop()
        return self._control.should_stop

    def _log(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "notice":
            log.warning("%s", event["message"])
        elif kind == "step":
            log.debug("cycle %d, step %d: loss %.4f", event["cycle"], event["step"], event["loss"])
        elif kind == "spike":
            text = "cycle %d: the training loss jumped to %.3f at step %d, from %.3f"
            log.warning(text, event["cycle"], event["loss"], event["step"], event["typical"])
        elif kind == "evaluated":
            log.info("cycle %d, %s: held-out loss %.4f", event["cycle"], event["phase"], event["loss"])
        elif kind in ("pruned", "grown"):
            counts = {of: sum(map(len, layers.values())) for of, layers in event["units"].items()}
            units = " and ".join(f"{count} {of}" for of, count in counts.items()) or "nothing"
            log.info("cycle %d: %s %s, %d heads active", event["cycle"], kind, units, event["active"])
        elif kind == "rolled_back":
            change = event["loss_change"]
            why = "numbers were not finite any more" if change is None else f"held-out loss {change:+.4f}"
            log.info("cycle %d: rolled back, %s", event["cycle"], why)
