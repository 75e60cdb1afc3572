"""Models of real size with random weights, made and pruned without learning: that they run, how long, and in how much memory.

python bench/real_shapes.py [--program target/release/upgrayedd] [--place /tmp/real-shapes] [--text FILE] --tokenizer FOLDER
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import time

import torch
import transformers

SHAPES = {
    "Qwen3-0.6B": ("Qwen3ForCausalLM", transformers.Qwen3Config, dict(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, tie_word_embeddings=True,
    )),
    "ModernBERT-base": ("ModernBertForMaskedLM", transformers.ModernBertConfig, dict(
        vocab_size=50_368, hidden_size=768, intermediate_size=1152, num_hidden_layers=22, num_attention_heads=12,
        local_attention=128, max_position_embeddings=8192,
    )),
}  # fmt: skip


def make(name, place, tokenizer):
    """The folder of a model, made once."""
    folder = place / name
    if not (folder / "model.safetensors").is_file():
        architecture, config, shape = SHAPES[name]
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(config(**shape)).to(torch.bfloat16)
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / file, folder)
    if "ForMaskedLM" in SHAPES[name][0]:
        # The tokenizer's last token serves for masking.
        settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
        settings |= dict(tokenizer_class="PreTrainedTokenizerFast", mask_token="<|endoftext|>", pad_token="<|endoftext|>")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="target/release/upgrayedd", type=pathlib.Path)
    parser.add_argument("--place", default="/tmp/real-shapes", type=pathlib.Path)
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path)
    parser.add_argument("--text", required=True, type=pathlib.Path)
    parser.add_argument("--only", choices=list(SHAPES))
    options = parser.parse_args()
    for name in [options.only] if options.only else SHAPES:
        folder = make(name, options.place, options.tokenizer)
        out = options.place / f"{name}-run"
        shutil.rmtree(out, ignore_errors=True)
        command = [options.program, "optimize", "--model", folder, "--data", options.text, "--out", out, "--num-cycles", "1"]
        command += ["--max-steps-per-cycle", "0", "--sequence-length", "128", "--max-eval-windows", "8", "--json"]
        command += ["--strategy-option", "calibration_samples=16", "--growth-ratio", "0"]
        start = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            text = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{name}: the program failed")
        summary = json.loads(text)
        seconds, memory = time.monotonic() - start, usage.ru_maxrss / 2**20
        before, after = (summary[when]["cost"]["parameters"] for when in ("before", "after"))
        print(f"{name}: {before} → {after} parameters, {seconds:.0f} s, {memory:.2f} GiB at most")


main()
