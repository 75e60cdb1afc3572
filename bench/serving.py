"""What a pruned decoder is worth in llama.cpp: loss and time per token, dense beside pruned, in one session.

`python bench/serving.py MODEL TEXT.txt --out FILE.json`, with the program (`--program`) and `scripts/node-env` run once. The
text's first four fifths are scored and refitted on, windows of its last fifth are measured on. Nothing is learned.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
from typing import Any

CLIENT = pathlib.Path(__file__).resolve().parents[1] / "tests" / "node" / "serving.mjs"

ARMS = {
    "a third of the heads, uniform": ["--units", "heads", "--shape", "uniform", "--pruning-ratio", "0.34", "--growth-ratio", "0"],
    "a third of the heads, free": ["--units", "heads", "--pruning-ratio", "0.34", "--growth-ratio", "0"],
    "a fifth of heads and channels by weights, uniform": ["--units", "all", "--shape", "uniform", "--growth-ratio", "0"],
    "a fifth of heads and channels by weights, free": ["--units", "all", "--growth-ratio", "0"],
}


def asked(args: argparse.Namespace, *words: object) -> dict[str, Any]:
    done = subprocess.run([str(args.program), *map(str, words), "--json"], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def prune(args: argparse.Namespace, texts: tuple[pathlib.Path, pathlib.Path], arm: str, out: pathlib.Path) -> None:
    options = list(ARMS[arm])
    if "all" in options:
        options += ["--target", "parameters=113281344"]
    command = [args.program, "optimize", "--model", args.model, "--data", texts[0], "--eval-data", texts[1], *options]
    command += [
        "--num-cycles",
        "1",
        "--max-steps-per-cycle",
        "0",
        "--sequence-length",
        args.window,
        "--max-eval-windows",
        4,
        "--out",
        out,
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def windows(args: argparse.Namespace, text: str) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(args.model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return [tokens[at * args.window : (at + 1) * args.window] for at in range(args.windows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--program", type=pathlib.Path, default="target/release/upgrayedd")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help="beginnings of names; all if absent")
    args = parser.parse_args()
    text = args.text.read_text()
    cut = len(text) * 4 // 5
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        texts = (folder / "learn.txt", folder / "measure.txt")
        texts[0].write_text(text[:cut])
        texts[1].write_text(text[cut:])
        runs = {"dense": args.model}
        for index, arm in enumerate(name for name in ARMS if name.startswith(tuple(args.arms))):
            runs[arm] = folder / f"run{index}"
            prune(args, texts, arm, runs[arm])
        files, rows = [], []
        for index, (arm, run) in enumerate(runs.items()):
            out = folder / f"gguf{index}"
            subprocess.run(
                [args.program, "export", "--model", run, "--format", "gguf", "--dtype", args.dtype, "--out", out], check=True
            )
            files.append(str(out / "model.gguf"))
            shape = asked(args, "inspect", run)
            ours = asked(
                args,
                "evaluate",
                "--model",
                run,
                "--data",
                texts[1],
                "--sequence-length",
                args.window,
                "--max-eval-windows",
                args.windows,
            )
            macs = shape["macs_per_token"]
            rows.append({"arm": arm, "parameters": shape["parameters"], "macs": macs, "our_loss": ours["loss"]})
        job = {
            "files": files,
            "windows": windows(args, text[cut:]),
            "rounds": args.rounds,
            "generate": 64,
            "threads": args.threads,
        }
        (folder / "job.json").write_text(json.dumps(job))
        subprocess.run(["node", CLIENT, folder / "job.json", folder / "out.json"], check=True, cwd=CLIENT.parent)
        for row, found in zip(rows, json.loads((folder / "out.json").read_text()), strict=True):
            row |= {"architecture": found["architecture"], "loss": found["loss"]}
            row |= {f"{kind}_seconds": found[kind] for kind in ("prompt", "token")}
    dense = rows[0]
    titles = ["", "architecture", "parameters", "loss here", "loss in llama.cpp", "MACs", "prompt time", "time per token"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for row in rows:
        ratios = [statistics.median(row[key]) / statistics.median(dense[key]) for key in ("prompt_seconds", "token_seconds")]
        print(
            f"| {row['arm']} | {row['architecture']} | {row['parameters']:,} | {row['our_loss']:.4f} | {row['loss']:.4f} "
            f"| {row['macs'] / dense['macs']:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    args.out.write_text(json.dumps({"args": {k: str(v) for k, v in vars(args).items()}, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
