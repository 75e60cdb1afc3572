"""Loads a DistilBERT whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the heads that each layer still has, by their original
indices, as in `{"distilbert.transformer.layer.0.attention": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModel…from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, narrow
from torch import nn
from transformers.models.distilbert.modeling_distilbert import (
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
)


def shrink(model, config):
    """Gives every layer the projections of the units it still has."""
    for index, layer in enumerate(model.transformer.layer):
        heads = config.upgrayedd["units"]["heads"][f"distilbert.transformer.layer.{index}.attention"]
        attention = layer.attention
        width = len(heads) * attention.attention_head_size
        attention.n_heads = len(heads)
        for name in ("q_lin", "k_lin", "v_lin"):
            setattr(attention, name, nn.Linear(config.dim, width))
        attention.out_lin = nn.Linear(width, config.dim)
        if not heads:
            layer.attention = NoHeads(attention, "out_lin")
        path = f"distilbert.transformer.layer.{index}.ffn"
        narrow(config, path, [(layer.ffn, "lin1")], (layer.ffn, "lin2"))


class UpgrayeddModel(DistilBertModel):
    def __init__(self, config):
        super().__init__(config)
        shrink(self, config)


class UpgrayeddForMaskedLM(DistilBertForMaskedLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.distilbert, config)


class UpgrayeddForSequenceClassification(DistilBertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.distilbert, config)
