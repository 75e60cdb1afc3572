"""What pruning costs an encoder: Spearman correlation on STS-B, before and after learning.

`python bench/encoder.py MODEL sts-train.csv sts-dev.csv --out FILE.json`, with the package from a release wheel
(`scripts/python-package --release`): a sentence encoder learns its own hidden states again. Sentences of the training file (never
their scores) are scored on and learned from; the other file's pairs are embedded by mean pooling and compared by cosine.

With `--task`, a cross-encoder for pairs of sentences learns their scores (transformers adds the head): once as it is for
`--task-steps`, then pruned for `--steps` more, beside the dense model that goes on for as long.

Rows that FILE.json has already are not computed again.
"""

import argparse
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import upgrayedd
from upgrayedd import Model, TextFiles, UpgrayeddPipeline
from upgrayedd.strategies import get_strategy

# Name → (strategy, options of the pipeline).
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"refit": False}) for name in ("random", "entropy", "magnitude", "fisher")},
    "magnitude, refit": ("magnitude", {}),
    "fisher, refit": ("fisher", {}),
    "auto": ("auto", {}),
}


def pairs(path: pathlib.Path) -> list[tuple[float, str, str]]:
    rows = (line.rstrip("\n").split("\t") for line in path.open(encoding="utf-8"))
    return [(float(row[4]), row[5], row[6]) for row in rows if len(row) > 6]


def embeddings(model: Model, sentences: list[str]) -> np.ndarray:
    found = np.zeros((len(sentences), int(model.config["hidden_size"])))
    tokenizer = model.tokenizer
    ids = [tokenizer.encode(s)[:128] for s in sentences]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        length = max(len(ids[i]) for i in chosen)
        mask = np.array([[1] * len(ids[i]) + [0] * (length - len(ids[i])) for i in chosen])
        tokens = np.array([ids[i] + [0] * (length - len(ids[i])) for i in chosen])
        states = model.hidden_states(tokens, mask)
        found[chosen] = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, the mean of theirs for equal values."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def correlation(similar: np.ndarray, scores: Iterable[float]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(ranks(similar), ranks(np.array(list(scores))))[0, 1])


def spearman(model: Model, rows: list[tuple[float, str, str]]) -> float:
    scores, first, second = zip(*rows, strict=True)
    both = embeddings(model, [*first, *second])
    return correlation((both[: len(rows)] * both[len(rows) :]).sum(1), scores)


@dataclass
class Job:
    """A model to prune, what it learns from, and how it is measured."""

    model: Model
    data: Any
    measure: Callable[[Model], float]
    options: dict[str, Any] = field(default_factory=dict)


def sentence_job(args: argparse.Namespace, folder: pathlib.Path) -> Job:
    train, dev = pairs(args.train), pairs(args.dev)
    sentences = list(dict.fromkeys(s for _, *two in train for s in two))
    return Job(Model.from_pretrained(args.model), sentences, lambda m: spearman(m, dev), {"documents": "separate"})


def task_job(args: argparse.Namespace, folder: pathlib.Path) -> Job:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1).save_pretrained(folder / "given")
    AutoTokenizer.from_pretrained(args.model).save_pretrained(folder / "given")
    files = []
    for path in (args.train, args.dev):
        lines = [f"{score / 5}\t{first}\t{second}" for score, first, second in pairs(path)]
        (folder / f"{path.stem}.tsv").write_text("\n".join(["label\ttext\tother", *lines]) + "\n", encoding="utf-8")
        files.append(TextFiles(folder / f"{path.stem}.tsv", text_pair_field="other"))
    measure = lambda m: m.evaluate(files[1], sequence_length=128).spearman  # noqa: E731
    job = Job(Model.from_pretrained(folder / "given"), files[0], measure)
    job.model = run(args, job, folder / "parent", ("random", 0.0, {}), args.task_steps, 1)
    return job


def run(
    args: argparse.Namespace, job: Job, out: pathlib.Path, plan: tuple[str, float, dict[str, Any]], steps: int, seed: int
) -> Model:
    name, ratio, options = plan
    pipeline = UpgrayeddPipeline(
        job.model,
        strategy=get_strategy(name, pruning_ratio=ratio, growth_ratio=0.0),
        output_dir=out,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        max_steps_per_cycle=steps,
        max_eval_windows=256,
        sequence_length=64,
        scope="global",
        seed=seed,
        **job.options,
        **options,
    )
    return pipeline.run_optimization(job.data, num_cycles=1, epochs_per_cycle=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("dev", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.3, 0.5])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--plans", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--steps", type=int, default=200, help="0 measures before learning alone")
    parser.add_argument("--task", action="store_true", help="a cross-encoder under the pairs' scores")
    parser.add_argument("--task-steps", type=int, default=360)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    args = parser.parse_args()

    folder = pathlib.Path(tempfile.mkdtemp(prefix="encoder-"))
    job = (task_job if args.task else sentence_job)(args, folder)
    settings = {"batch": args.batch_size, "learning_rate": args.learning_rate}
    settings |= {"task_steps": args.task_steps} if args.task else {}
    record = {"version": upgrayedd.__version__, "model": args.model.name, "data": "STS-B dev", **settings, "rows": []}
    if args.out.exists():
        record = json.loads(args.out.read_text())
    record["dense"] = job.measure(job.model)
    print(f"dense: Spearman {record['dense']:.4f}, {job.model.num_parameters:,} parameters")
    print("| arm | pruned | seed | heads | parameters | Spearman | after learning |\n" + "|---" * 7 + "|")
    dense = [("dense", 0.0)] if args.task else []
    for seed in args.seeds:
        for plan, ratio in [*dense, *((plan, ratio) for ratio in args.ratios for plan in args.plans)]:
            known = [r for r in record["rows"] if (r["arm"], r["ratio"], r["seed"]) == (plan, ratio, seed)]
            row: dict[str, Any] = known[0] if known else {"arm": plan, "ratio": ratio, "seed": seed}
            wanted = {"pruned": 0, "learned": args.steps} if args.steps else {"pruned": 0}
            if wanted.keys() <= row.keys():
                continue
            name, options = PLANS.get(plan, ("random", {}))
            for key, steps in ((k, s) for k, s in wanted.items() if k not in row):
                model = run(args, job, folder / key, (name, ratio, options), steps, seed)
                row |= {"heads": sum(model.heads_per_layer.values()), "parameters": model.num_parameters}
                row[key] = job.measure(model)
                shutil.rmtree(folder / key)
                row |= {"steps": steps} if steps else {}
            record["rows"] = [r for r in record["rows"] if r is not row] + [row]
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
            cells = [plan, f"{ratio:.0%}", str(seed), str(row["heads"]), f"{row['parameters']:,}"]
            learned = f"{row['learned']:.4f}" if "learned" in row else ""
            print("| " + " | ".join([*cells, f"{row['pruned']:.4f}", learned]) + " |", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
