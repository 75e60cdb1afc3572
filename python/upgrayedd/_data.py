"""What users hold as data → rows of tokens, or texts, for the core."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from upgrayedd.errors import InvalidValueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from upgrayedd.tokenizer import Tokenizer

Array: TypeAlias = "NDArray[np.int64]"
Row: TypeAlias = "tuple[Array, Array | None, Array | NDArray[np.float64] | None, Array | None]"
"""Token ids, attention mask, labels, token types: one sequence."""

Source: TypeAlias = tuple[str, Any]
"""What `_native` takes: ("loader", Loader), ("texts", iterator) or ("files", paths)."""

TEXT_FIELDS = ("text", "sentence")
READING = ("text_field", "text_pair_field", "label_field", "delimiter", "columns", "documents", "chat_loss")
"""How files are read, by the names that a run's configuration has for it."""
WHAT_WORKS = (
    "expected dictionaries with input_ids (and attention_mask, token_type_ids, labels), tuples of these, arrays of token ids, "
    "texts, or dictionaries with text"
)


BATCH_KEYS = ("input_ids", "attention_mask", "token_type_ids", "labels", "label", "position_ids")
"""What is read of a batch."""


@dataclass(frozen=True, init=False)
class TextFiles:
    """Files to learn from or to be measured on, read, split and cached by the core exactly as the command line does.

    Args:
        paths: `.txt`, `.jsonl`, `.parquet`, `.tsv`, `.csv`; for classifiers with labels.
        text_field: Field or column with the text; None looks for `text`, then `sentence`.
        text_pair_field: Field or column with a second text, which a classifier reads after the first.
        label_field: Field or column with the label, or the number for regression; None looks for `label`.
        delimiter: What stands between the cells of a table; None takes tabs for `.tsv` and finds out for `.csv`.
        columns: Names of the columns of a table that has no line with them.
        documents: "packed" puts documents one after the other in windows of equal length, "separate" keeps each a sequence.
        chat_loss: Of conversations (`.jsonl` with `messages`): "assistant" learns what the assistant says, "all" everything.

    What is None is as the pipeline's options say.
    """

    paths: tuple[Path, ...]
    text_field: str | None
    text_pair_field: str | None
    label_field: str | None
    delimiter: str | None
    columns: tuple[str, ...] | None
    documents: str | None
    chat_loss: str | None

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        text_field: str | None = None,
        text_pair_field: str | None = None,
        label_field: str | None = None,
        delimiter: str | None = None,
        columns: Sequence[str] | None = None,
        documents: str | None = None,
        chat_loss: str | None = None,
    ) -> None:
        if not paths:
            raise InvalidValueError("TextFiles needs at least one file")
        object.__setattr__(self, "paths", tuple(Path(p) for p in paths))
        object.__setattr__(self, "text_field", text_field)
        object.__setattr__(self, "text_pair_field", text_pair_field)
        object.__setattr__(self, "label_field", label_field)
        object.__setattr__(self, "delimiter", delimiter)
        if isinstance(columns, str):
            raise InvalidValueError(f"columns is {columns!r}: expected a list of names")
        object.__setattr__(self, "columns", None if columns is None else tuple(columns))
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "chat_loss", chat_loss)

    def options(self) -> dict[str, Any]:
        """The core's names for the reading options."""
        fields = {name: getattr(self, name) for name in READING}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in fields.items() if v is not None}


