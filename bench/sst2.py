"""What pruning costs a classifier: accuracy on SST-2, strategy by strategy, with and without refit, and after learning.

`python bench/sst2.py MODEL train.tsv dev.tsv --out FILE.json`, with torch, transformers and the program (`--program`). A head for
two labels is put on MODEL (a BERT) and learns, in PyTorch, from some of the training sentences; that model is kept in `--classifier` and
taken from there if it exists. `upgrayedd optimize` then prunes it with each strategy, heads competing over the whole model: without
learning, and for `--learn` strategies and the dense model with `--steps` steps of it. All are measured on all of dev.

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
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

STRATEGIES = "auto random entropy magnitude gradient taylor fisher task wanda similarity surgeon loss_impact".split()


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


def run(args: argparse.Namespace, strategy: str, ratio: float, refit: bool, steps: int, out: pathlib.Path) -> dict[str, Any]:
    """One cycle of the program: its summary."""
    options = {"model": args.classifier, "data": args.train, "eval-data": args.dev, "out": out, "strategy": strategy}
    options |= {"pruning-ratio": ratio, "growth-ratio": 0, "scope": "global", "refit": str(refit).lower(), "num-cycles": 1}
    options |= {"max-steps-per-cycle": steps, "batch-size": 32, "sequence-length": args.length, "seed": args.seed}
    options |= {"learning-rate": args.learning_rate, "threads": args.threads, "device": "cpu"}
    command = [str(args.program), "optimize", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)}\n{error.stderr}") from error
    return json.loads((out / "summary.json").read_text())


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
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    if "transformers" not in record:
        record["transformers"] = accuracy(args)
    print(f"accuracy of the classifier as transformers computes it: {record['transformers']:.4f}", flush=True)
    print("| strategy | refit | steps | heads | accuracy before | after | loss before | after |\n" + "|---" * 8 + "|")
    plans = [(name, args.ratio, refit, 0) for refit in (True, False) for name in args.strategies]
    plans += [("random", 0.0, False, args.steps), *((name, args.ratio, True, args.steps) for name in args.learn)]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sst2-"))
    for strategy, ratio, refit, steps in plans:
        plan: dict[str, Any] = {"strategy": strategy, "ratio": ratio, "refit": refit, "steps": steps}
        row = next((r for r in record["rows"] if plan.items() <= r.items()), None)
        if row is None:
            row = plan | {"summary": run(args, strategy, ratio, refit, steps, folder / "run")}
            shutil.rmtree(folder / "run")
            record["rows"].append(row)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(row)
    folder.rmdir()


if __name__ == "__main__":
    main()
