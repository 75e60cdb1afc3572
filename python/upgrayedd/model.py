"""A model with the heads it still has, its tokenizer, and what can be done with them outside a run."""

from __future__ import annotations

import html
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from upgrayedd import _data, _native, _plots, _tokenizers, _transformers, _units
from upgrayedd.errors import InvalidValueError
from upgrayedd.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """A measurement of quality, with what it takes to repeat it.

    Attributes:
        loss: Token-weighted mean negative log-likelihood, in nats; the mean squared error for regression, the mean binary
            cross-entropy for several labels.
        perplexity: exp(loss); of masked tokens for a masked language model; None for classifiers.
        accuracy: Share of sequences whose label is right, or all of several; None but for classifiers.
        f1: F1 over all labels of all sequences (micro); None but for several labels a sequence.
        spearman: Rank correlation of predicted and true numbers; None but for regression.
        tokens: Targets that counted.
        sequences: Sequences measured.
        protocol: "chunks" (non-overlapping windows), "masked" (masked tokens), "labels", "numbers" or "hidden states".
        window: Tokens per window at most.
        data_hash: blake3 of the data.
    """

    loss: float
    tokens: int
    sequences: int
    protocol: str
    window: int
    data_hash: str
    perplexity: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    spearman: float | None = None


def check_limits(samples: int, batch_size: int) -> None:
    """Refuses to measure anything on nothing."""
    for name, value in (("the number of sequences", samples), ("batch_size", batch_size)):
        if value < 1:
            raise InvalidValueError(f"{name} is {value}: expected 1 or more")


