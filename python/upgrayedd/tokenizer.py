"""Text ↔ token ids."""

from __future__ import annotations

import os
from typing import Any

from upgrayedd import _native


class Tokenizer:
    """Text ↔ token ids, from a model folder."""

    def __init__(self, core: _native.Tokenizer) -> None:
        self._core = core

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Reads `tokenizer.json`, else `vocab.json` with `merges.txt`, else `vocab.txt`."""
        return cls(_native.Tokenizer.load(os.fspath(folder)))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text, framed by special tokens unless `special` is False."""
        return self._core.encode(text, special)

    def decode(self, ids: Any) -> str:
        """Text of token ids; special tokens are left out."""
        return self._core.decode([int(i) for i in ids])

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a sequence."""
        return self._core.frame()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._core.vocab_size()

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size})"
