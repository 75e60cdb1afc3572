"""Scores and prunes models that need not fit into memory, beside gate gradients in PyTorch: peak memory and time.

python bench/out_of_memory.py MODEL TEXT --memory 6GB [--program target/release/upgrayedd] [--skip score|optimize|torch]

Ours: `score` (Fisher information) and `optimize` (one cycle of `auto`: score, prune, refit, measure, write; no learning, no
growth) on 8 windows of 512. PyTorch: the same gate gradients with transformers and the weights in their own type, as one would
write it: all weights loaded, each head's output times a gate, `backward` a window at a time. Peaks are those that the system
reports of the process (`ru_maxrss`, which counts pages of mapped files that are in memory).
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

TORCH = """
import sys, torch, transformers
folder, text = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").requires_grad_(False)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
tokens = torch.tensor(tokenizer(open(text).read()[:40000])["input_ids"][: 8 * 512]).view(8, 1, 512)
heads, gates = model.config.num_attention_heads, []
for layer in model.model.layers:
    gate = torch.ones(heads, dtype=model.dtype, requires_grad=True)
    gates.append(gate)
    def gated(module, inputs, gate=gate):
        x = inputs[0]
        return ((x.view(*x.shape[:-1], heads, -1) * gate[:, None]).view_as(x),)
    layer.self_attn.o_proj.register_forward_pre_hook(gated)
squares = [torch.zeros(heads) for _ in gates]
for window in tokens:
    loss = model(window, labels=window).loss
    for sum, gradient in zip(squares, torch.autograd.grad(loss, gates)):
        sum += gradient.float() ** 2
"""


def run(name, command):
    """Prints what a command took."""
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    how = "" if code == 0 else f" (ended with {code}: {said.strip().splitlines()[-1] if said.strip() else 'killed'})"
    print(f"| {name} | {usage.ru_maxrss / 2**20:.2f} | {time.monotonic() - start:.0f} |{how}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--memory", required=True)
    parser.add_argument("--program", type=pathlib.Path, default="target/release/upgrayedd")
    parser.add_argument("--skip", choices=["score", "optimize", "torch"], action="append", default=[])
    options = parser.parse_args()
    print("| work | peak GiB | s |\n| --- | --- | --- |")
    common = ["--model", options.model, "--data", options.text, "--sequence-length", "512", "--memory", options.memory]
    if "score" not in options.skip:
        run(f"score, {options.memory}", [options.program, "score", "--score", "fisher", "--samples", "8", *common])
    if "optimize" not in options.skip:
        with tempfile.TemporaryDirectory(dir=options.model.parent) as place:
            once = ["--num-cycles", "1", "--max-steps-per-cycle", "0", "--growth-ratio", "0", "--max-eval-windows", "2"]
            once += ["--strategy-option", "calibration_samples=8", "--refit-samples", "8", "--out", f"{place}/run"]
            run(f"optimize, {options.memory}", [options.program, "optimize", *common, *once])
    if "torch" not in options.skip:
        run("gate gradients, PyTorch", [sys.executable, "-c", TORCH, options.model, options.text])


main()
