"""Quality at equal size: what pruning costs a language model, strategy by strategy, before and after learning.

`python bench/quality.py MODEL TEXT.txt --out FILE.json`, with the package from a release wheel
(`scripts/python-package --release`). The text's first four fifths are learned from and scored on; the last fifth is measured on,
in non-overlapping windows. Every row is written to FILE.json as soon as it is known, and rows that are there already are not
computed again. Rows are compared with the dense model, and after learning with the dense model that learned the same way.
"""

import argparse
import functools
import itertools
import json
import pathlib
import random
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import upgrayedd
from upgrayedd import Model, TextFiles, UpgrayeddPipeline
from upgrayedd.strategies import get_strategy

# Name → (strategy, options of the pipeline). Without steps, everything is scored once.
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"refit": False}) for name in ("entropy", "magnitude", "random", "wanda")},
    **{name: (name, {"refit": False}) for name in ("similarity", "taylor", "gradient")},
    "fisher": ("fisher", {"refit": False}),
    "loss_impact": ("loss_impact", {"refit": False}),
    "fisher, 3 steps": ("fisher", {"refit": False, "pruning_steps": 3}),
    "fisher, refit": ("fisher", {}),
    "fisher, 3 steps, refit": ("fisher", {"pruning_steps": 3}),
    "magnitude, refit": ("magnitude", {}),
    "entropy, refit": ("entropy", {}),
    "surgeon": ("surgeon", {"refit": False}),
    "auto": ("auto", {}),
    "auto, 3 steps": ("auto", {"pruning_steps": 3}),
    # Prune a third more than asked for and grow a quarter of all pruned heads back.
    "auto, regrown": ("auto", {"schedule": "target", "growth_ratio": 0.25}),
    # The last refit reads all there is to learn from.
    "auto, regrown, refit on all": ("auto", {"schedule": "target", "growth_ratio": 0.25, "refit_samples": 1 << 20}),
    "auto, 3 steps, regrown": ("auto", {"pruning_steps": 3, "schedule": "target", "growth_ratio": 0.25}),
}


