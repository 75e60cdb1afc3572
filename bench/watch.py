"""What `watch` costs a run: its steps a second with the live page and without, in turns, and the memory of the server.

python bench/watch.py MODEL TEXT [--minutes 10] [--turn 30] [--program target/release/upgrayedd]

The run learns; `watch` serves its page to one client that reads all it is sent, as a browser does. Server and client are
stopped and continued (SIGSTOP) each turn, so that the same server lives all the time. Steps are timed as they appear in
events.jsonl.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CLIENT = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1] + "events") as events:
    while events.readline():
        pass
"""


def resident(process):
    """MiB of a process that are in memory."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def busy(process):
    """Seconds of processor time that a process has taken."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def steps(events, times, over):
    """Notes when each step is written down."""
    with events.open() as lines:
        while not over.is_set():
            if not (line := lines.readline()):
                time.sleep(0.002)
            elif line.startswith('{"event":"step"'):
                times.append(time.perf_counter())


def rate(times, start, end):
    """Steps a second between two moments, from the first to the last in between."""
    inside = [moment for moment in times if start <= moment <= end]
    return (len(inside) - 1) / (inside[-1] - inside[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--turn", type=float, default=30, help="seconds")
    parser.add_argument("--program", type=pathlib.Path, default="target/release/upgrayedd")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as ends:
        out = pathlib.Path(place, "run")
        command = [options.program, "optimize", "--model", options.model, "--data", options.text, "--out", out, "--quiet"]
        command += ["--strategy", "magnitude", "--refit", "false", "--num-cycles", "1", "--epochs-per-cycle", "10000"]
        command += ["--batch-size", "4", "--sequence-length", "256", "--max-eval-windows", "2"]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        ends.callback(lambda: (run.send_signal(signal.SIGINT), run.wait()))
        while not (out / "events.jsonl").exists() and run.poll() is None:
            time.sleep(0.1)
        server = subprocess.Popen([options.program, "watch", out], stdout=subprocess.PIPE, text=True)
        ends.callback(lambda: (server.kill(), server.wait()))
        address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        client = subprocess.Popen([sys.executable, "-c", CLIENT, address])
        ends.callback(lambda: (client.kill(), client.wait()))
        times, over = [], threading.Event()
        threading.Thread(target=steps, args=(out / "events.jsonl", times, over), daemon=True).start()
        while len(times) < 3:
            if run.poll() is not None:
                sys.exit("the run has ended before it learned")
            time.sleep(0.1)
        ratios, memory, end = [], [resident(server)], time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            found = {}
            for watched in (True, False) if len(ratios) % 2 else (False, True):
                for process in (server, client):
                    process.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)
                start = time.perf_counter()
                time.sleep(options.turn)
                found[watched] = rate(times, start, time.perf_counter())
            ratios.append(found[True] / found[False])
            memory.append(resident(server))
            print(f"{found[False]:.3f} steps/s, watched {found[True]:.3f}; {memory[-1]:.1f} MiB", flush=True)
        over.set()
        print(f"median of {len(ratios)} alternations: {statistics.median(ratios):.4f} of the steps a second, {len(times)} steps")
        print(f"processor time of watch: {busy(server):.1f} s in {len(ratios) * options.turn:.0f} s")
        print(f"memory of watch: {memory[0]:.1f} MiB at first, {max(memory):.1f} MiB at most, {memory[-1]:.1f} MiB at the end")


main()
