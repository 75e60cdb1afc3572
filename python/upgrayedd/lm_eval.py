"""Models of Upgrayedd in EleutherAI's lm-evaluation-harness (`pip install lm_eval`).

`python -m upgrayedd.lm_eval --model_args pretrained=RUN --tasks arc_easy` is the harness's own command line with the model
type `upgrayedd`: any model folder, run folder or Hub id, with the shapes that pruning left, and no torch in between.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("upgrayedd.lm_eval needs the harness: pip install lm_eval") from error

from upgrayedd.errors import InvalidValueError
from upgrayedd.model import Model


@register_model("upgrayedd")
class UpgrayeddLM(TemplateLM):
    """A causal language model for the harness.

    Args:
        pretrained: Model folder, run folder or Hub id.
        max_length: Tokens that a request may have; the model's limit if None.
        batch_size: Requests at once.
        max_gen_toks: Tokens to generate where a task does not say.
        device: Not used, like `max_batch_size`: the harness passes both to every model. What is computed here is on the CPU.
        max_batch_size: Not used.
    """

    def __init__(
        self,
        pretrained: str,
        max_length: int | None = None,
        batch_size: int | str = 8,
        max_gen_toks: int = 256,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._model = Model.from_pretrained(pretrained)
        if self._model._info()["objective"] != "causal-lm":
            raise InvalidValueError(f"{pretrained} is no causal language model: the harness's tasks need one")
        self._core = self._model.tokenizer._core
        self._prefix = self._model.tokenizer.frame[0]
        self._end = self._model._core.end_tokens()
        limit = int(self._model._info()["max_positions"])
        self._max_length = min(int(max_length or limit), limit)
        # The harness's "auto" is a search that a CPU does not need.
        self._batch_size = 8 if str(batch_size).startswith("auto") else int(batch_size)
        self._max_gen_toks = int(max_gen_toks)

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text without a context."""
        found = self._prefix or self._end
        if not found:
            raise InvalidValueError("the model has neither a start token nor an end token")
        return int(found[0])

    @property
    def tokenizer_name(self) -> str:
        """What requests are kept under in the harness's cache."""
        return "upgrayedd"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, after the start token where the model has one and it is not refused."""
        ids = self._core.encode(string, False)
        return ids if add_special_tokens is False else [*self._prefix, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        # Long ones together, so that little is padded.
        order = sorted(range(len(requests)), key=lambda at: -len(requests[at][1]) - len(requests[at][2]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), self._batch_size):
            chunk = order[start : start + self._batch_size]
            # The last token is only predicted.
            rows = [(requests[at][1] + requests[at][2])[-self._max_length - 1 :][:-1] for at in chunk]
            width = max(map(len, rows))
            ids = np.zeros((len(rows), width), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, tokens in enumerate(rows):
                ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            logits = self._model.logits(ids, mask)
            for row, at in enumerate(chunk):
                wanted = requests[at][2][-self._max_length :]
                end = len(rows[row])
                found[at] = likelihood(logits[row, end - len(wanted) : end], wanted)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of `max_length`."""
        sums = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self._core.encode(text, False),
                prefix_token=self.eot_token_id,
                max_seq_len=self._max_length,
                context_len=1,
            )
            asked = [(None, *make_disjoint_window(window)) for window in windows]
            sums.append(sum(value for value, _ in self._loglikelihood_tokens(asked)))
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues texts, by the likeliest token or as `temperature` and `top_p` say, until a text of `until`."""
        texts = []
        for context, options in (request.args for request in requests):
            until = as_list(options.get("until"))
            prompt = self.tok_encode(context)
            # Of a prompt that leaves no room the end counts, and half of the room is its own.
            prompt = prompt[-max(self._max_length - self._max_gen_toks, self._max_length // 2) :]
            new = min(int(options.get("max_gen_toks", self._max_gen_toks)), self._max_length - len(prompt))
            temperature = float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0
            chosen = (temperature, float(options.get("top_p") or 1.0), 0)
            ids = self._model._core.generate(prompt, new, chosen, self._end)
            asked, whole = self._core.decode(prompt), self._core.decode(prompt + ids)
            text = whole[len(asked) :] if whole.startswith(asked) else self._core.decode(ids)
            for stop in until:
                text = text.split(stop)[0] if stop else text
            texts.append(text)
        return texts


def likelihood(logits: Any, wanted: list[int]) -> tuple[float, bool]:
    """Sum of the tokens' log-probabilities, and whether each is the likeliest."""
    logits = logits.astype(np.float64)
    most = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - most).sum(axis=-1)) + most[:, 0]
    own = logits[np.arange(len(wanted)), wanted]
    return float((own - total).sum()), bool((logits.argmax(axis=-1) == np.asarray(wanted)).all())


def as_list(value: str | Iterable[str] | None) -> list[str]:
    """The texts that end an answer."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def main() -> None:
    """The harness's command line, with this model type."""
    from lm_eval.__main__ import cli_evaluate

    command = sys.argv[1:2] if sys.argv[1:2] in (["run"], ["ls"], ["validate"]) else []
    if command in ([], ["run"]) and "--model" not in sys.argv:
        at = 1 + len(command)
        sys.argv[at:at] = ["--model", "upgrayedd"]
    cli_evaluate()


if __name__ == "__main__":
    main()
