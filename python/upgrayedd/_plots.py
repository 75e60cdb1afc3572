"""Pictures by matplotlib, which is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT, PRUNED = "#2f6f9f", "#b4550f"


def axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """What to draw on."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def losses(baseline: float | None, steps: Sequence[Mapping[str, Any]], cycles: Sequence[Any], ax: Axes | None) -> Axes:
    """Held-out loss of a history's cycles at its steps, and every step's training loss."""
    ax = axes(ax, (8, 4))
    if steps:
        ax.plot(range(1, len(steps) + 1), [step["loss"] for step in steps], color="0.6", linewidth=0.8, label="training loss")
    at, values, marked = [], [], []
    if baseline is not None:
        at.append(0)
        values.append(baseline)
    for cycle in cycles:
        before = sum(step["cycle"] < cycle.cycle for step in steps)
        after = before + sum(step["cycle"] == cycle.cycle for step in steps)
        for step, loss in ((before, cycle.loss_pruned), (after, cycle.loss_learned)):
            if loss is not None:
                at.append(step)
                values.append(loss)
        if cycle.loss_pruned is not None:
            marked.append((before, cycle.loss_pruned))
    ax.plot(at, values, color=KEPT, marker="o", label="held-out loss")
    if marked:
        ax.plot(*zip(*marked, strict=True), color=PRUNED, marker="o", linestyle="", label="after pruning")
    ax.set_xlabel("optimiser steps")
    ax.set_ylabel("loss")
    ax.legend()
    return ax


def pareto(trials: Any, costs: Mapping[str, str]) -> str:
    """A sweep's losses against each cost, as SVG: a point a trial, and a line through those that no other beats."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    import io

    figure = Figure(figsize=(4.2 * len(costs), 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    done = [trial for trial in trials if trial.loss is not None]
    for index, (cost, title) in enumerate(costs.items()):
        ax = figure.add_subplot(1, len(costs), index + 1)
        ax.scatter([getattr(trial, cost) for trial in done], [trial.loss for trial in done], color=KEPT, s=18)
        best = trials.pareto(cost)
        ax.plot([getattr(trial, cost) for trial in best], [trial.loss for trial in best], color=PRUNED, linewidth=1)
        for trial in best:
            ax.annotate(trial.run.name, (getattr(trial, cost), trial.loss), fontsize=7, xytext=(3, 3), textcoords="offset points")
        ax.set_xlabel(title)
        ax.set_ylabel("held-out loss")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def heads(active: Mapping[str, Sequence[int]], totals: Mapping[str, int], ax: Axes | None) -> Axes:
    """A row per layer, a square per head, filled where it is there."""
    ax = axes(ax, (1 + 0.3 * max(totals.values(), default=1), 1 + 0.3 * len(totals)))
    for layer, (name, total) in enumerate(totals.items()):
        left = set(active[name])
        for there, colour in ((True, KEPT), (False, "none")):
            columns = [head for head in range(total) if (head in left) is there]
            rows = [layer] * len(columns)
            ax.scatter(columns, rows, marker="s", s=90, facecolors=colour, edgecolors="0.5", linewidths=0.6)
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.set_yticks(range(len(totals)))
    ax.set_xticks(range(max(totals.values(), default=0)))
    ax.invert_yaxis()
    return ax
