"""Times Upgrayedd beside PyTorch in alternating runs and prints a Markdown table; use `scripts/bench`."""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
OURS = HERE.parent / "target/release/upgrayedd-bench"
WORK = [
    ("train", "gpt2-small", 2),
    ("train", "small-decoder", 8),
    ("forward", "gpt2-small", 2),
    ("forward", "small-decoder", 8),
]


def run(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare(work, name, batch, rounds):
    options = [work, "--config", str(HERE / f"configs/{name}.json"), "--batch", str(batch), "--length", "256"]
    sides = {"upgrayedd": [str(OURS), *options], "pytorch": [sys.executable, str(HERE / "pytorch_step.py"), *options]}
    results = {side: [] for side in sides}
    for _ in range(rounds):
        for side, command in sides.items():
            results[side].append(run(command))
    times = {side: [t for r in rs for t in r["ms"]] for side, rs in results.items()}
    rss = {side: max(r["peak_rss_mib"] for r in rs) for side, rs in results.items()}
    medians = {side: statistics.median(t) for side, t in times.items()}
    return {
        "work": work,
        "model": name,
        "batch": batch,
        "length": 256,
        "ms": medians,
        "ms_min": {side: min(t) for side, t in times.items()},
        "ms_max": {side: max(t) for side, t in times.items()},
        "peak_rss_mib": rss,
        "time_ratio": medians["upgrayedd"] / medians["pytorch"],
        "rss_ratio": rss["upgrayedd"] / rss["pytorch"],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="alternations of five counted runs each")
    parser.add_argument("--only", help="only this work, for example train:gpt2-small")
    parser.add_argument("--out", type=pathlib.Path, help="write the figures as JSON")
    args = parser.parse_args()
    rows = []
    print("| work | model | ours ms (min–max) | PyTorch ms (min–max) | time ratio | ours MiB | PyTorch MiB | memory ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for work, name, batch in WORK:
        if args.only and args.only != f"{work}:{name}":
            continue
        r = compare(work, name, batch, args.rounds)
        rows.append(r)
        cells = [f"{r['ms'][s]:.0f} ({r['ms_min'][s]:.0f}–{r['ms_max'][s]:.0f})" for s in ("upgrayedd", "pytorch")]
        memory = [f"{r['peak_rss_mib'][s]:.0f}" for s in ("upgrayedd", "pytorch")]
        row = [work, f"{name}, {batch} × 256", *cells, f"{r['time_ratio']:.2f}", *memory, f"{r['rss_ratio']:.2f}"]
        print(f"| {' | '.join(row)} |", flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


main()
