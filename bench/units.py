"""What heads and channels cost a language model before any learning, at equal shares of its blocks' weights.

`python bench/units.py MODEL TEXT.txt --out FILE.json`, with the program (`--program`). The text's first four fifths are scored
and refitted on; the last fifth is measured on, in non-overlapping windows. A share S of the blocks' weights (all but what the
embedding has) is a target in parameters for `upgrayedd optimize`. Every row is written to FILE.json as soon as it is known, and
rows that are there already are not computed again. An arm is UNITS/STRATEGY/SHAPE, with `+all` at its end if the refit reads all
of the text, `-refit` if there is none, and `+steps` where pruning takes three.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time
from typing import Any

ARMS = ["channels/fisher/free-refit", "channels/fisher/free", "channels/auto/free", "all/fisher/free-refit", "all/fisher/free"]
ARMS += ["all/auto/free", "all/auto/free+all", "all/auto/free+steps", "all/auto/uniform", "heads/auto/free"]
ARMS += ["attention/auto/free", "mlp/auto/free", "layers/auto/free"]


def inspect(program: pathlib.Path, model: pathlib.Path) -> dict[str, Any]:
    command = [str(program), "inspect", str(model), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def blocks(program: pathlib.Path, model: pathlib.Path) -> int:
    """Parameters of the blocks' matrices: of a Llama or one like it, with tied embeddings."""
    shape, config = inspect(program, model), json.loads((model / "config.json").read_text())
    embeddings: int = config["vocab_size"] * config["hidden_size"]
    norms: int = (2 * shape["layers"] + 1) * shape["hidden_size"]
    total: int = shape["parameters"]
    return total - embeddings - norms


def run(args: argparse.Namespace, texts: tuple[pathlib.Path, pathlib.Path], arm: str, target: int) -> dict[str, Any]:
    units, strategy, rest = arm.split("/")
    shape = rest.removesuffix("+all").removesuffix("-refit").removesuffix("+steps")
    options = ["--refit", "false"] if rest.endswith("-refit") else []
    options += ["--refit-samples", str(1 << 20)] if rest.endswith("+all") else []
    options += ["--pruning-steps", "3"] if rest.endswith("+steps") else []
    with tempfile.TemporaryDirectory() as folder:
        command = [args.program, "optimize", "--json", "--model", args.model, "--data", texts[0], "--eval-data", texts[1]]
        command += ["--units", units, "--strategy", strategy, "--shape", shape, "--scope", "global", *options]
        command += ["--target", f"parameters={target}", "--growth-ratio", "0", "--num-cycles", "1", "--max-steps-per-cycle", "0"]
        command += ["--sequence-length", str(args.window), "--max-eval-windows", str(args.windows), "--dtype", "float32"]
        command += ["--out", f"{folder}/run"]
        start = time.monotonic()
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            return {"arm": arm, "target": target, "refused": done.stderr.strip().splitlines()[-1]}
        summary = json.loads(done.stdout)
    before, after = summary["before"], summary["after"]
    return {
        "arm": arm,
        "target": target,
        "dense": before["evaluation"]["loss"],
        "loss": after["evaluation"]["loss"],
        "excess": after["evaluation"]["loss"] - before["evaluation"]["loss"],
        "parameters": after["cost"]["parameters"],
        "heads": sum(map(len, after["heads"])),
        "channels": sum(after["channels"]),
        "macs": after["cost"]["macs_per_token"] / before["cost"]["macs_per_token"],
        "forward": after["speed"]["forward"] / before["speed"]["forward"],
        "seconds": time.monotonic() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/upgrayedd"))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.2, 0.3])
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=40)
    args = parser.parse_args()
    text = args.text.read_text()
    cut = text.rindex("\n", 0, len(text) * 4 // 5)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="units-"))
    texts = (folder / "train.txt", folder / "held-out.txt")
    texts[0].write_text(text[:cut])
    texts[1].write_text(text[cut:])
    record: dict[str, Any] = {
        "model": args.model.name,
        "text": args.text.name,
        "window": args.window,
        "windows": args.windows,
        "rows": [],
    }
    if args.out.exists():
        record = json.loads(args.out.read_text())
    parameters, inner = inspect(args.program, args.model)["parameters"], blocks(args.program, args.model)
    for arm in args.arms:
        for share in args.shares:
            if any(row["arm"] == arm and row["share"] == share for row in record["rows"]):
                continue
            row = {"share": share, **run(args, texts, arm, parameters - round(share * inner))}
            record["rows"].append(row)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
