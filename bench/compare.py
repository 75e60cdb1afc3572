"""Times Upgrayedd beside PyTorch in alternating runs and prints Markdown tables; use `scripts/bench`."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import curves

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
OURS = ROOT / "target/release/upgrayedd-bench"
# Built with RUSTFLAGS="--cfg avx2_only".
AVX2 = ROOT / "target/avx2/release/upgrayedd-bench"
# Work, model, batch, length, and the bars: our time and memory as shares of PyTorch's.
PEERS = [
    ("train", "gpt2-small", 2, 256, 0.9, 0.65),
    ("train", "small-decoder", 8, 256, 0.9, 0.65),
    ("forward", "gpt2-small", 2, 256, 0.85, 0.5),
    ("forward", "small-decoder", 8, 256, 0.85, 0.5),
    ("entropy", "gpt2-small", 4, 512, 0.6, 0.35),
    ("gates", "gpt2-small", 4, 256, 0.85, 0.5),
    ("gates", "smollm2-135m", 4, 256, 0.85, 0.5),
    ("generate", "smollm2-135m", 1, 128, None, None),
]
# Read when PyTorch, MKL and oneDNN are loaded.
PYTORCH_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def run(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def options(work, name, batch, length, *more):
    config = str(HERE / f"configs/{name}.json")
    return [work, "--config", config, "--batch", str(batch), "--length", str(length), *more]


def alternate(commands, rounds):
    """Times and peaks of each command's runs, one round after another."""
    results = {side: [] for side in commands}
    for _ in range(rounds):
        for side, command in commands.items():
            results[side].append(run(command))
    times = {side: [t for r in rs for t in r["ms"]] for side, rs in results.items()}
    found = {
        "ms": {side: statistics.median(t) for side, t in times.items()},
        "ms_min": {side: min(t) for side, t in times.items()},
        "ms_max": {side: max(t) for side, t in times.items()},
        "peak_rss_mib": {side: max(r["peak_rss_mib"] for r in rs) for side, rs in results.items()},
        "macs_per_token": {side: rs[0]["macs_per_token"] for side, rs in results.items() if "macs_per_token" in rs[0]},
    }
    for what in ("product_share", "product_gflops"):
        known = {side: [v for r in rs for v in r[what]] for side, rs in results.items() if what in rs[0]}
        found |= {what: {side: statistics.median(v) for side, v in known.items()}} if known else {}
    return found


