"""What pruning alone costs, strategy by strategy: held-out loss of a language model without some of its heads, untrained.

`python bench/quality.py MODEL TEXT.txt --ratio 0.3 --out FILE.json`, with the package from a release
wheel. Heads are chosen over the whole model (global scope), each layer keeping one. "fisher / 3" scores anew after every third of
them. Loss: non-overlapping windows of the last fifth of the text; calibration: windows of 256 tokens of the rest.
"""

import argparse
import json
import pathlib
import time

import upgrayedd
from upgrayedd import Model

PLANS = ["entropy", "magnitude", "gradient", "taylor", "fisher", "fisher / 3", "fisher / 9", "random 1", "random 2", "random 3"]


def score(model: Model, name: str, seed: int, calibration: list[str], samples: int) -> dict[tuple[str, int], float]:
    """Importance of each head, higher = keep."""
    data = None if name in ("magnitude", "random") else calibration
    sign = -1.0 if name == "entropy" else 1.0
    found = model.score(name, data, samples=samples, sequence_length=256, seed=seed)
    return {
        (layer, h): sign * float(v) for layer, vs in found.items() for h, v in zip(model.active_heads[layer], vs, strict=True)
    }


def prune(model: Model, scores: dict[tuple[str, int], float], count: int) -> None:
    """Removes the `count` lowest heads; every layer keeps one."""
    left = dict(model.heads_per_layer)
    chosen: dict[str, list[int]] = {}
    for layer, head in sorted(scores, key=lambda key: scores[key]):
        if count > 0 and left[layer] > 1:
            chosen.setdefault(layer, []).append(head)
            left[layer] -= 1
            count -= 1
    model.prune(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--plans", nargs="*", default=PLANS)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    text = args.text.read_text()
    cut = text.rindex("\n", 0, len(text) * 4 // 5)
    calibration, held_out = [text[:cut]], [text[cut:]]
    dense = Model.from_pretrained(args.model)
    total = sum(dense.heads_per_layer.values())
    count = int(args.ratio * total)

    def measure(model: Model) -> upgrayedd.Evaluation:
        return model.evaluate(held_out, sequence_length=args.window, max_eval_windows=args.windows)

    base = measure(dense)
    print(f"{args.model}: {count} of {total} heads; dense loss {base.loss:.4f}, perplexity {base.perplexity:.2f}\n")
    print("| scores | held-out loss | excess | perplexity | seconds |\n|---|---|---|---|---|")
    rows = []
    for plan in args.plans:
        start = time.monotonic()
        name, _, number = plan.replace(" / ", " ").partition(" ")
        steps = int(number) if name != "random" and number else 1
        seed = int(number) if name == "random" else 42
        model = dense.copy()
        for step in range(steps):
            share = count * (step + 1) // steps - count * step // steps
            prune(model, score(model, name, seed, calibration, args.samples), share)
        seconds = time.monotonic() - start
        result = measure(model)
        excess = result.loss - base.loss
        print(f"| {plan} | {result.loss:.4f} | {excess:+.4f} | {result.perplexity:.2f} | {seconds:.0f} |", flush=True)
        rows.append({"plan": plan, "loss": result.loss, "excess": excess, "active_heads": model.active_heads})
    if args.out:
        settings = {k: str(v) for k, v in vars(args).items() if k not in ("out", "plans")}
        record = {"version": upgrayedd.__version__, **settings, "heads": count, "dense": base.loss, "rows": rows}
        args.out.write_text(json.dumps({**record, "data_hash": base.data_hash}, indent=1) + "\n")


if __name__ == "__main__":
    main()
