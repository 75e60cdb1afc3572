"""What batches and folders hold is read as transformers reads it, or refused; what is passed over is said."""

import json
import pathlib
import shutil
import warnings
from typing import Any

import numpy as np
import pytest

from upgrayedd import Callback, Control, FileError, Model, TextFiles, Tokenizer, UpgrayeddPipeline, UpgrayeddWarning

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden"
BASES = json.loads((GOLDEN / "reading" / "tokenizers.json").read_text(encoding="utf-8"))["bases"]
ROWS = np.random.default_rng(0).integers(5, 40, (120, 12))
SMALL: dict[str, Any] = {"max_steps_per_cycle": 2, "max_eval_windows": 4}


class Interrupts(Callback):
    """After the first cycle, once it is saved."""

    def on_save(self, control: Control, **event: Any) -> None:
        raise KeyboardInterrupt


def batches(**more: Any) -> list[dict[str, Any]]:
    """Batches of four, with four rows each of everything else."""
    return [{"input_ids": ROWS[i : i + 4], **{k: v[i : i + 4] for k, v in more.items()}} for i in range(0, 120, 4)]


@pytest.mark.parametrize(
    ("family", "more", "says"),
    [
        ("llama_mha", {"position_ids": np.tile(np.arange(12) % 6, (120, 1))}, "position_ids do not count"),
        ("llama_mha", {"position_ids": np.tile(np.arange(12) + 1, (120, 1))}, "position_ids do not count"),
        ("llama_mha", {"shift_labels": ROWS}, "labels are not shifted"),
        ("llama_mha", {"inputs_embeds": np.zeros((120, 12, 4))}, "'inputs_embeds', which is not read"),
        ("llama_mha", {"special_tokens_mask": np.zeros((120, 12), int)}, "'special_tokens_mask', which is not read"),
        ("llama_mha", {"attention_mask": np.ones((120, 1, 12, 12), int)}, "attention_mask has 4 dimensions"),
        ("llama_mha", {"attention_mask": np.ones((120, 12))}, "attention_mask holds float64 values"),
        ("llama_mha", {"attention_mask": np.full((120, 12), 2)}, "attention_mask holds 2: expected 1 for tokens and 0"),
        ("llama_mha", {"labels": ROWS, "label": ROWS}, "both labels and label"),
        ("llama_mha", {"token_type_ids": np.ones((120, 12), int)}, "token type 1: the model has no token types"),
        ("gpt2", {"token_type_ids": np.zeros((120, 12), int)}, "adds to a gpt2 model's tokens"),
        ("bert_classifier", {"labels": np.full(120, 3)}, "label 3 is not one of 0 to 2"),
    ],
)
def test_what_a_batch_holds_is_read_or_refused(family: str, more: dict[str, Any], says: str) -> None:
    model = Model.from_pretrained(GOLDEN / family)
    with pytest.raises(ValueError, match=says):
        model.evaluate(batches(**more))


def test_positions_and_types_that_say_nothing_change_nothing() -> None:
    model = Model.from_pretrained(GOLDEN / "llama_mha")
    plain = model.evaluate(batches()).loss
    positions = np.tile(np.arange(12), (120, 1))
    assert model.evaluate(batches(position_ids=positions, token_type_ids=np.zeros((120, 12), int))).loss == plain
    lists = [{"input_ids": row.tolist(), "position_ids": list(range(12))} for row in ROWS]
    assert model.evaluate(lists).loss == pytest.approx(plain)


@pytest.mark.parametrize("what", ["labels", "types", "first tokens", "numbers"])
def test_a_run_goes_on_with_the_same_data_or_not_at_all(what: str, tmp_path: pathlib.Path) -> None:
    family = {"first tokens": "llama_mha", "numbers": "bert_regression"}.get(what, "bert_classifier")
    labels: Any = np.arange(120) / 60 if what == "numbers" else np.arange(120) % 3
    data: dict[str, Any] = {} if what == "first tokens" else {"labels": labels, "token_type_ids": np.zeros((120, 12), int)}

    def start(out: str) -> None:
        pipeline = UpgrayeddPipeline(
            Model.from_pretrained(GOLDEN / family), output_dir=tmp_path / out, callbacks=[Interrupts()], **SMALL
        )
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_optimization(batches(**data), num_cycles=2)

    start("run")
    changed = batches(**data)
    if what == "types":
        changed[0]["token_type_ids"] = np.ones((4, 12), int)
    elif what == "first tokens":
        changed[0]["input_ids"] = changed[0]["input_ids"].copy()
        changed[0]["input_ids"][:, 0] = 5 + (changed[0]["input_ids"][:, 0] - 4) % 35
    else:
        changed[0]["labels"] = np.roll(changed[0]["labels"], 1)
    with pytest.raises(FileError, match="data has changed"):
        UpgrayeddPipeline.resume(tmp_path / "run").finish(changed)
    UpgrayeddPipeline.resume(tmp_path / "run").finish(batches(**data))


