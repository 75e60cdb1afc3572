"""The modules that pruned transformers models are made of, one a family, as their exports bring them along.

transformers saves a model's code by copying the file of its class: they are files for as long as the process runs.
"""

import pathlib
import tempfile

from upgrayedd import _native

_folder = tempfile.TemporaryDirectory(prefix="upgrayedd-modeling-")
for _name, _text in _native.modeling_files().items():
    (pathlib.Path(_folder.name) / f"{_name}.py").write_text(_text, encoding="utf-8")
__path__ = [_folder.name]
