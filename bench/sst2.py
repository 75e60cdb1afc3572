"""What pruning costs a classifier: accuracy on SST-2, strategy by strategy, with and without refit, and after learning.

`python bench/sst2.py MODEL train.tsv dev.tsv --out FILE.json`, with torch, transformers and the program (`--program`). A head for
two labels is put on MODEL (a BERT) and learns, in PyTorch, from some of the training sentences; that model is kept in
`--classifier` and taken from there if it exists. `upgrayedd optimize` then prunes it with each strategy, heads competing over the
whole model, without learning; for `--learn` strategies and the dense model also with `--steps` steps of it. All are measured on
all of dev.

Rows that FILE.json has already are not computed again.
"""

import argparse
import csv
import json
import pathlib
import random
import shutil
import subprocess
import tempfile
import time
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

STRATEGIES = ["auto", "random", "entropy", "magnitude", "gradient", "taylor", "fisher", "task", "wanda", "similarity", "surgeon"]
STRATEGIES += ["loss_impact"]


def read(path: pathlib.Path) -> list[tuple[str, int]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in rows]


def make_classifier(args: argparse.Namespace) -> None:
    """A few epochs over the first sentences of the shuffled training file."""
    torch.manual_seed(args.seed)
    rows = read(args.train)
    random.Random(args.seed).shuffle(rows)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    size, steps = 32, args.epochs * (args.sentences // 32)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 50, (steps - s) / steps))
    model.train()
    for step in range(steps):
        start = step * size % (args.sentences // size * size)
        sentences, labels = zip(*rows[start : start + size], strict=True)
        batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=args.length, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(args.classifier)
    tokenizer.save_pretrained(args.classifier)


@torch.inference_mode()
def accuracy(args: argparse.Namespace) -> float:
    """Of the classifier as transformers computes it, to compare with what the program says."""
    tokenizer = AutoTokenizer.from_pretrained(args.classifier)
    model = AutoModelForSequenceClassification.from_pretrained(args.classifier).eval()
    rows = sorted(read(args.dev), key=lambda row: len(row[0]))
    right = 0
    for start in range(0, len(rows), 64):
        sentences, labels = zip(*rows[start : start + 64], strict=True)
        batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=args.length, return_tensors="pt")
        right += int((model(**batch).logits.argmax(-1) == torch.tensor(labels)).sum())
    return right / len(rows)


def program(args: argparse.Namespace, command: str, **options: Any) -> str:
    """What the program says to these options."""
    options |= {"threads": args.threads, "device": "cpu", "batch_size": 32, "sequence_length": args.length, "seed": args.seed}
    parts = (str(part) for name, value in options.items() for part in ("--" + name.replace("_", "-"), value))
    line = [str(args.program), command, "--json", *parts]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr}")
    return done.stdout


def measure(args: argparse.Namespace, model: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Loss and accuracy on all of dev; sorted by length there is less padding to compute."""
    lines = [f"{sentence}\t{label}" for sentence, label in sorted(read(args.dev), key=lambda row: len(row[0]))]
    (folder / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    found = json.loads(program(args, "evaluate", model=model, data=folder / "dev.tsv"))
    return {key: found[key] for key in ("loss", "accuracy", "sequences")}


def pruned(
    args: argparse.Namespace, folder: pathlib.Path, strategy: str, ratio: float, refit: bool, steps: int
) -> dict[str, Any]:
    """One cycle, measured."""
    start = time.monotonic()
    options = {"pruning_ratio": ratio, "growth_ratio": 0, "scope": "global", "refit": str(refit).lower(), "num_cycles": 1}
    options |= {"max_steps_per_cycle": steps, "learning_rate": args.learning_rate, "max_eval_windows": 64}
    data = {"model": args.classifier, "data": args.train, "eval_data": args.dev, "out": folder / "run"}
    summary = json.loads(program(args, "optimize", strategy=strategy, **options, **data))
    seconds = time.monotonic() - start
    row = {"heads": sum(map(len, summary["after"]["heads"])), "seconds": round(seconds, 1)}
    row |= measure(args, folder / "run", folder)
    shutil.rmtree(folder / "run")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("dev", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--program", type=pathlib.Path, default="target/release/upgrayedd")
    parser.add_argument("--classifier", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "sst2-classifier")
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--learn", nargs="*", default=["auto", "random", "magnitude"], choices=STRATEGIES)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--sentences", type=int, default=8000, help="that the classifier learns from")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="of learning after pruning, 32 sentences each")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.classifier.exists():
        make_classifier(args)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sst2-"))
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    if "dense" not in record:
        record |= {"transformers": accuracy(args), "dense": measure(args, args.classifier, folder)}
    print(f"dense: {record['dense']}; as transformers computes it: accuracy {record['transformers']:.4f}", flush=True)

    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    plans = [(name, args.ratio, True, 0) for name in args.strategies]
    plans += [("random", 0.0, True, args.steps)] if args.learn else []
    plans += [(name, args.ratio, True, args.steps) for name in args.learn]
    plans += [(name, args.ratio, False, 0) for name in args.strategies]
    for plan in plans:
        key = dict(zip(("strategy", "ratio", "refit", "steps"), plan, strict=True)) | {"seed": args.seed}
        known = [row for row in record["rows"] if key.items() <= row.items()]
        row = known[0] if known else key | pruned(args, folder, *plan)
        rows[plan] = row
        if not known:
            record["rows"].append(row)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
            print(row, flush=True)
    shutil.rmtree(folder)

    def cell(plan: tuple[Any, ...]) -> str:
        return f"{rows[plan]['accuracy']:.1%} ({rows[plan]['loss']:.3f})" if plan in rows else "–"

    print(f"\n| strategy | heads | with refit | after {args.steps} steps | without refit |\n" + "|---" * 5 + "|")
    dense = f"{record['dense']['accuracy']:.1%} ({record['dense']['loss']:.3f})"
    print(f"| (dense) | – | {dense} | {cell(('random', 0.0, True, args.steps))} | – |")
    for name in sorted(args.strategies, key=lambda name: -rows[name, args.ratio, True, 0]["accuracy"]):
        cells = [cell((name, args.ratio, *rest)) for rest in ((True, 0), (True, args.steps), (False, 0))]
        print(f"| `{name}` | {rows[name, args.ratio, True, 0]['heads']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
