"""Where NVIDIA's libraries are, when pip has installed them (with torch, say): the loader does not look there."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

VARIABLE = "UPGRAYEDD_CUDA_LIBRARIES"


def name_libraries() -> None:
    """Names the folders that hold cuBLASLt in `UPGRAYEDD_CUDA_LIBRARIES`, unless the user has."""
    spec = importlib.util.find_spec("nvidia")
    if VARIABLE in os.environ or spec is None:
        return
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    folders = sorted({str(library.parent) for root in roots for library in root.glob("*/lib/libcublasLt.so.*")})
    if folders:
        os.environ[VARIABLE] = os.pathsep.join(folders)
