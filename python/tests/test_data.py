"""Every form of data that users hold, and what is refused."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from upgrayedd import Model, TextFiles, UpgrayeddPipeline

ROWS = np.random.default_rng(0).integers(3, 200, (48, 16))


def batches() -> list[dict[str, Any]]:
    return [{"input_ids": ROWS[i : i + 4]} for i in range(0, 48, 4)]


def run(data: Any, out: pathlib.Path, eval_data: Any = None, cycles: int = 1, **options: Any) -> UpgrayeddPipeline:
    pipeline = UpgrayeddPipeline("builtin", output_dir=out, batch_size=4, **options)
    pipeline.run_optimization(data, num_cycles=cycles, eval_dataloader=eval_data)
    return pipeline


def steps(pipeline: UpgrayeddPipeline) -> list[tuple[int, float]]:
    return [(step["step"], step["loss"]) for step in pipeline.history.steps]


class Examples:
    """One example after the other, as a datasets.Dataset."""

    def __len__(self) -> int:
        return len(ROWS)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"input_ids": row.tolist(), "attention_mask": [1] * 16} for row in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        lambda: [(b["input_ids"],) for b in batches()],
        lambda: [[b["input_ids"], b["input_ids"]] for b in batches()],
        lambda: [(b["input_ids"], np.ones((4, 16)).astype(int), b["input_ids"]) for b in batches()],
        lambda: [b["input_ids"] for b in batches()],
        lambda: [b["input_ids"].tolist() for b in batches()],
        lambda: [{"input_ids": list(b["input_ids"]), "labels": b["input_ids"].tolist()} for b in batches()],
        lambda: Examples(),
        lambda: lambda: iter(batches()),
        lambda: iter(batches()),
    ],
    ids=["tuple", "list of two", "triple", "arrays", "lists", "labels", "examples", "factory", "iterator"],
)
def test_the_same_tokens_give_the_same_run_whatever_they_come_in(data: Callable[[], Any], tmp_path: pathlib.Path) -> None:
    expected = steps(run(batches(), tmp_path / "a"))
    assert len(expected) == 10
    assert steps(run(data(), tmp_path / "b")) == expected


def test_padding_and_ignored_labels_do_not_count(out: pathlib.Path) -> None:
    model = Model.from_pretrained("builtin")
    plain = model.evaluate([ROWS[:2, :12], ROWS[2:4]])
    ragged = model.evaluate([{"input_ids": [ROWS[0, :12].tolist(), ROWS[2].tolist()]}, [ROWS[1, :12].tolist(), ROWS[3].tolist()]])
    padded = np.pad(ROWS[:2, :12], ((0, 0), (0, 4)), constant_values=5)
    mask = np.pad(np.ones((2, 12), int), ((0, 0), (0, 4)))
    labels = np.where(mask == 1, padded, -100)
    masked = model.evaluate([{"input_ids": padded, "attention_mask": mask}, ROWS[2:4]])
    ignored = model.evaluate([{"input_ids": padded, "labels": labels}, ROWS[2:4]])
    assert plain.tokens == ragged.tokens == masked.tokens == ignored.tokens == 2 * 11 + 2 * 15
    for other in (ragged, masked, ignored):
        assert other.loss == pytest.approx(plain.loss, rel=1e-6)


def test_padding_on_the_left_does_not_count_either() -> None:
    model = Model.from_pretrained("builtin")
    padded = np.pad(ROWS[:1, :12], ((0, 0), (4, 0)), constant_values=5)
    mask = np.pad(np.ones((1, 12), int), ((0, 0), (4, 0)))
    # Rotary positions are relative: what is on the left and masked changes nothing.
    left, plain = model.logits(padded, mask)[0, 4:], model.logits(ROWS[:1, :12])[0]
    np.testing.assert_allclose(left, plain, atol=2e-4)
    assert model.evaluate([{"input_ids": padded, "attention_mask": mask}]).tokens == 11


class Shuffled:
    """Another order in each epoch."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(1)
        self.epochs: list[list[bytes]] = []

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = self.random.permutation(48)
        for i in range(0, 48, 4):
            yield {"input_ids": ROWS[order[i : i + 4]]}


def test_what_is_measured_is_never_learned_from_even_if_the_loader_shuffles(out: pathlib.Path) -> None:
    pipeline = run(Shuffled(), out, cycles=3)
    split = json.loads(json.dumps(pipeline.history.summary))["before"]["evaluation"]
    assert split["sequences"] == 4
    # 48 sequences, 4 held out and 4 set aside for scoring: 40 to learn from, 15 targets each, in each of three cycles.
    assert [step["tokens"] for step in pipeline.history.steps][9::10] == [600, 1200, 1800]


def test_data_of_its_own_is_measured_as_it_is(out: pathlib.Path) -> None:
    pipeline = run(batches(), out, eval_data=[ROWS[:6]])
    assert pipeline.history.baseline is not None
    assert pipeline.history.baseline["sequences"] == 6
    expected = Model.from_pretrained("builtin").evaluate([ROWS[:6]])
    assert pipeline.history.baseline["loss"] == expected.loss


