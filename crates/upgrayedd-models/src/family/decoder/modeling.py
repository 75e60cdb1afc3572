"""Loads a STOCK whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the query heads that each layer still has, by their original
indices, as in `{"model.layers.0.self_attn": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, narrow
from torch import nn
from transformers.models.MODULE.modeling_MODULE import STOCKForCausalLM, STOCKModel


class SharedHeads(nn.Linear):
    """A key or value projection whose heads are repeated so that each query head finds its own.

    Needed where query heads share key/value heads unevenly; the weights hold every key/value head once.
    """

    readers: list
    head_dim: int

    def forward(self, hidden_states):
        heads = super().forward(hidden_states).unflatten(-1, (-1, self.head_dim))
        return heads[..., self.readers, :].flatten(-2)


def shrink(model, config):
    """Gives every layer the projections of the units it still has."""
    group_size = config.num_attention_heads // config.num_key_value_heads
    for index, layer in enumerate(model.layers):
        heads = config.upgrayedd["units"]["heads"][f"model.layers.{index}.self_attn"]
        attention = layer.self_attn
        groups = sorted({head // group_size for head in heads})
        readers = [groups.index(head // group_size) for head in heads]
        per_group = len(heads) // max(len(groups), 1)
        even = readers == [group for group in range(len(groups)) for _ in range(per_group)]
        hidden, dim = config.hidden_size, attention.head_dim
        attention.q_proj = nn.Linear(hidden, len(heads) * dim, bias=attention.q_proj.bias is not None)
        attention.o_proj = nn.Linear(len(heads) * dim, hidden, bias=attention.o_proj.bias is not None)
        for name in ("k_proj", "v_proj"):
            bias = getattr(attention, name).bias is not None
            projection = (nn.Linear if even else SharedHeads)(hidden, len(groups) * dim, bias=bias)
            projection.readers, projection.head_dim = readers, dim
            setattr(attention, name, projection)
        attention.num_key_value_groups = per_group if even else 1
        if not heads:
            layer.self_attn = NoHeads(attention, "o_proj")
        mlp = layer.mlp
        path = f"model.layers.{index}.mlp"
        narrow(config, path, [(mlp, "gate_proj"), (mlp, "up_proj")], (mlp, "down_proj"))


class UpgrayeddModel(STOCKModel):
    def __init__(self, config):
        super().__init__(config)
        shrink(self, config)


class UpgrayeddForCausalLM(STOCKForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.model, config)
