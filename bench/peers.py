"""The same heads' share pruned with PyTorch, measured as in `quality.py`: by Torch-Pruning 1.6.1, and by gate gradients by hand.

`python bench/peers.py MODEL TEXT.txt --out FILE.json`, with torch, transformers and torch-pruning==1.6.1 installed; rows of other
arms stay. On a Llama with grouped queries Torch-Pruning needs eager attention, an `output_transform`, local ranking (its global
mode prunes nothing here) and `num_key_value_groups` set by hand afterwards; it takes a whole query head of every group, so that
30 % of 9 heads become 3. `gates` shuts the heads with the lowest mean |gate gradient| (Michel et al. 2019) over all layers,
exactly as many as asked for; they stay in the weights and out of everything else.
"""

import argparse
import json
import pathlib

import torch
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
ARMS = ["dense", "gates", "l2", "taylor"]
parser.add_argument("--arms", nargs="*", default=ARMS, choices=ARMS)
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


def sample():
    return train[torch.linspace(0, len(train) - 1, args.samples).long()].split(4)


def gate(attention, values):
    """Multiplies what the heads write by `values`, (1 or batch, heads)."""
    features = values.repeat_interleave(attention.head_dim, -1)[:, None]
    return attention.o_proj.register_forward_pre_hook(lambda _, inputs: (inputs[0] * features,))


def shut(model):
    """Gates the heads with the lowest mean |gate gradient|; returns how many heads and parameters are left."""
    config, layers = model.config, [layer.self_attn for layer in model.model.layers]
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    model.requires_grad_(False)
    scores = torch.zeros(len(layers), heads)
    for batch in sample():
        gates = [torch.ones(len(batch), heads, requires_grad=True) for _ in layers]
        hooks = [gate(*pair) for pair in zip(layers, gates, strict=True)]
        gradients = torch.autograd.grad(len(batch) * model(input_ids=batch, labels=batch).loss, gates)
        scores += torch.stack([g.abs().sum(0) for g in gradients])
        for hook in hooks:
            hook.remove()
    model.requires_grad_(True)
    # Every layer keeps its best head.
    scores.scatter_(1, scores.argmax(1, keepdim=True), torch.inf)
    keep = torch.ones(scores.numel())
    keep[scores.flatten().argsort()[: int(args.ratio * scores.numel() + 1e-9)]] = 0
    keep = keep.view_as(scores)
    for attention, values in zip(layers, keep, strict=True):
        gate(attention, values[None])
    idle = (keep.view(len(layers), groups, -1).sum(-1) == 0).sum().item()
    weights = 2 * config.head_dim * config.hidden_size
    count = int(keep.sum())
    return count, sum(p.numel() for p in model.parameters()) - weights * (keep.numel() - count + idle)


def pruned(how):
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    if how in ("dense", "gates"):
        return model
    import torch_pruning as tp

    record["torch_pruning"] = tp.__version__
    # With a cache, its concatenation is traced too, and finding the groups takes hours.
    model.config.use_cache = False
    if how == "taylor":
        for batch in sample():
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


record = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
record |= {"torch": torch.__version__, "model": args.model.name}
for arm in args.arms:
    model = pruned(arm)
    if arm == "gates":
        heads, parameters = shut(model)
    else:
        heads = sum(layer.self_attn.q_proj.out_features // model.config.head_dim for layer in model.model.layers)
        parameters = sum(p.numel() for p in model.parameters())
    row = {"arm": arm, "heads": heads, "parameters": parameters, "pruned": loss(model)}
    if args.steps:
        learn(model)
        row |= {"steps": args.steps, "seed": args.seed, "learned": loss(model)}
    record["rows"] = [other for other in record["rows"] if other["arm"] != arm] + [row]
    print(row, flush=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
