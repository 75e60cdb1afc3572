"""What every modeling file says about channels: it takes the place of the line that imports it."""

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
