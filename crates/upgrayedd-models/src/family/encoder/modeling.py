"""Loads a STOCK whose layers have lost attention heads or channels: stock transformers, with smaller projections per
layer.

Written by Upgrayedd. `config.upgrayedd["units"]["heads"]` lists the heads that each layer still has, by their original
indices, as in `{"PREFIX.encoder.layer.0.attention.self": [0, 2]}`; `["channels"]`, where there are fewer of these, their
ranges. Use it through
`AutoModel…from_pretrained(folder, trust_remote_code=True)`.
"""

from shared import NoHeads, narrow
from torch import nn
from transformers.models.MODULE.modeling_MODULE import STOCKForMaskedLM, STOCKForSequenceClassification, STOCKModel


def shrink(model, config):
    """Gives every layer the projections of the units it still has."""
    for index, layer in enumerate(model.encoder.layer):
        heads = config.upgrayedd["units"]["heads"][f"PREFIX.encoder.layer.{index}.attention.self"]
        attention = layer.attention.self
        width = len(heads) * attention.attention_head_size
        attention.num_attention_heads = len(heads)
        attention.all_head_size = width
        for name in ("query", "key", "value"):
            setattr(attention, name, nn.Linear(config.hidden_size, width))
        layer.attention.output.dense = nn.Linear(width, config.hidden_size)
        if not heads:
            layer.attention.self = NoHeads(attention)
        path = f"PREFIX.encoder.layer.{index}.intermediate"
        narrow(config, path, [(layer.intermediate, "dense")], (layer.output, "dense"))


class UpgrayeddModel(STOCKModel):
    def __init__(self, config, add_pooling_layer=True):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        shrink(self, config)


class UpgrayeddForMaskedLM(STOCKForMaskedLM):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.base_model, config)


class UpgrayeddForSequenceClassification(STOCKForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        shrink(self.base_model, config)
