"""The same heads' share pruned by Torch-Pruning 1.6.1, measured as in `quality.py`.

`python bench/peers.py MODEL TEXT.txt --out FILE.json`, with torch, transformers and torch-pruning==1.6.1 installed. On a Llama
with grouped queries Torch-Pruning needs eager attention, an `output_transform`, local ranking (its global mode prunes nothing
here) and `num_key_value_groups` set by hand afterwards; it takes a whole query head of every group, so that 30 % of 9 heads
become 3.
"""

import argparse
import json
import pathlib

import torch
import torch_pruning as tp
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("text", type=pathlib.Path)
parser.add_argument("--out", type=pathlib.Path, required=True)
parser.add_argument("--ratio", type=float, default=0.3)
parser.add_argument("--samples", type=int, default=64)
parser.add_argument("--windows", type=int, default=40)
parser.add_argument("--steps", type=int, default=0, help="learn as well, 4 x 256 tokens a step")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--arms", nargs="*", default=["dense", "l2", "taylor"], choices=["dense", "l2", "taylor"])
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)
text = args.text.read_text()
cut = text.rindex("\n", 0, len(text) * 4 // 5)


def windows(part, length):
    ids = tokenizer(part, return_tensors="pt", add_special_tokens=False).input_ids[0]
    return ids[: len(ids) // length * length].view(-1, length)


train, held_out = windows(text[:cut], 256), windows(text[cut:], 512)[: args.windows]


def loss(model):
    model.eval()
    with torch.inference_mode():
        each = [model(input_ids=w[None], labels=w[None]).loss.item() for w in held_out]
    return sum(each) / len(each)


def learn(model):
    torch.manual_seed(args.seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.01, fused=True)
    order = torch.randperm(len(train))
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = 3e-5 * min(1.0, (step + 1) / 8)
        batch = train[order[[(4 * step + i) % len(order) for i in range(4)]]]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def pruned(how):
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    if how == "dense":
        return model
    # With a cache, its concatenation is traced too, and finding the groups takes hours.
    model.config.use_cache = False
    if how == "taylor":
        spread = torch.linspace(0, len(train) - 1, args.samples).long()
        for batch in train[spread].split(4):
            model(input_ids=batch, labels=batch).loss.backward()
    heads = {}
    for layer in model.model.layers:
        attention = layer.self_attn
        heads[attention.q_proj] = model.config.num_attention_heads
        heads[attention.k_proj] = heads[attention.v_proj] = model.config.num_key_value_heads
    importance = tp.importance.GroupMagnitudeImportance(p=2) if how == "l2" else tp.importance.GroupTaylorImportance()
    pruner = tp.pruner.BasePruner(
        model,
        train[:1, :32],
        importance,
        global_pruning=False,
        pruning_ratio=args.ratio,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=args.ratio,
        ignored_layers=[model.lm_head, model.model.embed_tokens, *(layer.mlp for layer in model.model.layers)],
        output_transform=lambda out: out.logits.sum(),
    )
    pruner.step()
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
    model.zero_grad()
    return model


record = {"torch": torch.__version__, "torch_pruning": tp.__version__, "model": args.model.name, "rows": []}
for arm in args.arms:
    model = pruned(arm)
    heads = sum(layer.self_attn.q_proj.out_features // model.config.head_dim for layer in model.model.layers)
    row = {"arm": arm, "heads": heads, "parameters": sum(p.numel() for p in model.parameters()), "pruned": loss(model)}
    if args.steps:
        learn(model)
        row |= {"steps": args.steps, "seed": args.seed, "learned": loss(model)}
    record["rows"].append(row)
    print(row, flush=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
