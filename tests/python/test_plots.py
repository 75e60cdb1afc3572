"""Pictures by matplotlib, and what notebooks show."""

import pathlib
from typing import Any

import matplotlib

from upgrayedd import Model, UpgrayeddPipeline

matplotlib.use("Agg")


def test_pictures_show_what_happened(tmp_path: pathlib.Path) -> None:
    pipeline = UpgrayeddPipeline(
        "builtin", strategy="magnitude", output_dir=tmp_path / "run", max_steps_per_cycle=3, max_eval_windows=2, refit=False
    )
    assert "<iframe" not in pipeline._repr_html_()
    smaller = pipeline.run_optimization(num_cycles=1)
    history = pipeline.history
    lines: list[Any] = list(history.plot().get_lines())
    training, held_out, pruned = lines
    assert list(training.get_ydata()) == [step["loss"] for step in history.steps]
    baseline = history.baseline
    assert baseline is not None
    assert list(held_out.get_xdata()) == [0, 0, 3]
    assert list(held_out.get_ydata()) == [baseline["loss"], history[0].loss_pruned, history[0].loss_learned]
    assert list(pruned.get_ydata()) == [history[0].loss_pruned]
    there, gone = 0, 0
    drawn: list[Any] = list(smaller.plot_heads().collections)
    for squares in drawn:
        filled = len(squares.get_facecolors()) > 0
        there, gone = there + filled * len(squares.get_offsets()), gone + (not filled) * len(squares.get_offsets())
    assert (there, there + gone) == (sum(smaller.heads_per_layer.values()), sum(smaller.original_heads.values()))
    # A notebook shows the page in a frame that runs nothing.
    page = pipeline._repr_html_()
    assert page.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and " sandbox " in page
    assert f"<td>{history[0].loss_learned:.4f}</td>" in history._repr_html_()
    assert "kept" in Model.from_pretrained("builtin")._repr_html_()