class Bench:
    """One model and one text; results in a file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        text = args.text.read_text()
        cut = text.rindex("\n", 0, len(text) * 4 // 5)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="quality-"))
        self.numbers = itertools.count(1)
        train, held_out = self.folder / "train.txt", self.folder / "held-out.txt"
        train.write_text(text[:cut])
        held_out.write_text(text[cut:])
        documents = "separate" if args.separate else "packed"
        self.train, self.held_out = TextFiles(train, documents=documents), TextFiles(held_out, documents=documents)
        settings = {"window": args.window, "windows": args.windows, "learning_rate": args.learning_rate, "batch": args.batch_size}
        self.record = {"version": upgrayedd.__version__, "model": args.model.name, "text": args.text.name, **settings, "rows": []}
        # The model that regrowing arms start from, and the folders of its run.
        self.bare: Model | None = None
        self.kept: set[pathlib.Path] = set()
        if args.out.exists():
            self.record = json.loads(args.out.read_text())

    def loss(self, model: Model) -> float:
        return model.evaluate(self.held_out, sequence_length=self.args.window, max_eval_windows=self.args.windows).loss

    def run(self, model: Any, strategy: Any, steps: int, seed: int, **options: Any) -> Model:
        """One cycle of the real pipeline; 0 steps do not learn."""
        # A model that came out of a run has its tokenizer there, so folders stay until the arm is done.
        out = self.folder / f"run-{next(self.numbers)}"
        pipeline = UpgrayeddPipeline(
            model,
            strategy=strategy,
            output_dir=out,
            learning_rate=self.args.learning_rate,
            lr_schedule="constant",
            warmup_steps=8,
            batch_size=self.args.batch_size,
            max_steps_per_cycle=steps,
            max_eval_windows=4,
            dtype="float32",
            seed=seed,
            **options,
        )
        return pipeline.run_optimization(self.train, num_cycles=1, eval_dataloader=self.held_out)

    def pruned(self, plan: str, ratio: float, seed: int) -> Model:
        """Scored, pruned and (as the plan says) repaired and regrown; not learned."""
        name, options = PLANS[plan]
        options = {"scope": "global", "growth_ratio": 0.0, **options}
        strategy = get_strategy(name, pruning_ratio=ratio, growth_ratio=options.pop("growth_ratio"))
        return self.run(self.args.model, strategy, 0, seed, **options)

    def learned(self, model: Model, seed: int) -> Model:
        return self.run(model, get_strategy("random", pruning_ratio=0.0, growth_ratio=0.0), self.args.steps, seed)

    def grown(self, ratio: float, how: str, seed: int) -> Model:
        """Prunes more than asked for and brings the difference back: the heads with the highest gains, or any."""
        parent = Model.from_pretrained(self.args.model)
        if self.bare is None:
            self.bare = self.pruned("auto", self.args.regrow, seed)
            self.kept = set(self.folder.glob("run-*"))
        model = self.bare.copy()
        total = sum(parent.heads_per_layer.values())
        count = int(self.args.regrow * total + 1e-9) - int(ratio * total + 1e-9)
        if how == "gains":
            gains = model.growth_gains(self.train)
            order = sorted(((g, layer, head) for layer, heads in gains.items() for head, g in heads.items()), reverse=True)
            chosen = [(layer, head) for _, layer, head in order[:count]]
        else:
            chosen = [(layer, head) for layer, heads in model.pruned_heads.items() for head in heads]
            chosen = random.Random(seed).sample(chosen, count)
        heads: dict[str, list[int]] = {}
        for layer, head in chosen:
            heads.setdefault(layer, []).append(head)
        model.restore(heads)
        # As much text as a run's refit reads.
        model.refit(parent, self.train, samples=256)
        return model

    def arm(self, name: str, ratio: float, make: Callable[[int], Model], seeded: bool = False) -> None:
        """Measures an arm under every seed that it has not been measured under; only `seeded` ones are made anew for each."""
        rows: list[dict[str, Any]] = self.record["rows"]
        made: tuple[Model, float] | None = None
        for seed in self.args.seeds:
            key = (name, ratio, seed)
            if any((r["arm"], r["ratio"], r["seed"]) == key and (not self.args.learn or "learned" in r) for r in rows):
                continue
            if seeded or made is None:
                model = make(seed)
                made = model, self.loss(model)
            model, pruned = made
            result: dict[str, Any] = {"arm": name, "ratio": ratio, "seed": seed, "heads": sum(model.heads_per_layer.values())}
            result |= {"parameters": model.num_parameters, "pruned": pruned}
            if self.args.learn:
                result |= {"steps": self.args.steps, "learned": self.loss(self.learned(model, seed))}
            rows[:] = [r for r in rows if (r["arm"], r["ratio"], r["seed"]) != key] + [result]
            self.args.out.parent.mkdir(parents=True, exist_ok=True)
            self.args.out.write_text(json.dumps(self.record, indent=1) + "\n")
            print(self.line(result), flush=True)
        for folder in set(self.folder.glob("run-*")) - self.kept:
            shutil.rmtree(folder)

    def line(self, row: dict[str, Any]) -> str:
        dense = {r["seed"]: r for r in self.record["rows"] if r["arm"] == "dense"}
        base = dense.get(row["seed"], next(iter(dense.values()), {}))
        cells = [row["arm"], f"{row['ratio']:.0%}", str(row["seed"]), str(row["heads"]), f"{row['parameters']:,}"]
        for key in ("pruned", "learned"):
            known = key in row and key in base
            cells += [f"{row[key]:.4f}" if key in row else "", f"{row[key] - base[key]:+.4f}" if known else ""]
        return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--plans", nargs="*", default=list(PLANS), choices=[*PLANS, "none"])
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.2, 0.3, 0.5])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--learn", action="store_true", help="learn as well, for --steps steps")
    parser.add_argument("--regrow", type=float, help="prune to this share and regrow to each ratio, by gains and at random")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--separate", action="store_true", help="every line is a sequence of its own")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=40)
    args = parser.parse_args()
    bench = Bench(args)
    print("| arm | pruned | seed | heads | parameters | loss | excess | loss, learned | excess, learned |\n" + "|---" * 9 + "|")
    bench.arm("dense", 0.0, lambda _: Model.from_pretrained(args.model))
    for ratio in args.ratios:
        for plan in (p for p in args.plans if p != "none"):
            bench.arm(plan, ratio, functools.partial(bench.pruned, plan, ratio), seeded=plan == "random")
        for how in ("gains", "random") if args.regrow and args.regrow > ratio else ():
            arm = f"auto to {args.regrow:.0%}, regrown by {how}"
            bench.arm(arm, ratio, functools.partial(bench.grown, ratio, how), seeded=how == "random")
    shutil.rmtree(bench.folder)


if __name__ == "__main__":
    main()
