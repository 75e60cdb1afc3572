"""Loads a ModernBERT whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the heads that each layer still has, by their original
indices, as in `{"model.layers.0.attn": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModel…from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, narrow
from torch import nn
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
)


def shrink(model, config):
    """Gives every layer the projections of the units it still has."""
    for index, layer in enumerate(model.layers):
        heads = config.upgrayedd["units"]["heads"][f"model.layers.{index}.attn"]
        attention = layer.attn
        width = len(heads) * attention.head_dim
        attention.Wqkv = nn.Linear(config.hidden_size, 3 * width, bias=config.attention_bias)
        attention.Wo = nn.Linear(width, config.hidden_size, bias=config.attention_bias)
        if not heads:
            layer.attn = NoHeads(attention, "Wo")
        narrow(config, f"model.layers.{index}.mlp", [(layer.mlp, "Wi")], (layer.mlp, "Wo"), parts=2)


class UpgrayeddModel(ModernBertModel):
    def __init__(self, config):
        super().__init__(config)
        shrink(self, config)


class UpgrayeddForMaskedLM(ModernBertForMaskedLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.model, config)


class UpgrayeddForSequenceClassification(ModernBertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.model, config)
