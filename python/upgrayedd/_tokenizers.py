"""Tokenizers that users bring, as files beside a model."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from upgrayedd.errors import InvalidValueError
from upgrayedd.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Files of a folder that make a tokenizer or belong to it."""


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """A tokenizer as files that mean the same beside any model."""
    (folder / "tokenizer.json").write_text(tokenizer._core.to_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(tokenizer._core.to_config(), encoding="utf-8")


def files(tokenizer: Any) -> tempfile.TemporaryDirectory[str]:
    """A folder with the files of a tokenizer, read once: one that cannot be used is better found before the work."""
    made = tempfile.TemporaryDirectory(prefix="upgrayedd-")
    folder = Path(made.name)
    if isinstance(tokenizer, Tokenizer):
        write(tokenizer, folder)
    elif isinstance(tokenizer, (str, os.PathLike)):
        source = Path(tokenizer)
        possible = [source] if source.is_file() else [source / name for name in TOKENIZER_FILES]
        found = [p for p in possible if p.is_file()]
        if not found:
            raise InvalidValueError(f"tokenizer {str(tokenizer)!r} is no folder with a tokenizer, and no file of one")
        for path in found:
            (folder / path.name).write_bytes(path.read_bytes())
        # Which class reads it depends on the model that it lies beside, and it will lie beside another one.
        read = Tokenizer.from_pretrained(source if source.is_dir() else folder)
        settings = folder / "tokenizer_config.json"
        described = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
        if described.get("tokenizer_class") is None:
            write(read, folder)
            settings.write_text(json.dumps(described | json.loads(read._core.to_config())), encoding="utf-8")
    elif hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        # In memory, a tokenizer is what its tokenizer.json says, whatever class it is of.
        settings = folder / "tokenizer_config.json"
        if (folder / "tokenizer.json").exists() and settings.exists():
            described = json.loads(settings.read_text(encoding="utf-8"))
            described["tokenizer_class"] = "PreTrainedTokenizerFast"
            described |= {name: getattr(tokenizer, name) for name in ("model_input_names", "truncation_side")}
            settings.write_text(json.dumps(described, ensure_ascii=False, indent=2), encoding="utf-8")
    elif hasattr(tokenizer, "save"):
        tokenizer.save(str(folder / "tokenizer.json"))
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
        (folder / "tokenizer_config.json").write_text(json.dumps(described))
    else:
        raise InvalidValueError(
            f"tokenizer is a {type(tokenizer).__name__}: expected a folder, an upgrayedd.Tokenizer, a tokenizers.Tokenizer "
            "or a transformers tokenizer"
        )
    Tokenizer.from_pretrained(folder)
    return made
