"""Peak memory of commands that only read weights: anonymous pages apart from those of mapped files.

    python bench/memory.py MODEL TEXT [PROGRAM ...]

runs `evaluate`, `score` and a cycle of pruning and refit without learning for each of the programs (the release build where none
is named) and prints a Markdown table. Resident pages are read from /proc every 20 ms.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHORT = ["--sequence-length", "128", "--batch-size", "2"]
WORKS = {
    "evaluate": ["evaluate", *SHORT, "--max-eval-windows", "8"],
    "score fisher": ["score", *SHORT, "--samples", "8", "--score", "fisher"],
    "score surgeon": ["score", *SHORT, "--samples", "8", "--score", "surgeon"],
    "prune and refit": ["optimize", *SHORT, "--num-cycles", "1", "--max-steps-per-cycle", "0", "--max-eval-windows", "4"],
}


def peaks(command):
    """MiB of anonymous and of file-backed resident memory, the process's own high-water mark, and seconds."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    found, begin = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}, time.perf_counter()
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        for key in found:
            if here := re.search(rf"{key}:\s+(\d+) kB", status):
                found[key] = max(found[key], int(here[1]) // 1024)
        time.sleep(0.02)
    said = process.communicate()[1]
    if process.returncode != 0:
        sys.exit(f"{command}: {said}")
    return [*found.values(), time.perf_counter() - begin]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, text, *programs = sys.argv[1:]
    print("| work | program | anonymous MiB | mapped MiB | VmHWM MiB | s |\n| --- | --- | --- | --- | --- | --- |")
    for name, work in WORKS.items():
        for program in programs or [ROOT / "target/release/upgrayedd"]:
            with tempfile.TemporaryDirectory() as folder:
                out = ["--out", f"{folder}/run"] if work[0] == "optimize" else []
                *memory, seconds = peaks([program, *work, "--model", model, "--data", text, *out])
            print(f"| {name} | {program} | {' | '.join(map(str, memory))} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