class Loader:
    """A data loader that the core reads once per epoch: each batch a list of rows.

    Args:
        data: An iterable that can be iterated again, or a function that returns a new iterator.
        tokenizer: For texts of classifiers.
        batch_size: Sequences per batch where the data comes one by one.
        max_length: Texts are cut to this many tokens.
    """

    def __init__(self, data: Any, tokenizer: Callable[[], Tokenizer], batch_size: int, max_length: int) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_length = max_length

    def length(self) -> int | None:
        """Batches per epoch, if the data says so and comes in batches."""
        first = next(iter(fresh(self._data)), None)
        if first is None or isinstance(self._data, Iterator) or callable(self._data) and not hasattr(self._data, "__iter__"):
            return None
        try:
            count = len(self._data)
        except TypeError:
            return None
        return count if is_batch(first) else -(-count // self._batch_size)

    def epoch(self) -> Iterator[list[Row]]:
        """The batches of one epoch."""
        pending: list[Row] = []
        for item in fresh(self._data):
            if is_batch(item):
                yield self._rows(item)
                continue
            pending.extend(self._rows(item))
            if len(pending) >= self._batch_size:
                yield pending
                pending = []
        if pending:
            yield pending

    def _rows(self, item: Any) -> list[Row]:
        if text_of(item) is not None and not isinstance(item, Mapping):
            raise InvalidValueError(
                "texts alone have no labels to learn: give dictionaries with text and label, or input_ids and labels"
            )
        if isinstance(item, Mapping):
            # None stands for what is not there.
            item = {key: value for key, value in item.items() if value is not None}
            item = self._tokenised(item) if "input_ids" not in item else item
            check_keys(item)
        ids, mask, labels = columns(item)
        types = item.get("token_type_ids") if isinstance(item, Mapping) else None
        tokens = sequences(ids, "input_ids")
        if isinstance(item, Mapping) and "position_ids" in item:
            check_positions(sequences(item["position_ids"], "position_ids"), tokens)
        masks = sequences(mask, "attention_mask") if mask is not None else [None] * len(tokens)
        kinds = sequences(types, "token_type_ids") if types is not None else [None] * len(tokens)
        answers = [None] * len(tokens) if labels is None else split_labels(labels, len(tokens))
        if not len(masks) == len(answers) == len(kinds) == len(tokens):
            raise InvalidValueError(
                f"a batch has {len(tokens)} sequences, {len(masks)} attention masks and {len(answers)} labels, and token types "
                f"for {len(kinds)}: expected as many"
            )
        return list(zip(tokens, masks, answers, kinds, strict=True))

    def _tokenised(self, item: Mapping[str, Any]) -> dict[str, Any]:
        texts = text_of(item)
        if texts is None:
            raise InvalidValueError(f"a batch has the fields {', '.join(map(repr, item))}: {WHAT_WORKS}")
        inputs = [name for name in item if name in BATCH_KEYS and name not in ("labels", "label")]
        if inputs or "labels" in item and "label" in item:
            beside = "label" if not inputs else inputs[0]
            raise InvalidValueError(f"a batch has both {'labels' if not inputs else 'texts'} and {beside}: expected one of them")
        if "text_pair" in item:
            raise InvalidValueError(
                "text pairs are read from files (TextFiles with text_pair_field), or given as input_ids with token_type_ids"
            )
        tokenizer = self._tokenizer()
        single = isinstance(texts, str)
        ids = [tokenizer._core.sequence(text, self._max_length) for text in ([texts] if single else texts)]
        labels = next((item[name] for name in ("labels", "label") if name in item), None)
        return {"input_ids": ids, "labels": [labels] if single and labels is not None else labels}


def check_keys(batch: Mapping[str, Any]) -> None:
    """Refuses what a batch holds beside what is read: transformers would compute with it, or refuse it too."""
    other = [name for name in batch if name not in BATCH_KEYS]
    if other:
        hint = ": labels are not shifted by whoever makes the batch" if "shift_labels" in other else ""
        raise InvalidValueError(
            f"a batch has {', '.join(map(repr, other))}, which is not read{hint}: expected {', '.join(BATCH_KEYS)} and no more"
        )
    if "labels" in batch and "label" in batch:
        raise InvalidValueError("a batch has both labels and label: expected one of them")


def check_positions(positions: list[Any], tokens: list[Any]) -> None:
    """Refuses positions that do not count from 0: documents packed end to end, say, which would see each other here."""
    for row, ids in zip(positions, tokens, strict=False):
        if len(row) != len(ids) or any(int(p) != i for i, p in enumerate(row)):
            raise InvalidValueError(
                "position_ids do not count 0, 1, 2, … in each sequence: positions that begin anew (packed documents) or follow "
                "the padding are not supported, so give each document as a sequence of its own, padded at its end"
            )
    if len(positions) not in (1, len(tokens)):
        raise InvalidValueError(f"position_ids has {len(positions)} sequences, input_ids {len(tokens)}")


def fresh(data: Any) -> Iterable[Any]:
    """A new pass over the data: from a function by calling it, from an iterable by iterating it."""
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__") and callable(data):
        result: Iterable[Any] = data()
        return result
    again: Iterable[Any] = data
    return again


def text_of(item: Any) -> Any:
    """The text or texts of an item, or None if it holds something else."""
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        return next((item[name] for name in TEXT_FIELDS if name in item), None) if "input_ids" not in item else None
    if isinstance(item, (list, tuple)) and item and all(isinstance(part, str) for part in item):
        return item
    return None


def columns(item: Any) -> tuple[Any, Any, Any]:
    """Token ids, attention mask and labels of a batch or of a sequence."""
    if isinstance(item, Mapping):
        labels = item.get("labels", item.get("label"))
        return item["input_ids"], item.get("attention_mask"), labels
    # torch's DataLoader makes a list of tensors of a tuple.
    collated = isinstance(item, list) and len(item) > 0 and getattr(item[0], "ndim", 0) > 1
    if collated or isinstance(item, tuple) and not all(isinstance(part, int) for part in item):
        if len(item) == 1:
            return item[0], None, None
        if len(item) == 2:
            return item[0], None, item[1]
        if len(item) == 3:
            return item[0], item[1], item[2]
        raise InvalidValueError(
            f"a batch is a {type(item).__name__} of {len(item)}: expected (input_ids,), (input_ids, labels) "
            "or (input_ids, attention_mask, labels)"
        )
    return item, None, None


def is_batch(item: Any) -> bool:
    """Whether an item holds several sequences rather than one."""
    if isinstance(item, Mapping) and "input_ids" not in item:
        return not isinstance(text_of(item), str)
    ids = columns(item)[0]
    dimensions = getattr(ids, "ndim", None)
    if dimensions is not None:
        return int(dimensions) > 1
    return isinstance(ids, Sequence) and len(ids) > 0 and hasattr(ids[0], "__len__")


def integers(values: Any, name: str) -> Array:
    """An int64 array of whatever holds integers."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{name} is a {type(values).__name__}, not integers: {WHAT_WORKS}") from error
    if array.size > 0 and array.dtype.kind not in "iub":
        what = "text" if array.dtype.kind in "US" else f"{array.dtype} values"
        raise InvalidValueError(f"{name} holds {what}, not integers: {WHAT_WORKS}")
    return np.ascontiguousarray(array, dtype=np.int64)


def is_float(values: Any) -> bool:
    """Whether numbers are not all integers by type."""
    if isinstance(values, (list, tuple)):
        return any(is_float(value) for value in values)
    dtype = getattr(values, "dtype", None)
    return isinstance(values, float) if dtype is None else "float" in str(dtype)


def numbers(values: Any) -> NDArray[np.float64]:
    """A float64 array of whatever holds numbers."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    try:
        return np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"labels are a {type(values).__name__} of what are not all numbers") from error


