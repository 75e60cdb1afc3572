"""Loads a GPT-2 whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the heads that each layer still has, by their original
indices, as in `{"transformer.h.0.attn": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, channels
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel, GPT2Model
from transformers.pytorch_utils import Conv1D


class Projection(Conv1D):
    """A projection out of as many features as are left, none as well."""

    def forward(self, x):
        return super().forward(x) if x.shape[-1] > 0 else x.new_zeros(*x.shape[:-1], self.nf) + self.bias


def shrink(model, config):
    """Gives every layer the projections of the units it still has."""
    for index, block in enumerate(model.h):
        heads = config.upgrayedd["units"]["heads"][f"transformer.h.{index}.attn"]
        attention = block.attn
        width = len(heads) * attention.head_dim
        attention.num_heads = len(heads)
        attention.split_size = width
        attention.c_attn = Conv1D(3 * width, config.hidden_size)
        attention.c_proj = Projection(config.hidden_size, width)
        if not heads:
            block.attn = NoHeads(attention, "c_proj")
        count = channels(config, f"transformer.h.{index}.mlp")
        if count is not None:
            block.mlp.c_fc = Conv1D(count, config.hidden_size)
            block.mlp.c_proj = Projection(config.hidden_size, count)


class UpgrayeddModel(GPT2Model):
    def __init__(self, config):
        super().__init__(config)
        shrink(self, config)


class UpgrayeddForCausalLM(GPT2LMHeadModel):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.transformer, config)
