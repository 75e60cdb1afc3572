"""The same work in PyTorch, at its fastest honest setting: sdpa, fused AdamW, inference mode, no LM head where none is needed.

Prints a line of JSON for each work. On a GPU products are in bfloat16 (autocast), weights in float32.
"""

import argparse
import json
import resource
import time

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

NEW_TOKENS = 64
WORKS = ["train", "forward", "gates", "entropy", "generate"]

parser = argparse.ArgumentParser()
parser.add_argument("work", nargs="+", choices=[*WORKS, "compiled"])
parser.add_argument("--config", required=True)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--length", type=int, default=256)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

torch.set_num_threads(args.threads)
config = AutoConfig.from_pretrained(args.config)
lower = torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu")


class Bench:
    """A model and what is done with it."""

    def __init__(self, work):
        torch.manual_seed(1)
        # Only eager attention hands out its probabilities.
        build, attention = (AutoModel, "eager") if work == "entropy" else (AutoModelForCausalLM, "sdpa")
        self.model = build.from_config(config, attn_implementation=attention).to(args.device)
        self.ids = torch.randint(0, config.vocab_size, (args.batch, args.length), device=args.device)
        if work in ("train", "compiled"):
            self.model.train()
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
        else:
            self.model.eval()
        if work == "gates":
            self.add_gates()
        if work == "compiled":
            self.model.forward = torch.compile(self.model.forward)

    def loss(self):
        with lower:
            return self.model(input_ids=self.ids, labels=self.ids).loss

    def train(self):
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    compiled = train

    def forward(self):
        with torch.inference_mode():
            return self.loss().item()

    def gates(self):
        """Gradients of the gates of all heads, the weights frozen (Michel et al. 2019)."""
        for gate in self.head_gates:
            gate.grad = None
        loss = self.loss()
        loss.backward()
        return loss.item()

    def entropy(self):
        with torch.inference_mode(), lower:
            maps = self.model(input_ids=self.ids, output_attentions=True, use_cache=False).attentions
            return sum(torch.special.entr(p).sum(-1).mean((0, 2)).sum().item() for p in maps)

    def generate(self):
        settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        with torch.inference_mode(), lower:
            start = time.perf_counter()
            self.model.generate(self.ids[:1], max_new_tokens=1, **settings)
            first = time.perf_counter() - start
            start = time.perf_counter()
            self.model.generate(self.ids[:1], max_new_tokens=NEW_TOKENS, **settings)
            return (time.perf_counter() - start - first) / (NEW_TOKENS - 1)

    def add_gates(self):
        self.model.requires_grad_(False)
        self.head_gates = []
        heads = config.num_attention_heads
        for name, module in self.model.named_modules():
            if not name.endswith(("attn.c_proj", "self_attn.o_proj")):
                continue
            gate = torch.ones(heads, requires_grad=True, device=args.device)
            self.head_gates.append(gate)

            def scale(_, inputs, gate=gate):
                (context,) = inputs
                return ((context.unflatten(-1, (heads, -1)) * gate[:, None]).flatten(-2),)

            module.register_forward_pre_hook(scale)
        assert len(self.head_gates) == config.num_hidden_layers


for work in args.work:
    bench, milliseconds = Bench(work), []
    warm_ups = 4 if work == "compiled" else 1
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for run in range(args.runs + warm_ups):
        start = time.perf_counter()
        result = getattr(bench, work)()
        seconds = result if work == "generate" else time.perf_counter() - start
        if run >= warm_ups:
            milliseconds.append(seconds * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {"work": work, "ms": milliseconds, "result": result, "peak_rss_mib": peak}
    if args.device != "cpu":
        report["device_mib"] = torch.cuda.max_memory_reserved() >> 20
        del bench
        torch.cuda.empty_cache()
    print(json.dumps(report), flush=True)