def print_row(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def spread(row, side):
    digits = 1 if row["ms"][side] < 100 else 0
    return f"{row['ms'][side]:.{digits}f} ({row['ms_min'][side]:.{digits}f}–{row['ms_max'][side]:.{digits}f})"


def against_peers(ours, rounds, only, limits):
    print_row("work", "model", "ours ms (min–max)", "PyTorch ms (min–max)", "time ratio", "bar",
              "ours MiB", "PyTorch MiB", "memory ratio", "bar", "products", "of GEMM ceiling", "of FMA peak")  # fmt: skip
    print_row(*["---"] * 13)
    rows = []
    for work, name, batch, length, time_bar, memory_bar in PEERS:
        if only and only != f"{work}:{name}":
            continue
        chosen = options(work, name, batch, length)
        row = alternate(
            {"ours": [str(ours), *chosen], "pytorch": [sys.executable, str(HERE / "pytorch_step.py"), *chosen]}, rounds
        )
        row |= {"work": work, "model": name, "batch": batch, "length": length, "time_bar": time_bar, "memory_bar": memory_bar}
        row["time_ratio"] = row["ms"]["ours"] / row["ms"]["pytorch"]
        row["memory_ratio"] = row["peak_rss_mib"]["ours"] / row["peak_rss_mib"]["pytorch"]
        shares = ["–"] * 3
        if "product_share" in row:
            # What time the products would take at that limit, as a part of the time that all took.
            row["gflops"] = row["product_gflops"]["ours"] * row["product_share"]["ours"]
            shares = [row["product_share"]["ours"], row["gflops"] / limits["gemm"], row["gflops"] / limits["fma"]]
            shares = [f"{share:.0%}" for share in shares]
        bar = [("–" if b is None else f"≤ {b}") for b in (time_bar, memory_bar)]
        memory = [f"{row['peak_rss_mib'][side]:.0f}" for side in ("ours", "pytorch")]
        print_row(work, f"{name}, {batch} × {length}", spread(row, "ours"), spread(row, "pytorch"), f"{row['time_ratio']:.2f}",
                  bar[0], *memory, f"{row['memory_ratio']:.2f}", bar[1], *shares)  # fmt: skip
        rows.append(row)
    return rows


def against_revision(other, rounds, only):
    """The same work done by another build of Upgrayedd, in turns at being first; ratios are medians of the rounds' own."""
    print_row("work", "model", "this ms (min–max)", "other ms (min–max)", "time ratio", "this MiB", "other MiB", "memory ratio")
    print_row(*["---"] * 8)
    rows = []
    for work, name, batch, length, *_ in PEERS:
        if only and only != f"{work}:{name}":
            continue
        chosen = options(work, name, batch, length, "--runs", "3")
        commands = {"this": [str(OURS), *chosen], "other": [str(other), *chosen]}
        found = {side: [] for side in commands}
        for turn in range(rounds):
            for side in sorted(commands, reverse=turn % 2 == 0):
                found[side].append(run(commands[side]))
        times = {side: [statistics.median(r["ms"]) for r in rs] for side, rs in found.items()}
        row = {"work": work, "model": name, "batch": batch, "length": length} | {
            "ms": {side: statistics.median(t) for side, t in times.items()},
            "ms_min": {side: min(t) for side, t in times.items()},
            "ms_max": {side: max(t) for side, t in times.items()},
            "peak_rss_mib": {side: statistics.median(r["peak_rss_mib"] for r in rs) for side, rs in found.items()},
            "time_ratio": statistics.median(a / b for a, b in zip(times["this"], times["other"], strict=True)),
        }  # fmt: skip
        row["memory_ratio"] = row["peak_rss_mib"]["this"] / row["peak_rss_mib"]["other"]
        memory = [f"{row['peak_rss_mib'][side]:.0f}" for side in ("this", "other")]
        print_row(work, f"{name}, {batch} × {length}", spread(row, "this"), spread(row, "other"), f"{row['time_ratio']:.3f}",
                  *memory, f"{row['memory_ratio']:.3f}")  # fmt: skip
        rows.append(row)
    return rows


def whole_passes(rounds):
    """Passes of scores over 64 sequences, beside one for gate gradients alone."""
    shape = ("smollm2-135m", 4, 256, "--samples", "64", "--runs", "1", "--warm-ups", "0")
    row = alternate({work: [str(OURS), *options(work, *shape)] for work in ("gates", "scores", "all-scores")}, rounds)
    print_row("pass over 64 × 256 tokens", "ms (min–max)", "of gates alone", "bar", "MiB")
    print_row(*["---"] * 5)
    for work, ms in row["ms"].items():
        bar = "–" if work == "gates" else "≤ 1.15"
        print_row(
            f"{work}, smollm2-135m", spread(row, work), f"{ms / row['ms']['gates']:.2f}", bar, f"{row['peak_rss_mib'][work]:.0f}"
        )
    return row


def against_ourselves(rounds):
    """Pruned models and gradient checkpointing beside the same work without."""
    print_row("work", "model", "ms (min–max)", "of", "time ratio", "MAC ratio", "MiB", "of")
    print_row(*["---"] * 8)
    gpt2, decoder, smollm = ("gpt2-small", 2, 256), ("small-decoder", 8, 256), ("smollm2-135m", 1, 128)
    cases = [("forward", gpt2, ["--heads", str(heads)]) for heads in (9, 7, 6, 5, 3)]
    cases += [("train", gpt2, ["--heads", "6"]), ("generate", smollm, ["--heads", "4"])]
    cases += [("train", decoder, ["--gradient-checkpointing"])]
    rows = []
    for work, shape, more in cases:
        base = options(work, *shape)
        row = alternate({"this": [str(OURS), *base, *more], "base": [str(OURS), *base]}, rounds)
        row |= {"work": work, "model": shape[0], "options": more}
        row["time_ratio"] = row["ms"]["this"] / row["ms"]["base"]
        row["mac_ratio"] = row["macs_per_token"]["this"] / row["macs_per_token"]["base"]
        name = " ".join([f"{shape[0]}, {shape[1]} × {shape[2]}", *more])
        memory = [f"{row['peak_rss_mib'][side]:.0f}" for side in ("this", "base")]
        print_row(
            work, name, spread(row, "this"), spread(row, "base"), f"{row['time_ratio']:.2f}", f"{row['mac_ratio']:.2f}", *memory
        )
        rows.append(row)
    return rows


def scaling():
    """Time and memory per token as sequences, depth and threads grow, 2048 tokens a batch."""
    print_row("model", "batch × length", "threads", "forward µs per token", "train µs per token", "train MiB")
    print_row(*["---"] * 6)
    config = json.loads((HERE / "configs/small-decoder.json").read_text()) | {"n_positions": 2048}
    variant = ROOT / "target/bench-config.json"
    cases = [(6, length, 2) for length in (128, 256, 512, 1024, 2048)] + [(depth, 256, 2) for depth in (12, 24)] + [(6, 256, 1)]
    rows = []
    for depth, length, threads in cases:
        variant.write_text(json.dumps(config | {"n_layer": depth}))
        shape = ["--config", str(variant), "--batch", str(2048 // length), "--length", str(length)]
        shape += ["--threads", str(threads), "--runs", "3"]
        results = {work: run([str(OURS), work, *shape]) for work in ("forward", "train")}
        per_token = {work: statistics.median(r["ms"]) * 1e3 / 2048 for work, r in results.items()}
        rows.append({"depth": depth, "length": length, "threads": threads, "us_per_token": per_token,
                     "peak_rss_mib": {work: r["peak_rss_mib"] for work, r in results.items()}})  # fmt: skip
        print_row(f"small-decoder, {depth} layers", f"{2048 // length} × {length}", str(threads), f"{per_token['forward']:.0f}",
                  f"{per_token['train']:.0f}", f"{rows[-1]['peak_rss_mib']['train']:.0f}")  # fmt: skip
    return rows


def start():
    """Milliseconds until the program has printed its help and until Python has imported the package, medians of eleven."""
    program = ROOT / "target/release/upgrayedd"
    timed_import = "import time; t = time.perf_counter(); import upgrayedd; print((time.perf_counter() - t) * 1e3)"
    times, imports = [], []
    for _ in range(11):
        begin = time.perf_counter()
        subprocess.run([program, "--help"], check=True, capture_output=True)
        times.append((time.perf_counter() - begin) * 1e3)
        found = subprocess.run([ROOT / ".venv-plain/bin/python", "-c", timed_import], check=True, capture_output=True, text=True)
        imports.append(float(found.stdout))
    size = program.stat().st_size / 2**20
    report = {"help_ms": statistics.median(times), "import_ms": statistics.median(imports), "program_mib": size}
    print(f"`upgrayedd --help`: {report['help_ms']:.1f} ms (bar 20); `import upgrayedd`: {report['import_ms']:.0f} ms (bar 150); "
          f"the program has {size:.1f} MiB (bar 25)")  # fmt: skip
    return report


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="alternations of five counted runs each")
    parser.add_argument("--only", help="only this work beside PyTorch, for example train:gpt2-small")
    parser.add_argument("--against", type=pathlib.Path, help="another upgrayedd-bench in the place of PyTorch; writes nothing")
    parser.add_argument("--avx2", action="store_true", help="both without AVX-512; only the table beside PyTorch")
    parser.add_argument("--out", type=pathlib.Path, help="where the figures go, as JSON; results/speed.json or speed-avx2.json")
    args = parser.parse_args()
    if args.against:
        against_revision(args.against, args.rounds, args.only)
        return
    ours = AVX2 if args.avx2 else OURS
    if args.avx2:
        os.environ.update(PYTORCH_AVX2)
    limits, sets = {}, {}
    for work, flops in (("gemm", 2 * 2048**3), ("fma", 2 * 2 * 2**32)):
        found = run([str(ours), work, "--config", str(HERE / "configs/small-decoder.json"), "--runs", "9"])
        limits[work], sets["ours"] = flops / min(found["ms"]) / 1e6, found["instruction_set"]
    question = "import json, torch; print(json.dumps(torch.backends.cpu.get_cpu_capability()))"
    sets["pytorch"] = run([sys.executable, "-c", question])
    print(f"Instruction set: {sets['ours']}, PyTorch's {sets['pytorch']}. GEMM ceiling, 2048³: {limits['gemm']:.0f} GFLOP/s; "
          f"FMA peak: {limits['fma']:.0f} GFLOP/s\n")  # fmt: skip
    report = {"instruction_sets": sets, "limits_gflops": limits, "peers": against_peers(ours, args.rounds, args.only, limits)}
    if not args.only and not args.avx2:
        print()
        report["passes"] = whole_passes(args.rounds)
        print()
        report["ourselves"] = against_ourselves(args.rounds)
        print()
        report["scaling"] = scaling()
        print()
        report["start"] = start()
    out = args.out or HERE / ("results/speed-avx2.json" if args.avx2 else "results/speed.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    if "scaling" in report:
        curves.draw(report["scaling"], out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
