"""What modeling files share: it takes the place of the line that imports it."""

from torch import nn


def channels(config, path):
    """How many channels an MLP still has, from their ranges as in "0-12 15 17-30"; None where none is missing."""
    ranges = config.upgrayedd["units"].get("channels", {}).get(path)
    if ranges is None:
        return None
    ends = [part.split("-") for part in ranges.split()]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def narrow(config, path, into, out, parts=1):
    """Gives an MLP the channels it still has.

    `into` has the modules and names of the projections into them, each with as many `parts` of all channels, `out` the
    module and name of the projection out of them.
    """
    count = channels(config, path)
    if count is None:
        return
    for module, name in into:
        old = getattr(module, name)
        setattr(module, name, nn.Linear(old.in_features, parts * count, bias=old.bias is not None))
    module, name = out
    old = getattr(module, name)
    setattr(module, name, nn.Linear(count, old.out_features, bias=old.bias is not None))


class NoHeads(nn.Module):
    """Takes the place of an attention that has lost all heads: what its output projection, the child called `output`,
    makes of nothing; or nothing itself, where the projection is elsewhere."""

    def __init__(self, attention, output=None):
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.layer_idx = getattr(attention, "layer_idx", None)
        self.output = output

    def forward(self, hidden_states, *args, past_key_values=None, layer_past=None, **kwargs):
        cache = past_key_values if layer_past is None else layer_past
        if cache is not None:
            # Layers are asked how many positions they have seen.
            seen = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(seen, seen, self.layer_idx)
        nothing = hidden_states[..., :0]
        return nothing if self.output is None else getattr(self, self.output)(nothing), None
