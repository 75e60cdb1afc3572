"""The same work in PyTorch, at its fastest honest setting: sdpa attention, fused AdamW, inference mode."""

import argparse
import json
import resource
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("work", choices=["train", "forward"])
parser.add_argument("--config", required=True)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--length", type=int, default=256)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(1)
config = AutoConfig.from_pretrained(args.config)
model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
ids = torch.randint(0, config.vocab_size, (args.batch, args.length))


def train():
    optimizer.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def forward():
    with torch.inference_mode():
        return model(input_ids=ids, labels=ids).loss.item()


if args.work == "train":
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
else:
    model.eval()
milliseconds = []
for run in range(args.runs + 1):
    start = time.perf_counter()
    loss = train() if args.work == "train" else forward()
    if run:
        milliseconds.append((time.perf_counter() - start) * 1e3)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"ms": milliseconds, "loss": loss, "peak_rss_mib": peak}))
