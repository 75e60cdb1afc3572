"""Smaller, faster Hugging Face transformers by neural plasticity cycles: prune attention heads, measure, grow, learn, measure.

```python
from upgrayedd import UpgrayeddPipeline

pipeline = UpgrayeddPipeline("builtin", strategy="entropy")
smaller = pipeline.run_optimization(["Mia was a kind girl. ..."] * 500, num_cycles=3)
smaller.save_pretrained("smaller")
```
"""

from upgrayedd._cuda import name_libraries
from upgrayedd._data import TextFiles
from upgrayedd._native import __version__, set_num_threads
from upgrayedd._sweep import Sweep, Trial, sweep
from upgrayedd.callbacks import Callback, Control
from upgrayedd.errors import FileError, InvalidValueError, UpgrayeddError, UpgrayeddWarning
from upgrayedd.history import Cycle, History
from upgrayedd.model import Evaluation, Model
from upgrayedd.pipeline import UpgrayeddPipeline
from upgrayedd.tokenizer import Tokenizer

name_libraries()

__all__ = [
    "Callback",
    "Control",
    "Cycle",
    "Evaluation",
    "FileError",
    "History",
    "InvalidValueError",
    "Model",
    "Sweep",
    "TextFiles",
    "Tokenizer",
    "Trial",
    "UpgrayeddError",
    "UpgrayeddPipeline",
    "UpgrayeddWarning",
    "__version__",
    "set_num_threads",
    "sweep",
]
