"""What has happened in a run, cycle by cycle."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from upgrayedd import _plots
from upgrayedd.errors import FileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Cycle:
    """What a cycle came to.

    Attributes:
        cycle: From 1.
        pruned: Units removed: layer name → original indices of heads, MLP name → those of channels.
        grown: Units grown back, the same.
        active: Heads at the end.
        loss_pruned: Held-out loss after pruning, in nats; None where numbers were not finite any more.
        loss_learned: The same after learning.
        perplexity: exp(loss_learned); None for classifiers and plain encoders.
        accuracy: After learning, for classifiers.
        f1: After learning, for several labels a sequence.
        spearman: After learning, for regression.
        accepted: Whether the result was kept; False if it was rolled back.
    """

    cycle: int
    pruned: dict[str, list[int]] = field(default_factory=dict)
    grown: dict[str, list[int]] = field(default_factory=dict)
    active: int = 0
    loss_pruned: float | None = None
    loss_learned: float | None = None
    perplexity: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    spearman: float | None = None
    accepted: bool | None = None


class History(Sequence[Cycle]):
    """What has happened so far: the baseline, cycle by cycle, and the summary once the run is complete."""

    def __init__(self) -> None:
        self.baseline: dict[str, Any] | None = None
        self.steps: list[dict[str, Any]] = []
        self.summary: dict[str, Any] | None = None
        self._cycles: list[Cycle] = []

    def __len__(self) -> int:
        return len(self._cycles)

    @overload
    def __getitem__(self, index: int) -> Cycle: ...
    @overload
    def __getitem__(self, index: slice) -> list[Cycle]: ...
    def __getitem__(self, index: int | slice) -> Cycle | list[Cycle]:
        return self._cycles[index]

    def __iter__(self) -> Iterator[Cycle]:
        return iter(self._cycles)

    @classmethod
    def read(cls, run_dir: str | os.PathLike[str]) -> History:
        """The history of a run, from its folder."""
        history = cls()
        events = Path(run_dir) / "events.jsonl"
        if not events.is_file():
            raise FileError(f"{run_dir} is not a run folder: it has no events.jsonl")
        history._load(Path(run_dir))
        summary = Path(run_dir) / "summary.json"
        if summary.exists():
            history.summary = json.loads(summary.read_text(encoding="utf-8"))
        return history

    def _load(self, run_dir: Path) -> None:
        with open(run_dir / "events.jsonl", encoding="utf-8") as lines:
            for line in lines:
                # The last one may still be written.
                if line.endswith("\n"):
                    self._record(json.loads(line))

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per cycle: `pandas.DataFrame(pipeline.history.rows())`."""

        def count(heads: dict[str, list[int]]) -> int:
            return sum(map(len, heads.values()))

        return [{**asdict(c), "pruned": count(c.pruned), "grown": count(c.grown)} for c in self._cycles]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        cycles = [asdict(c) for c in self._cycles]
        return {"baseline": self.baseline, "cycles": cycles, "steps": self.steps, "summary": self.summary}

    def __repr__(self) -> str:
        return f"History({len(self)} cycles, {len(self.steps)} steps)"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws held-out and training loss over the run's optimiser steps, and returns the axes. Needs matplotlib.

        Args:
            ax: Axes to draw on; None makes a figure.
        """
        baseline = None if self.baseline is None else float(self.baseline["loss"])
        return _plots.losses(baseline, self.steps, self._cycles, ax)

    def _repr_html_(self) -> str:
        if not self._cycles:
            return f"<div>{html.escape(repr(self))}</div>"
        titles = ("cycle", "pruned", "grown", "active", "loss_pruned", "loss_learned", "accepted")
        head = "".join(f"<th>{title.replace('_', ' ')}</th>" for title in titles)
        rows = ["".join(f"<td>{shown(row[title])}</td>" for title in titles) for row in self.rows()]
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"

    def _record(self, event: dict[str, Any]) -> None:
        kind, number = event["event"], event.get("cycle", 0)
        if kind == "step":
            self.steps.append({k: v for k, v in event.items() if k != "event"})
            return
        if kind == "evaluated" and event["phase"] == "baseline":
            self.baseline = {k: v for k, v in event.items() if k not in ("event", "cycle", "phase")}
            return
        if number == 0 or kind not in ("pruned", "grown", "evaluated", "accepted", "rolled_back"):
            return
        if not self._cycles or self._cycles[-1].cycle < number:
            self._cycles.append(Cycle(number))
        cycle = self._cycles[-1]
        if kind in ("pruned", "grown"):
            units = getattr(cycle, kind)
            for layers in event["units"].values():
                for layer, indices in layers.items():
                    units[layer] = units.get(layer, []) + indices
            cycle.active = event["active"]
        elif kind == "evaluated" and event["phase"] == "pruned":
            cycle.loss_pruned = event["loss"]
        elif kind == "evaluated" and event["phase"] == "learned":
            cycle.loss_learned = event["loss"]
            cycle.perplexity, cycle.accuracy = event.get("perplexity"), event.get("accuracy")
            cycle.f1, cycle.spearman = event.get("f1"), event.get("spearman")
        elif kind in ("accepted", "rolled_back"):
            cycle.accepted, cycle.active = kind == "accepted", event["active"]


def shown(value: Any) -> str:
    """A cell of a table."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else html.escape(str(value))
