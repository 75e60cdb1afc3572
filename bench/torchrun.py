"""What sharing a step between processes costs: bytes and time of the sums, step by step.

`torchrun --nproc-per-node 2 bench/torchrun.py MODEL TEXT.txt --out FILE.json` lets MODEL learn `--steps` steps, its pipeline
inside a process group whose sums are timed, and prints the medians of rank 0. The processes share this machine's cores and its
loopback; `--network GBIT` says on paper what the same bytes cost over a network of that speed, in a ring.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import torch.distributed as dist

import upgrayedd
from upgrayedd import Callback, Control, UpgrayeddPipeline, _group


class Timed(_group.Group):
    """A group that counts."""

    seconds = 0.0
    sent = 0

    def sum(self, values: Any) -> None:
        start = time.perf_counter()
        super().sum(values)
        Timed.seconds += time.perf_counter() - start
        Timed.sent += values.nbytes


class Steps(Callback):
    """What each step took, and its sums."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, int]] = []
        self.last = (time.perf_counter(), 0.0, 0)

    def on_step_end(self, control: Control, **event: Any) -> None:
        now = (time.perf_counter(), Timed.seconds, Timed.sent)
        self.rows.append((now[0] - self.last[0], now[1] - self.last[1], now[2] - self.last[2]))
        self.last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--network", type=float, default=10.0, help="gigabits a second")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    upgrayedd.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    _group.joined = Timed  # type: ignore[assignment]
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    steps = Steps()
    options: dict[str, Any] = {"max_steps_per_cycle": args.steps, "max_eval_windows": 2, "sequence_length": args.length}
    pipeline = UpgrayeddPipeline(
        args.model,
        strategy=upgrayedd.strategies.get_strategy("magnitude", pruning_ratio=0.0),
        output_dir=f"{folder[0]}/run",
        callbacks=[steps],
        batch_size=args.batch,
        **options,
    )
    pipeline.run_optimization(upgrayedd.TextFiles(args.text), num_cycles=1)
    if rank == 0:
        # The first step has what came before it.
        taken, summing, sent = (statistics.median(column) for column in zip(*steps.rows[1:], strict=True))
        ring = {n: 2 * (n - 1) / n * sent * 8 / (args.network * 1e9) for n in (2, 4, 8, 16, 64)}
        found = {
            "model": args.model,
            "parameters": (pipeline.history.summary or {})["after"]["cost"]["parameters"],
            "processes": size,
            "batch": [args.batch, args.length],
            "step_seconds": taken,
            "sum_seconds": summing,
            "sum_bytes": sent,
            "ring_seconds": {"gbit": args.network, **{str(n): seconds for n, seconds in ring.items()}},
        }
        text = json.dumps(found, indent=1)
        print(text)
        if args.out:
            args.out.write_text(text + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
