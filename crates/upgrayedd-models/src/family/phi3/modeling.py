"""Loads a Phi-3 whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the query heads that each layer still has, by their original
indices, as in `{"model.layers.0.self_attn": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

import copy

import torch
from shared import NoHeads, narrow
from torch import nn
from transformers.models.phi3.modeling_phi3 import Phi3Attention, Phi3ForCausalLM, Phi3Model


class SharedHeads(nn.Linear):
    """The fused projection, with key and value heads repeated so that each query head finds its own.

    Needed where query heads share key/value heads unevenly; the weights hold every key/value head once.
    """

    readers: list
    sizes: list
    head_dim: int

    def forward(self, hidden_states):
        queries, *shared = super().forward(hidden_states).split(self.sizes, dim=-1)
        heads = (part.unflatten(-1, (-1, self.head_dim))[..., self.readers, :].flatten(-2) for part in shared)
        return torch.cat([queries, *heads], dim=-1)


def without_heads(config, attention):
    """The attention of a layer that has lost all heads."""
    attention.qkv_proj = nn.Linear(config.hidden_size, 0, bias=False)
    attention.o_proj = nn.Linear(0, config.hidden_size, bias=False)
    return NoHeads(attention, "o_proj")


def remaining(config, index, heads):
    """The attention of the heads that a layer still has."""
    group_size = config.num_attention_heads // config.num_key_value_heads
    groups = sorted({head // group_size for head in heads})
    readers = [groups.index(head // group_size) for head in heads]
    per_group = len(heads) // len(groups)
    even = readers == [group for group in range(len(groups)) for _ in range(per_group)]
    own = copy.copy(config)
    own.head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    own.num_attention_heads = len(heads)
    own.num_key_value_heads = len(groups) if even else len(heads)
    attention = Phi3Attention(own, index)
    if not even:
        sizes = [count * own.head_dim for count in (len(heads), len(groups), len(groups))]
        attention.qkv_proj = SharedHeads(config.hidden_size, sum(sizes), bias=False)
        attention.qkv_proj.readers, attention.qkv_proj.sizes, attention.qkv_proj.head_dim = readers, sizes, own.head_dim
    return attention


def shrink(model, config):
    """Gives every layer the attention and the projections of the units it still has."""
    for index, layer in enumerate(model.layers):
        heads = config.upgrayedd["units"]["heads"][f"model.layers.{index}.self_attn"]
        attention = layer.self_attn
        layer.self_attn = remaining(config, index, heads) if heads else without_heads(config, attention)
        path = f"model.layers.{index}.mlp"
        narrow(config, path, [(layer.mlp, "gate_up_proj")], (layer.mlp, "down_proj"), parts=2)


class UpgrayeddModel(Phi3Model):
    def __init__(self, config):
        super().__init__(config)
        shrink(self, config)


class UpgrayeddForCausalLM(Phi3ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.model, config)
