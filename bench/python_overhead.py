"""What the Python path costs: the same steps from a data loader in Python and from a file that the core reads, in turns.

`python bench/python_overhead.py MODEL TEXT.txt` with the package installed from a release wheel. Prints the milliseconds per step
of both, the ratio of their medians, and the share of a step that is spent in Python code (loader, events, callbacks).
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import numpy as np

from upgrayedd import Callback, Model, UpgrayeddPipeline, _data, _events

BATCH, LENGTH, STEPS, ROUNDS = 8, 256, 30, 5


class Steps(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, control, **event):
        self.times.append(time.perf_counter())


class InPython:
    """Seconds spent in the package's Python code while it is patched in."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return call

    def iterated(self, generator):
        def call(*args, **kwargs):
            items = generator(*args, **kwargs)
            while True:
                start = time.perf_counter()
                item = next(items, None)
                self.seconds += time.perf_counter() - start
                if item is None:
                    return
                yield item

        return call


def run(model, data) -> list[float]:
    """Milliseconds of each step but the first few."""
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = UpgrayeddPipeline(
            model,
            output_dir=pathlib.Path(folder) / "run",
            callbacks=[steps],
            batch_size=BATCH,
            sequence_length=LENGTH,
            max_steps_per_cycle=STEPS,
            max_eval_windows=8,
        )
        pipeline.run_optimization(data, num_cycles=1)
    return [1000 * (b - a) for a, b in zip(steps.times[3:], steps.times[4:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=pathlib.Path)
    args = parser.parse_args()
    tokens = Model.from_pretrained(args.model).tokenizer.encode(args.text.read_text())
    rows = np.array(tokens[: len(tokens) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    batches = [{"input_ids": rows[i : i + BATCH]} for i in range(0, len(rows) - BATCH + 1, BATCH)]
    watch, total = InPython(), 0.0
    times: dict[str, list[float]] = {"loader": [], "file": []}
    for _ in range(ROUNDS):
        times["file"] += run(args.model, args.text)
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.object(_data.Loader, "epoch", watch.iterated(_data.Loader.epoch)))
            for name in ("event", "progress"):
                timed = watch.timed(getattr(_events.Dispatcher, name))
                patches.enter_context(mock.patch.object(_events.Dispatcher, name, timed))
            start = time.perf_counter()
            times["loader"] += run(args.model, batches)
            total += time.perf_counter() - start
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"milliseconds per step: loader {medians['loader']:.2f}, file {medians['file']:.2f}")
    print(f"ratio {medians['loader'] / medians['file']:.3f}; in Python code {100 * watch.seconds / total:.2f} % of the run")


if __name__ == "__main__":
    main()
