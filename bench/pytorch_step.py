"""The same work in PyTorch, at its fastest honest setting: sdpa, fused AdamW, inference mode, no LM head where none is needed."""

import argparse
import json
import resource
import time

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

NEW_TOKENS = 64

parser = argparse.ArgumentParser()
parser.add_argument("work", choices=["train", "forward", "gates", "entropy", "generate"])
parser.add_argument("--config", required=True)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--length", type=int, default=256)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu")
parser.add_argument("--compile", action="store_true")
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(1)
config = AutoConfig.from_pretrained(args.config)
# Only eager attention hands out its probabilities.
build, attention = (AutoModel, "eager") if args.work == "entropy" else (AutoModelForCausalLM, "sdpa")
model = build.from_config(config, attn_implementation=attention)
model = model.to(args.device)
ids = torch.randint(0, config.vocab_size, (args.batch, args.length), device=args.device)
# What people train with on a GPU: products in bfloat16, weights in float32.
lower = torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu")


def train():
    optimizer.zero_grad()
    with lower:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def forward():
    with torch.inference_mode(), lower:
        return model(input_ids=ids, labels=ids).loss.item()


def gates():
    """Gradients of the gates of all heads, the weights frozen (Michel et al. 2019)."""
    for gate in head_gates:
        gate.grad = None
    with lower:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item()


def entropy():
    with torch.inference_mode(), lower:
        maps = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
        return sum(torch.special.entr(p).sum(-1).mean((0, 2)).sum().item() for p in maps)


def generate():
    with torch.inference_mode(), lower:
        start = time.perf_counter()
        model.generate(ids[:1], max_new_tokens=1, do_sample=False, pad_token_id=0, eos_token_id=None)
        first = time.perf_counter() - start
        start = time.perf_counter()
        model.generate(ids[:1], max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
        return (time.perf_counter() - start - first) / (NEW_TOKENS - 1)


def add_gates(model):
    model.requires_grad_(False)
    head_gates = []
    heads = config.num_attention_heads
    for name, module in model.named_modules():
        if not name.endswith(("attn.c_proj", "self_attn.o_proj")):
            continue
        gate = torch.ones(heads, requires_grad=True, device=args.device)
        head_gates.append(gate)

        def scale(_, inputs, gate=gate):
            (context,) = inputs
            return ((context.unflatten(-1, (heads, -1)) * gate[:, None]).flatten(-2),)

        module.register_forward_pre_hook(scale)
    assert len(head_gates) == config.num_hidden_layers
    return head_gates


if args.work == "train":
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
else:
    model.eval()
if args.work == "gates":
    head_gates = add_gates(model)
if args.compile:
    model.forward = torch.compile(model.forward)
milliseconds = []
for run in range(args.runs + (4 if args.compile else 1)):
    start = time.perf_counter()
    result = globals()[args.work]()
    seconds = result if args.work == "generate" else time.perf_counter() - start
    if run >= (4 if args.compile else 1):
        milliseconds.append(seconds * 1e3)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
report = {"ms": milliseconds, "result": result, "peak_rss_mib": peak}
if args.device != "cpu":
    report["device_mib"] = torch.cuda.max_memory_reserved() >> 20
print(json.dumps(report))