def sequences(values: Any, name: str) -> list[Any]:
    """One array a sequence; sequences may differ in length."""
    if isinstance(values, (list, tuple)) and values and hasattr(values[0], "__len__"):
        rows = [integers(row, name) for row in values]
        if len(rows) > 1 and all(hasattr(row, "detach") for row in values) and len({row.shape for row in rows}) == 1:
            # torch's DataLoader makes this of rows that are lists: a tensor for each position.
            raise InvalidValueError(
                f"{name} is a list of tensors of one length, of which nobody can say whether they are rows or columns: "
                'stack them, give rows as tensors (datasets: with_format("torch")), or a collate_fn'
            )
        deep = next((row.ndim for row in rows if row.ndim != 1), None)
        if deep is not None:
            raise InvalidValueError(f"{name} has {deep + 1} dimensions: expected (batch, length) or (length,)")
        return rows
    array = integers(values, name)
    if array.ndim not in (1, 2):
        raise InvalidValueError(f"{name} has {array.ndim} dimensions: expected (batch, length) or (length,)")
    return [array] if array.ndim == 1 else list(array)


def split_labels(labels: Any, count: int) -> list[Any]:
    """Labels per sequence: rows of per-token labels, or one class or number each."""
    read = numbers if is_float(labels) else functools.partial(integers, name="labels")
    if isinstance(labels, (list, tuple)) and labels and hasattr(labels[0], "__len__"):
        return [read(row) for row in labels]
    array = read(labels)
    if array.ndim == 0:
        return [array.reshape(1)]
    if array.ndim == 1 and count == 1 and len(array) > 1:
        return [array]
    return [row.reshape(-1) for row in array]


