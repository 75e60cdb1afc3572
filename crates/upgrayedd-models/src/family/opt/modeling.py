"""Loads an OPT whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the heads that each layer still has, by their original
indices, as in `{"model.decoder.layers.0.self_attn": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, narrow
from torch import nn
from transformers.models.opt.modeling_opt import OPTForCausalLM, OPTModel


def shrink(model, config):
    """Gives every layer the projections of the units it still has."""
    for index, layer in enumerate(model.decoder.layers):
        heads = config.upgrayedd["units"]["heads"][f"model.decoder.layers.{index}.self_attn"]
        attention = layer.self_attn
        width = len(heads) * attention.head_dim
        attention.num_heads = len(heads)
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, nn.Linear(config.hidden_size, width, bias=config.enable_bias))
        attention.out_proj = nn.Linear(width, config.hidden_size, bias=config.enable_bias)
        if not heads:
            layer.self_attn = NoHeads(attention, "out_proj")
        narrow(config, f"model.decoder.layers.{index}", [(layer, "fc1")], (layer, "fc2"))


class UpgrayeddModel(OPTModel):
    def __init__(self, config):
        super().__init__(config)
        shrink(self, config)


class UpgrayeddForCausalLM(OPTForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.model, config)