def test_texts_in_any_form_are_the_same_texts(texts: list[str], tmp_path: pathlib.Path) -> None:
    forms = [texts, [{"text": t} for t in texts], [texts[:70], texts[70:]], lambda: iter(texts)]
    found = [steps(run(form, tmp_path / str(i), sequence_length=64)) for i, form in enumerate(forms)]
    assert found[0] and all(form == found[0] for form in found)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: iter(batches()), "can be read only once, but 2 epochs are needed"),
        (lambda: [], "dataloader is empty"),
        (lambda: 7, "dataloader is a int, which cannot be iterated"),
        (lambda: batches()[:2], "gave 2 batches, but training, calibration and measurement need one each"),
        (lambda: [{"ids": ROWS}] * 4, "fields 'ids': expected dictionaries with input_ids"),
        (lambda: [np.array([[0.5, 1.5]])] * 4, "float64 values, not integers"),
        (lambda: [np.array([[3, -1]])] * 4, "negative token id"),
        (lambda: [np.array([[3, 99999]])] * 4, "token 99999 is not below the model's vocabulary size"),
        (lambda: [np.ones((1, 300), int)] * 4, "has 300 tokens: the model takes 1 to 256"),
        (lambda: [{"input_ids": ROWS[:2], "labels": ROWS[:1]}] * 4, "2 sequences, 2 attention masks and 1 labels"),
        (lambda: [{"input_ids": ROWS[:1], "labels": ROWS[:1, :3]}] * 4, "has 3 labels for 16 tokens"),
        (lambda: [{"input_ids": ROWS[:1], "attention_mask": ROWS[:1, :3]}] * 4, "differ in length"),
        (lambda: [(1, 2, 3, 4)] * 2 + [(ROWS, ROWS, ROWS, ROWS)], "a batch is a tuple of 4"),
        (lambda: "no-such-file.txt", "'no-such-file.txt' is no file"),
        (lambda: "", "'' is no file"),
        (lambda: "Mia was a kind girl. " * 500, "'Mia was a kind girl.*…' is no file"),
        (lambda: {"input_ids": ROWS}, "is a dict, by name: give a list of batches"),
        (lambda: [("a text", 1)] * 4, "holds text, not integers"),
        (lambda: [np.zeros((1, 0))] * 4, "has 0 tokens"),
        (lambda: ["text", "text", 7], "later gives a int"),
    ],
)
def test_data_that_cannot_be_used_is_refused(data: Callable[[], Any], says: str, out: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=says):
        run(data(), out, cycles=2)
    assert not out.exists()


def test_an_error_of_the_loader_arrives_as_it_was_raised(out: pathlib.Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from batches()[:5]
        raise ZeroDivisionError("in the user's loader")

    with pytest.raises(ZeroDivisionError, match="in the user's loader"):
        run(broken, out)


def test_the_loader_itself_cannot_be_measured_on(out: pathlib.Path) -> None:
    loader = batches()
    with pytest.raises(ValueError, match="is the dataloader itself"):
        run(loader, out, eval_data=loader)


def test_how_files_are_read_may_be_said_once_for_a_run(texts: list[str], tmp_path: pathlib.Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, part in zip(files, (texts[:75], [f"{text} The end." for text in texts[75:]]), strict=True):
        file.write_text("".join(json.dumps({"story": text}) + "\n" for text in part))
    options: dict[str, Any] = {"sequence_length": 64, "documents": "separate", "text_field": "story"}
    by_name = run(files[0], tmp_path / "named", **options)
    in_memory = UpgrayeddPipeline(Model.from_pretrained("builtin"), output_dir=tmp_path / "memory", batch_size=4, **options)
    in_memory.run_optimization(files[0], num_cycles=1)
    own = run(TextFiles(files[0], documents="separate", text_field="story"), tmp_path / "own", sequence_length=64)
    assert steps(by_name) == steps(own) == steps(in_memory)
    assert by_name.history.baseline is not None and by_name.history.baseline["sequences"] == 7
    # A list of paths is a list of files, not of texts.
    both = run([str(file) for file in files], tmp_path / "both", **options)
    assert both.history.baseline is not None and both.history.baseline["sequences"] == 15
    with pytest.raises(ValueError, match="documents is 'separate' for the data, but 'packed' for what is measured on"):
        run(TextFiles(files[0], documents="separate"), tmp_path / "x", eval_data=TextFiles(files[1], documents="packed"))


def test_files_are_read_as_on_the_command_line(texts: list[str], tmp_path: pathlib.Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts))
    by_path = steps(run(file, tmp_path / "a", sequence_length=64))
    assert by_path == steps(run(TextFiles(file), tmp_path / "b", sequence_length=64))
    expected = len(texts) // 10
    separate = run(TextFiles(file, documents="separate"), tmp_path / "c", sequence_length=64)
    assert separate.history.baseline is not None and separate.history.baseline["sequences"] == expected


@pytest.mark.parametrize("separate", [False, True])
def test_a_short_last_batch_is_not_all_that_is_measured_on(out: pathlib.Path, separate: bool) -> None:
    rows = np.random.default_rng(0).integers(3, 200, (129, 16))
    batches = [{"input_ids": rows[i : i + 16]} for i in range(0, 129, 16)]
    measured = [{"input_ids": np.random.default_rng(1).integers(3, 200, (20, 16))}] if separate else None
    pipeline = UpgrayeddPipeline("builtin", output_dir=out, max_steps_per_cycle=0)
    pipeline.run_optimization(batches, num_cycles=1, eval_dataloader=measured)
    began = json.loads((out / "events.jsonl").read_text().splitlines()[0])
    # Whole batches, of which the last has one sequence: as many as come to a tenth.
    assert began["sequences"] == ([112, 17, 20] if separate else [96, 16, 17])
