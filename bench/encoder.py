"""What pruning costs a sentence encoder: Spearman correlation on STS-B, before and after learning its own hidden states again.

`python bench/encoder.py MODEL sts-train.csv sts-dev.csv --out FILE.json`, with the package from a release wheel
(`scripts/python-package --release`). Sentences of the training file (never their scores) are scored on and learned from; the
other file's pairs are embedded by mean pooling and compared by cosine. Rows that FILE.json has already are not computed again.
"""

import argparse
import json
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

import upgrayedd
from upgrayedd import Model, UpgrayeddPipeline
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
    ids = [model.tokenizer.encode(s)[:128] for s in sentences]
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


def spearman(model: Model, rows: list[tuple[float, str, str]]) -> float:
    scores, first, second = zip(*rows, strict=True)
    both = embeddings(model, [*first, *second])
    similar = (both[: len(rows)] * both[len(rows) :]).sum(1)
    return float(np.corrcoef(ranks(similar), ranks(np.array(scores)))[0, 1])


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
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    args = parser.parse_args()

    train, dev = pairs(args.train), pairs(args.dev)
    sentences = list(dict.fromkeys(s for _, *two in train for s in two))
    dense = Model.from_pretrained(args.model)
    settings = {"batch": args.batch_size, "learning_rate": args.learning_rate}
    record = {"version": upgrayedd.__version__, "model": args.model.name, "data": "STS-B dev", **settings, "rows": []}
    if args.out.exists():
        record = json.loads(args.out.read_text())
    record["dense"] = spearman(dense, dev)
    print(f"dense: Spearman {record['dense']:.4f}, {dense.num_parameters:,} parameters")
    print("| arm | pruned | seed | heads | parameters | Spearman | after learning |\n" + "|---" * 7 + "|")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="encoder-"))
    for seed in args.seeds:
        for ratio in args.ratios:
            for plan in args.plans:
                known = [r for r in record["rows"] if (r["arm"], r["ratio"], r["seed"]) == (plan, ratio, seed)]
                row: dict[str, Any] = known[0] if known else {"arm": plan, "ratio": ratio, "seed": seed}
                wanted = {"pruned": 0, "learned": args.steps} if args.steps else {"pruned": 0}
                if wanted.keys() <= row.keys():
                    continue
                name, options = PLANS[plan]
                for key, steps in wanted.items():
                    if key in row:
                        continue
                    out = folder / key
                    pipeline = UpgrayeddPipeline(
                        dense,
                        strategy=get_strategy(name, pruning_ratio=ratio, growth_ratio=0.0),
                        output_dir=out,
                        learning_rate=args.learning_rate,
                        batch_size=args.batch_size,
                        max_steps_per_cycle=steps,
                        max_eval_windows=256,
                        sequence_length=64,
                        documents="separate",
                        scope="global",
                        seed=seed,
                        **options,
                    )
                    model = pipeline.run_optimization(sentences, num_cycles=1)
                    row |= {"heads": sum(model.heads_per_layer.values()), "parameters": model.num_parameters}
                    row[key] = spearman(model, dev)
                    shutil.rmtree(out)
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