def sources(
    data: Any,
    eval_data: Any,
    *,
    tokenizer: Callable[[], Tokenizer],
    classifies: bool,
    batch_size: int,
    max_length: int,
    epochs: int = 1,
) -> tuple[Source, Source | None, dict[str, Any]]:
    """Data and data to measure on as the core takes them, and the reading options that come with files.

    Raises:
        InvalidValueError: For what is no data, or a one-shot iterator that would have to be read more often.
    """
    options = joint_options(data, eval_data)

    def one(given: Any, name: str, epochs: int) -> Source:
        given = as_files(given)
        if isinstance(given, TextFiles):
            return "files", list(given.paths)
        given, first = peek(given, name, epochs)
        texts = not classifies and text_of(first) is not None
        return ("texts", all_texts(given)) if texts else ("loader", Loader(given, tokenizer, batch_size, max_length))

    return one(data, "dataloader", epochs), None if eval_data is None else one(eval_data, "eval_dataloader", 1), options


def joint_options(data: Any, eval_data: Any) -> dict[str, Any]:
    """How files are to be read, as they say themselves: one way for all of a run."""
    if eval_data is not None and eval_data is data:
        raise InvalidValueError(
            "eval_dataloader is the dataloader itself: measure on data that is not learned from, or leave eval_dataloader out"
        )
    train, measured = (d.options() if isinstance(d, TextFiles) else {} for d in (data, eval_data))
    other = [name for name in measured if train.get(name, measured[name]) != measured[name]]
    if other:
        raise InvalidValueError(
            f"{other[0]} is {train[other[0]]!r} for the data, but {measured[other[0]]!r} for what is measured on"
        )
    return {**measured, **train}


def is_file(name: Any) -> bool:
    """Whether something names a file that is there. Texts are no names, and may be too long for one."""
    try:
        return isinstance(name, (str, os.PathLike)) and Path(name).is_file()
    except (OSError, ValueError):
        return False


def as_files(data: Any) -> Any:
    """A path, or a list of paths, is files to read; everything else stays what it is."""
    if isinstance(data, (str, os.PathLike)):
        if not is_file(data):
            shown = os.fspath(data) if len(os.fspath(data)) < 200 else os.fspath(data)[:60] + "…"
            raise InvalidValueError(f"{shown!r} is no file: give a path, a list of texts, or a data loader")
        return TextFiles(data)
    if isinstance(data, (list, tuple)) and data and all(map(is_file, data)):
        return TextFiles(*data)
    return data


def peek(data: Any, name: str, epochs: int) -> tuple[Any, Any]:
    """The data and its first item. What can be read only once is kept in memory if once is enough, and refused otherwise."""
    if hasattr(data, "keys"):
        raise InvalidValueError(
            f"{name} is a {type(data).__name__}, by name: give a list of batches if this is one batch, one of them if these are "
            "splits, and rows rather than columns of a table"
        )
    if isinstance(data, Iterator):
        if epochs > 1:
            raise InvalidValueError(
                f"{name} is an iterator that can be read only once, but {epochs} epochs are needed: "
                "give a list, a DataLoader, or a function that returns a new iterator"
            )
        data = list(data)
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__") and not callable(data):
        raise InvalidValueError(f"{name} is a {type(data).__name__}, which cannot be iterated: {WHAT_WORKS}")
    first = next(iter(fresh(data)), None)
    if first is None:
        raise InvalidValueError(f"{name} is empty: {WHAT_WORKS}")
    return data, first


def all_texts(data: Any) -> Iterator[str]:
    """Every text, whether it comes alone, in a batch, or in a field."""
    for item in fresh(data):
        texts = text_of(item)
        if texts is None:
            raise InvalidValueError(f"the data begins with texts, but later gives a {type(item).__name__}: {WHAT_WORKS}")
        yield from [texts] if isinstance(texts, str) else texts