class Model:
    """A transformer with the heads it still has, of any family in docs/families.md.

    Make one with `from_pretrained` or `from_transformers`. Head indices are the original ones for the whole life of a model.
    """

    def __init__(self, core: _native.Model) -> None:
        self._core = core
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._tokenizer: Tokenizer | None = None
        self._seed = 42

    @classmethod
    def _of(cls, core: _native.Model) -> Model:
        return cls(core)

    def _attach(self, tokenizer: Any) -> None:
        """Puts a tokenizer's files beside the model."""
        self._files = _tokenizers.files(tokenizer)
        self._core.set_companions(self._files.name)
        self._tokenizer = None

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *, family: str | None = None) -> Model:
        """Loads a model.

        Args:
            name: Hugging Face folder, run folder, Hub id (`id@revision` for a version of it), or "builtin" for the small
                model that comes with the package.
            family: "llama", "gpt2" or "bert", for a config.json that does not tell.

        Raises:
            FileError: (an OSError) for what is missing, damaged or not supported.
        """
        return cls(_native.Model.load(os.fspath(name), family))

    @classmethod
    def from_transformers(cls, model: Any, tokenizer: Any = None) -> Model:
        """Takes the weights of a `transformers.PreTrainedModel`, which stays as it is.

        Args:
            model: A LlamaForCausalLM, GPT2LMHeadModel, BertForMaskedLM, BertForSequenceClassification or BertModel.
            tokenizer: The tokenizer that belongs to it: saved with the result, and used for texts.
        """
        model = _transformers.unwrapped(model)
        ours = cls(_transformers.take(model))
        if tokenizer is not None:
            ours._attach(tokenizer)
        generation = getattr(model, "generation_config", None)
        if generation is not None and ours._files is not None:
            generation.save_pretrained(ours._files.name)
        return ours

    def to_transformers(self) -> Any:
        """A `transformers.PreTrainedModel` with these weights and shapes, made in memory: it trains, generates and saves."""
        return _transformers.give(self.config, self._info(), self.named_parameters())

    def save_pretrained(self, folder: str | os.PathLike[str], format: str = "hf", dtype: str | None = None) -> None:
        """Writes the model as a new Hugging Face folder, which appears whole or not at all.

        Args:
            folder: Must not exist.
            format: "hf", really smaller: a stock model where all layers are alike, else for transformers 5 with
                `trust_remote_code=True`; "hf-v4", "hf-dense", "gguf", "gguf-q8_0" or "onnx" (docs/formats.md says who loads
                what); or several, "hf,onnx".
            dtype: "float32", "float16" or "bfloat16"; None writes each weight in the type it came in.

        Pruned heads are not written: what is loaded from `folder` cannot `restore` them. A run's own folder can.

        Raises:
            FileError: (an OSError) if the folder exists or cannot be written.
            InvalidValueError: (a ValueError) for a model that a format does not have, with the reason.
        """
        # torch's types are welcome too.
        self._core.save(os.fspath(folder), format, None if dtype is None else str(dtype).removeprefix("torch."))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the model.

        Raises:
            InvalidValueError: If it came without one.
        """
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._core.tokenizer())
        return self._tokenizer

    @property
    def config(self) -> dict[str, Any]:
        """config.json as it is for the heads that are left; unknown keys are kept."""
        config: dict[str, Any] = json.loads(self._core.config())
        return config

    def _info(self, context: int | None = None) -> dict[str, Any]:
        info: dict[str, Any] = json.loads(self._core.info(context))
        return info

    @property
    def family(self) -> str:
        """The model's `model_type`: "llama", "gpt2" or "bert"."""
        return str(self._info()["family"])

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers' attention modules: the keys of every dictionary by layer that is about heads."""
        return self._core.layer_names("heads")

    @property
    def mlp_names(self) -> list[str]:
        """Names of the layers' MLP modules: the keys of every dictionary by layer that is about channels."""
        return self._core.layer_names("channels")

    @property
    def original_heads(self) -> dict[str, int]:
        """Layer name → number of query heads that it has unpruned."""
        counts = self._info()["original_heads"]
        return {name: int(counts[name]) for name in self.layer_names}

    @property
    def heads_per_layer(self) -> dict[str, int]:
        """Layer name → number of query heads that it still has."""
        return {name: len(heads) for name, heads in self.active_heads.items()}

    @property
    def active_heads(self) -> dict[str, list[int]]:
        """Layer name → original indices of the query heads that it still has, ascending."""
        return dict(zip(self.layer_names, self._core.active_units("heads"), strict=True))

    @property
    def pruned_heads(self) -> dict[str, list[int]]:
        """Layer name → original indices of the pruned heads that can be restored; layers without any are left out."""
        return self._restorable("heads")

    @property
    def original_channels(self) -> dict[str, int]:
        """MLP name → number of channels (columns of the hidden layer) that it has unpruned."""
        return dict(zip(self.mlp_names, self._core.original_units("channels"), strict=True))

    @property
    def channels_per_layer(self) -> dict[str, int]:
        """MLP name → number of channels that it still has."""
        return {name: len(channels) for name, channels in self.active_channels.items()}

    @property
    def active_channels(self) -> dict[str, list[int]]:
        """MLP name → original indices of the channels that it still has, ascending."""
        return dict(zip(self.mlp_names, self._core.active_units("channels"), strict=True))

    @property
    def pruned_channels(self) -> dict[str, list[int]]:
        """MLP name → original indices of the pruned channels that can be restored; layers without any are left out."""
        return self._restorable("channels")

    def _restorable(self, kind: str) -> dict[str, list[int]]:
        names, units = self._core.layer_names(kind), self._core.restorable_units(kind)
        return {name: indices for name, indices in zip(names, units, strict=True) if indices}

    def kv_group_of(self, layer: str | int, head: int) -> int:
        """The key/value head (original index) that a query head (original index) reads."""
        return self._core.kv_group_of(_units.layer_index(self._core, layer, "kv_group_of"), head)

    @property
    def num_parameters(self) -> int:
        """Number of weights that are there."""
        return self._core.num_parameters()

    def named_parameters(self) -> dict[str, NDArray[np.float32]]:
        """Hugging Face name → weights as a read-only array.

        Over the model's own memory where that has them as float32 and in this layout, else a copy for each call.
        """
        return self._core.tensors()

    def summary(self, context: int = 256) -> dict[str, Any]:
        """Family, shape, heads per layer, parameters, bytes, multiply-accumulates per token and KV-cache bytes per token.

        Args:
            context: Visible keys that attention is counted with, fewer in layers whose window shows fewer.
        """
        info = self._info(context)
        return {**{k: v for k, v in info.items() if k != "cost"}, **info["cost"], **self._per_layer()}

    def _per_layer(self) -> dict[str, dict[str, int]]:
        return {"heads_per_layer": self.heads_per_layer, "channels_per_layer": self.channels_per_layer}

    def prune(self, heads: Mapping[str, list[int]] | None = None, *, channels: Mapping[str, list[int]] | None = None) -> None:
        """Removes heads and channels; their weights go into the model's archive.

        Args:
            heads: Layer name → original indices.
            channels: MLP name → original indices.

        Raises:
            InvalidValueError: (a ValueError) for an unknown layer or a unit that is not there. Nothing has changed then.
        """
        self._core.prune(self._units(heads, channels, "prune"))

    def restore(self, heads: Mapping[str, list[int]] | None = None, *, channels: Mapping[str, list[int]] | None = None) -> None:
        """Brings pruned heads and channels back, bit for bit as they were.

        Args:
            heads: Layer name → original indices, of `pruned_heads`.
            channels: MLP name → original indices, of `pruned_channels`.

        Raises:
            InvalidValueError: (a ValueError) for a unit that is not in the archive. Nothing has changed then.
        """
        self._core.restore(self._units(heads, channels, "restore"))

    def copy(self) -> Model:
        """An independent model; weights are shared until one of the two changes."""
        other = Model(self._core.copy())
        other._files = self._files
        return other

    def generate(
        self,
        prompt: str | list[int],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Any:
        """Continues a text (and returns text), or token ids (and returns the new ones).

        Args:
            prompt: Text, or token ids.
            max_new_tokens: Tokens to add at most.
            temperature: 0 takes the likeliest token.
            top_p: Samples among the likeliest tokens whose probabilities reach this sum (Holtzman et al. 2020).
            seed: For sampling.
        """
        if max_new_tokens < 0:
            raise InvalidValueError(f"max_new_tokens is {max_new_tokens}: expected 0 or more")
        is_text = isinstance(prompt, str)
        tokenizer = self.tokenizer if is_text else None
        ids = [int(i) for i in prompt] if tokenizer is None else tokenizer._core.encode(str(prompt), False)
        if tokenizer is not None:
            ids = tokenizer.frame[0] + ids
        end = [] if tokenizer is None else self._core.end_tokens()
        new = self._core.generate(ids, max_new_tokens, (temperature, top_p, seed), end)
        return tokenizer.decode(ids + new) if tokenizer is not None else new

    def logits(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> NDArray[np.float32]:
        """Logits of one batch: (batch, length, vocabulary), or (batch, classes) of a classifier."""
        logits: NDArray[np.float32] = self._core.logits(self._batch(input_ids, attention_mask, token_type_ids))
        return logits

    def hidden_states(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> NDArray[np.float32]:
        """The last hidden states of one batch, after the final norm: (batch, length, hidden size)."""
        states: NDArray[np.float32] = self._core.hidden_states(self._batch(input_ids, attention_mask, token_type_ids))
        return states

    def attention_maps(self, input_ids: Any, attention_mask: Any = None) -> dict[str, NDArray[np.float32]]:
        """Who attends to whom: layer name → probabilities (batch, active heads, queries, keys).

        For a few short batches: the memory of all layers is taken at once.
        """
        maps = self._core.attention_maps(self._batch(input_ids, attention_mask))
        return dict(zip(self.layer_names, maps, strict=True))

    def evaluate(
        self,
        dataloader: Any,
        *,
        sequence_length: int | None = None,
        batch_size: int = 4,
        max_eval_windows: int | None = None,
        seed: int = 42,
        reference: Model | None = None,
    ) -> Evaluation:
        """Loss, perplexity, accuracy or correlation on data of any form that `UpgrayeddPipeline.run_optimization` takes.

        Args:
            dataloader: What to measure on.
            sequence_length: Tokens per window of texts and files; 512 or the model's limit.
            batch_size: Sequences at once.
            max_eval_windows: Sequences at most, from the first.
            seed: Of the masking of masked language models.
            reference: For plain encoders, needed there: the model whose hidden states these are compared with. The loss is then
                the squared distance from them, as a share of their squared length.
        """
        if not isinstance(reference, Model | None):
            raise InvalidValueError(f"reference is a {type(reference).__name__}: expected a Model, as from_pretrained reads it")
        length = sequence_length or min(512, int(self._info()["max_positions"]))
        check_limits(1 if max_eval_windows is None else max_eval_windows, batch_size)
        source, options = self._source(dataloader, length, batch_size, seed)
        core = None if reference is None else reference._core
        return Evaluation(**json.loads(self._core.evaluate(source, options, batch_size, max_eval_windows, core)))

    def score(
        self,
        name: str,
        dataloader: Any = None,
        *,
        units: Literal["heads", "channels"] = "heads",
        samples: int = 128,
        sequence_length: int | None = None,
        batch_size: int = 4,
        seed: int = 42,
    ) -> dict[str, NDArray[np.float64]]:
        """Importance of every head that is there: layer name → array in the order of `active_heads[layer]`.

        Or of every channel: MLP name → array in the order of `active_channels[name]`.

        Args:
            name: "fisher", "gradient", "taylor", "task", "wanda", "similarity", "surgeon", "loss_impact", "entropy",
                "magnitude" or "random".
            dataloader: Calibration data, for all but "magnitude" and "random".
            units: What is scored. "similarity", "loss_impact" and "entropy" are about heads only.
            samples: Sequences to use at most.
            sequence_length: Tokens per window of texts and files; 256 or the model's limit.
            batch_size: Sequences at once.
            seed: Of random scores.
        """
        import numpy as np

        length = sequence_length or min(256, int(self._info()["max_positions"]))
        source, options = None, "{}"
        check_limits(samples, batch_size)
        if dataloader is not None:
            source, options = self._source(dataloader, length, batch_size, seed)
        if units not in ("heads", "channels"):
            raise InvalidValueError(f"units is {units!r}: expected 'heads' or 'channels'")
        layers = self._core.score(name, units, source, options, (batch_size, samples, seed))
        return {name: np.asarray(values) for name, values in zip(self._core.layer_names(units), layers, strict=True)}

    def growth_gains(
        self, dataloader: Any, *, samples: int = 128, sequence_length: int | None = None, batch_size: int = 4
    ) -> dict[str, dict[int, float]]:
        """What the return of each pruned head promises: layer name → head → gain, negative if the loss would rise.

        The heads come back with their gates shut, which changes nothing; with the gradient g in a gate and F the mean of its
        square over sequences, the gain is g²/2F, at most ½. It ranks heads; it is not in nats.

        Args:
            dataloader: Calibration data, as for `score`.
            samples: Sequences to use at most.
            sequence_length: Tokens per window of texts and files; 256 or the model's limit.
            batch_size: Sequences at once.
        """
        length = sequence_length or min(256, int(self._info()["max_positions"]))
        check_limits(samples, batch_size)
        source, options = self._source(dataloader, length, batch_size, 42)
        gains = self._core.growth_gains(source, options, (batch_size, samples))
        return {self.layer_names[layer]: heads for layer, heads in gains.items()}

    def refit(
        self,
        parent: Model,
        dataloader: Any,
        *,
        samples: int = 128,
        sequence_length: int | None = None,
        batch_size: int = 4,
    ) -> dict[str, float]:
        """Repairs what pruning has broken, by least squares towards `parent`'s residual stream.

        Where heads are missing, attention's output projections change; where channels are, the MLPs'.

        A fifth of the batches only judges: a layer changes only if that brings it closer to `parent` there. Labels are not read.

        Args:
            parent: The model before pruning.
            dataloader: Calibration data, as for `score`.
            samples: Sequences to use at most.
            sequence_length: Tokens per window of texts and files; 256 or the model's limit.
            batch_size: Sequences at once.

        Returns:
            Layer name (of heads) or MLP name (of channels) → share of the squared distance to `parent` (on what only judges)
            that is gone, for what was missing.
        """
        length = sequence_length or min(256, int(self._info()["max_positions"]))
        check_limits(samples, batch_size)
        source, options = self._source(dataloader, length, batch_size, 42)
        repaired = self._core.refit(parent._core, source, options, (batch_size, samples))
        return {
            name: share
            for kind, shares in repaired.items()
            for name, share in zip(self._core.layer_names(kind), shares, strict=True)
        }

    def __repr__(self) -> str:
        info = self._info()
        heads = sum(self.heads_per_layer.values())
        return (
            f"Model({info['family']}, {info['objective']}, {info['layers']} layers, {heads} of "
            f"{sum(self.original_heads.values())} heads, {self.num_parameters:,} parameters)"
        )

    def plot_heads(self, ax: Axes | None = None) -> Axes:
        """Draws which heads every layer still has, and returns the axes. Needs matplotlib.

        Args:
            ax: Axes to draw on; None makes a figure.
        """
        return _plots.heads(self.active_heads, self.original_heads, ax)

    def _repr_html_(self) -> str:
        totals = self.original_heads
        cell = '<td style="width:.8em;height:.8em;padding:0;border:1px solid #888;background:{}" title="head {}: {}"></td>'
        looks = {True: ("#4472c4", "kept"), False: ("transparent", "pruned")}
        rows = []
        for name, heads in self.active_heads.items():
            states = [looks[head in heads] for head in range(totals[name])]
            cells = "".join(cell.format(colour, head, state) for head, (colour, state) in enumerate(states))
            label = f'<td style="text-align:left;padding:0 .6em 0 0">{html.escape(name)}</td>'
            rows.append(f"<tr>{label}{cells}<td>{len(heads)}</td></tr>")
        return f"<div>{html.escape(repr(self))}<table>{''.join(rows)}</table></div>"

    def _classifies(self) -> bool:
        return self._info()["objective"] in ("classifier", "regression")

    def _source(self, dataloader: Any, length: int, batch_size: int, seed: int) -> tuple[_data.Source, str]:
        source, _, options = _data.sources(
            _data.as_files(dataloader),
            None,
            tokenizer=lambda: self.tokenizer,
            classifies=self._classifies(),
            batch_size=batch_size,
            max_length=length,
        )
        return source, json.dumps({**options, "sequence_length": length, "seed": seed})

    def _batch(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> _data.Source:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return "loader", _data.Loader([batch], lambda: self.tokenizer, 1, 0)

    def _units(self, heads: Any, channels: Any, who: str) -> dict[str, dict[int, list[int]]]:
        given = {"heads": heads, "channels": channels}
        if all(units is None for units in given.values()):
            raise InvalidValueError(f"{who}: nothing given: expected heads, channels or both")
        return {kind: _units.by_layer(self._core, units, who, kind) for kind, units in given.items() if units is not None}
