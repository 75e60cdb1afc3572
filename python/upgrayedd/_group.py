"""Several processes that share the work of a run, by torch.distributed."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from upgrayedd.errors import InvalidValueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PATIENCE = timedelta(days=1)
"""A process that dies is noticed at once; one that works alone for long, the first writing a large model, is waited for."""


class Group:
    """This process among those of a process group: what the core asks of it.

    Sums go through host memory by gloo, whatever else the group may be able to do.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.launch = os.environ.get("TORCHELASTIC_RUN_ID", "")
        self.restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        self._gloo: Any = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)

    def sum(self, values: NDArray[Any]) -> None:
        """Puts the sums over all processes into `values`."""
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.from_numpy(values), group=self._gloo)

    def gather(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What all processes have, process by process."""
        import numpy as np
        import torch
        import torch.distributed as dist

        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(values)]), group=self._gloo)
        longest = max(int(length) for length in lengths)
        own = torch.zeros(longest, dtype=torch.float64)
        own[: len(values)] = torch.from_numpy(values)
        parts = [torch.zeros(longest, dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self._gloo)
        return np.concatenate([part.numpy()[: int(length)] for part, length in zip(parts, lengths, strict=True)])


def joined() -> Group | None:
    """The process group that the caller has made, if there is one of several processes."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return Group()


def launched() -> Group | None:
    """The group of the processes that torchrun has started, made here; None where it has started no others."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous
    except ImportError as error:
        raise InvalidValueError("several processes share a run by torch.distributed: install torch") from error
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # Who was started again must not find what its predecessors have left in the store, which outlives them.
        store, rank, size = next(iter(rendezvous("env://")))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "gloo", timeout=PATIENCE, store=PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=size
        )
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Group()


def leave() -> None:
    """Takes the group apart that `launched` has made."""
    import torch.distributed as dist

    dist.destroy_process_group()
