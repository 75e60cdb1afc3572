"""What a pruned sentence encoder is worth in onnxruntime: Spearman on STS-B and time per sentence, dense beside pruned.

`python bench/serving_encoder.py MODEL sts-train.csv sts-dev.csv --out FILE.json`, with the package from a release wheel
(`scripts/python-package --release`) and onnxruntime. Sentences of the training file (never their scores) are scored and refitted
on; nothing is learned. All graphs are timed in one session, in turns.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import onnxruntime
from encoder import correlation, embeddings, pairs

from upgrayedd import Model, TextFiles, UpgrayeddPipeline
from upgrayedd.strategies import get_strategy

ARMS: dict[str, dict[str, Any]] = {
    "30 % of the heads, free": {"units": "heads", "pruning_ratio": 0.3},
    "30 % of the weights, heads and channels, free": {"units": "all", "pruning_ratio": 0.3, "budget": "parameters"},
    "30 % of the channels, uniform": {"units": "channels", "pruning_ratio": 0.3, "shape": "uniform"},
}


def by_graph(session: onnxruntime.InferenceSession, ids: list[list[int]]) -> np.ndarray:
    """Means of the hidden states, a sentence at a time."""
    found = []
    for one in ids:
        tokens = np.array([one], dtype=np.int64)
        feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
        names = [value.name for value in session.get_inputs()]
        found.append(session.run(None, {name: feed[name] for name in names})[0][0].mean(0))
    made = np.array(found)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("dev", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=200, help="how many are timed")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    truth, first, second = zip(*pairs(args.dev), strict=True)
    sentences = [sentence for _, *both in pairs(args.train) for sentence in both]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    rows, sessions = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "sentences.txt").write_text("\n".join(sentences))
        for index, (arm, plan) in enumerate([("dense", None), *ARMS.items()]):
            model = Model.from_pretrained(args.model)
            if plan is not None:
                chosen = {"pruning_ratio": plan["pruning_ratio"], "growth_ratio": 0.0}
                strategy = get_strategy("auto", **chosen)
                more = {key: value for key, value in plan.items() if key != "pruning_ratio"}
                pipeline = UpgrayeddPipeline(
                    model,
                    strategy=strategy,
                    max_steps_per_cycle=0,
                    max_eval_windows=64,
                    documents="separate",
                    output_dir=root / f"run{index}",
                    **more,
                )
                model = pipeline.run_optimization(TextFiles(root / "sentences.txt"), num_cycles=1)
            out = root / f"onnx{index}"
            model.save_pretrained(out, format="onnx", dtype="float32")
            session = onnxruntime.InferenceSession(out / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
            sessions.append(session)
            tokenizer = model.tokenizer
            ids = [[tokenizer.encode(s)[:128] for s in side] for side in (first, second)]
            theirs = (by_graph(session, ids[0]) * by_graph(session, ids[1])).sum(1)
            ours = (embeddings(model, list(first)) * embeddings(model, list(second))).sum(1)
            row: dict[str, Any] = {"arm": arm, "parameters": model.num_parameters, "macs": model.summary(32)["macs_per_token"]}
            row |= {
                "spearman_here": correlation(ours, truth),
                "spearman": correlation(theirs, truth),
                "seconds": [],
            }
            rows.append(row)
        for round in range(args.rounds + 1):
            for row, session in zip(rows, sessions, strict=True):
                begun = time.perf_counter()
                by_graph(session, ids[0][: args.sentences])
                # The first warms up.
                if round > 0:
                    row["seconds"].append((time.perf_counter() - begun) / args.sentences)
    titles = ["", "parameters", "Spearman here", "in onnxruntime", "MACs", "ms per sentence", "time"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    dense = rows[0]
    for row in rows:
        median = statistics.median(row["seconds"])
        print(
            f"| {row['arm']} | {row['parameters']:,} | {row['spearman_here']:.4f} | {row['spearman']:.4f} "
            f"| {row['macs'] / dense['macs']:.2f} | {1000 * median:.2f} | {median / statistics.median(dense['seconds']):.2f} |"
        )
    args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
