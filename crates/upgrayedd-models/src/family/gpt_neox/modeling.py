"""Loads a GPT-NeoX whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the heads that each layer still has, by their original
indices, as in `{"gpt_neox.layers.0.attention": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, narrow
from torch import nn
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXModel


def shrink(model, config):
    """Gives every layer the projections of the units it still has."""
    for index, layer in enumerate(model.layers):
        heads = config.upgrayedd["units"]["heads"][f"gpt_neox.layers.{index}.attention"]
        attention = layer.attention
        width = len(heads) * attention.head_size
        attention.query_key_value = nn.Linear(config.hidden_size, 3 * width, bias=config.attention_bias)
        attention.dense = nn.Linear(width, config.hidden_size, bias=config.attention_bias)
        if not heads:
            layer.attention = NoHeads(attention, "dense")
        mlp = layer.mlp
        narrow(config, f"gpt_neox.layers.{index}.mlp", [(mlp, "dense_h_to_4h")], (mlp, "dense_4h_to_h"))


class UpgrayeddModel(GPTNeoXModel):
    def __init__(self, config):
        super().__init__(config)
        shrink(self, config)


class UpgrayeddForCausalLM(GPTNeoXForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.gpt_neox, config)