def cased(folder: pathlib.Path) -> pathlib.Path:
    """A folder with a WordPiece tokenizer that keeps case, beside the config.json of another model."""
    folder.mkdir()
    tokenizer = json.loads(json.dumps(BASES["pieces"]))
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 7}))
    return folder


def test_a_tokenizer_stays_what_it_is_beside_another_model(tmp_path: pathlib.Path) -> None:
    folder = cased(tmp_path / "tokenizer")
    own = Tokenizer.from_pretrained(folder)
    assert own.encode("HELLO") != own.encode("hello")
    for given in (folder, own):
        pipeline = UpgrayeddPipeline(Model.from_pretrained(GOLDEN / "bert_mlm"), given)
        assert pipeline.model.tokenizer.encode("HELLO hello") == own.encode("HELLO hello")


def test_a_run_from_memory_goes_on_whatever_lies_beside_its_tokenizer(tmp_path: pathlib.Path) -> None:
    model = Model.from_pretrained("builtin")
    folder = tmp_path / "tokenizer"
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "eos_token_id": 9, "vocab_size": 12}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    rows = [np.random.default_rng(i).integers(3, 200, (4, 16)) for i in range(30)]
    for name, callbacks in (("cut", [Interrupts()]), ("whole", [])):
        pipeline = UpgrayeddPipeline(model, folder, output_dir=tmp_path / name, callbacks=callbacks, **SMALL)
        try:
            pipeline.run_optimization(rows, num_cycles=2)
        except KeyboardInterrupt:
            assert name == "cut"
    shutil.rmtree(folder)
    UpgrayeddPipeline.resume(tmp_path / "cut").finish(rows)
    events = [(tmp_path / name / "events.jsonl").read_text() for name in ("cut", "whole")]
    assert events[0] == events[1]


def test_what_is_passed_over_is_a_warning(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama_mha", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Model.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "residual_multiplier": 0.5}))
    with pytest.warns(UpgrayeddWarning, match="residual_multiplier"):
        Model.from_pretrained(folder)


def test_tables_are_read_with_their_options(tmp_path: pathlib.Path) -> None:
    texts = [f"Mia was a kind girl; she had {n} balls." for n in range(60)]
    (tmp_path / "bare.csv").write_text("".join(f'{n};"{text}"\r\n' for n, text in enumerate(texts)))
    (tmp_path / "named.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = Model.from_pretrained("builtin")
    table = TextFiles(tmp_path / "bare.csv", columns=["id", "text"], delimiter=";")
    assert model.evaluate(table, sequence_length=32).loss == model.evaluate(tmp_path / "named.jsonl", sequence_length=32).loss
    (tmp_path / "named.tsv").write_text("text\n" + "".join(f"{text}\n" for text in texts))
    tabs = model.evaluate(TextFiles(tmp_path / "named.tsv", delimiter="tab"), sequence_length=32)
    assert tabs.loss == model.evaluate(tmp_path / "named.jsonl", sequence_length=32).loss
    pipeline = UpgrayeddPipeline(
        "builtin", output_dir=tmp_path / "run", delimiter="tab", sequence_length=32, max_steps_per_cycle=0
    )
    pipeline.run_optimization(tmp_path / "named.tsv", num_cycles=1)
    with pytest.raises(ValueError, match="expected one character"):
        model.evaluate(TextFiles(tmp_path / "bare.csv", delimiter=";;"))


def test_files_read_in_another_way_are_other_data(tmp_path: pathlib.Path) -> None:
    model = Model.from_pretrained("builtin")
    lines = [
        {"text": f"Mia was a kind girl. She had {n} balls.", "body": f"She put {n} balls in the garden."} for n in range(200)
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "run"
    pipeline = UpgrayeddPipeline(model, output_dir=out, callbacks=[Interrupts()], sequence_length=16, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_optimization(TextFiles(file, text_field="body"), num_cycles=2)
    for other in (TextFiles(file), TextFiles(file, text_field="body", documents="separate")):
        with pytest.raises(FileError, match="data has changed"):
            UpgrayeddPipeline.resume(out).finish(other)
    UpgrayeddPipeline.resume(out).finish(TextFiles(file, text_field="body"))


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"text": ["a"], "label": [0], "labels": [1]}, "both labels and label"),
        ({"text": ["a"], "attention_mask": [[1]], "label": [0]}, "both texts and attention_mask"),
    ],
)
def test_texts_with_more_than_texts_are_refused(batch: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Model.from_pretrained(GOLDEN / "bert_classifier").evaluate([batch])
