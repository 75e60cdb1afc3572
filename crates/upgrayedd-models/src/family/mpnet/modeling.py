"""Loads an MPNet whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the heads that each layer still has, by their original
indices, as in `{"mpnet.encoder.layer.0.attention.attn": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModel…from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, narrow
from torch import nn
from transformers.models.mpnet.modeling_mpnet import (
    MPNetForMaskedLM,
    MPNetForSequenceClassification,
    MPNetModel,
    MPNetSelfAttention,
)


class RemainingHeads(MPNetSelfAttention):
    """Attention of the heads that are left, with their columns of the bias that all layers share."""

    def __init__(self, config, heads):
        super().__init__(config)
        self.heads = heads
        width = len(heads) * self.attention_head_size
        self.num_attention_heads, self.all_head_size = len(heads), width
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, width) for _ in range(3))
        self.o = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, position_bias=None, **kwargs):
        if position_bias is not None:
            position_bias = position_bias[:, self.heads]
        return super().forward(hidden_states, attention_mask, position_bias, **kwargs)


def shrink(model, config):
    """Gives every layer the attention and the projections of the units it still has."""
    for index, layer in enumerate(model.encoder.layer):
        heads = config.upgrayedd["units"]["heads"][f"mpnet.encoder.layer.{index}.attention.attn"]
        attention = RemainingHeads(config, heads)
        layer.attention.attn = attention if heads else NoHeads(attention, "o")
        path = f"mpnet.encoder.layer.{index}.intermediate"
        narrow(config, path, [(layer.intermediate, "dense")], (layer.output, "dense"))


class UpgrayeddModel(MPNetModel):
    def __init__(self, config, add_pooling_layer=True):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        shrink(self, config)


class UpgrayeddForMaskedLM(MPNetForMaskedLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.mpnet, config)


class UpgrayeddForSequenceClassification(MPNetForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.mpnet, config)
