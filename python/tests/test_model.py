"""A model on its own: reading, writing, heads, measurements."""

import pathlib

import numpy as np
import pytest

from upgrayedd import FileError, Model, Tokenizer, UpgrayeddPipeline

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden"
FIRST = "model.layers.0.self_attn"


@pytest.fixture
def model() -> Model:
    return Model.from_pretrained("builtin")


@pytest.mark.parametrize("case", ["llama_gqa", "gpt2", "bert_mlm", "bert_classifier"])
def test_every_family_is_read_pruned_restored_written_and_read_again(case: str, tmp_path: pathlib.Path) -> None:
    model = Model.from_pretrained(GOLDEN / case)
    before, tokens = model.named_parameters(), np.arange(8).reshape(1, 8)
    logits = model.logits(tokens)
    layer = model.layer_names[1]
    model.prune({layer: [0, 2]})
    assert 0 not in model.active_heads[layer] and model.pruned_heads == {layer: [0, 2]}
    pruned = model.logits(tokens)
    assert not np.array_equal(pruned, logits)
    model.save_pretrained(tmp_path / "pruned")
    again = Model.from_pretrained(tmp_path / "pruned")
    assert again.active_heads == model.active_heads and np.array_equal(again.logits(tokens), pruned)
    model.restore({layer: [2, 0]})
    after = model.named_parameters()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert np.array_equal(model.logits(tokens), logits)


def test_an_encoder_has_hidden_states_to_keep_and_to_learn_from(tmp_path: pathlib.Path) -> None:
    model = Model.from_pretrained(GOLDEN / "bert_encoder")
    tokens = np.random.default_rng(1).integers(5, 40, (40, 12))
    assert model.hidden_states(tokens[:3]).shape == (3, 12, model.config["hidden_size"])
    with pytest.raises(ValueError, match="hidden_states"):
        model.logits(tokens[:3])
    with pytest.raises(ValueError, match="reference"):
        model.evaluate([tokens])
    assert model.evaluate([tokens], reference=model).loss == 0
    pruned = model.copy()
    pruned.prune({model.layer_names[0]: [0]})
    with pytest.raises(ValueError, match="reference"):
        pruned.growth_gains([tokens])
    ours, theirs = pruned.hidden_states(tokens), model.hidden_states(tokens)
    distance = ((ours - theirs) ** 2).sum(-1) / (theirs**2).sum(-1)
    found = pruned.evaluate([tokens], reference=model)
    assert found.protocol == "hidden states" and found.perplexity is None
    assert found.loss == pytest.approx(distance.mean(), rel=1e-4)
    pipeline = UpgrayeddPipeline(model, strategy="auto", output_dir=tmp_path / "run", learning_rate=1e-3)
    batches = [{"input_ids": batch, "labels": np.zeros(4, int)} for batch in tokens.reshape(10, 4, 12)]
    result = pipeline.run_optimization(batches, num_cycles=1, epochs_per_cycle=4)
    first = pipeline.history[0]
    assert first.loss_learned is not None and first.loss_pruned is not None
    assert first.loss_learned < first.loss_pruned
    assert sum(result.heads_per_layer.values()) < sum(model.heads_per_layer.values())


def test_parameters_are_shown_without_a_copy_and_cannot_be_written() -> None:
    # In float32, as they are shown.
    model = Model.from_pretrained(GOLDEN / "llama_gqa")
    name = f"{FIRST}.q_proj.weight"
    one, two = model.named_parameters()[name], model.named_parameters()[name]
    assert np.shares_memory(one, two)
    with pytest.raises(ValueError, match="read-only"):
        one[0, 0] = 1.0
    kept = one.copy()
    model.prune({FIRST: [0]})
    del two
    assert np.array_equal(one, kept) and model.named_parameters()[name].shape[0] < kept.shape[0]


def test_a_copy_is_independent(model: Model) -> None:
    other = model.copy()
    other.prune({FIRST: [3]})
    assert model.heads_per_layer[FIRST] == 8 and other.heads_per_layer[FIRST] == 7


def test_attention_maps_are_probabilities_and_agree_with_the_entropy(model: Model, texts: list[str]) -> None:
    tokens = np.array([model.tokenizer.encode(texts[0])[:24]])
    maps = model.attention_maps(tokens)
    scores = model.score("entropy", [tokens])
    for name, values in maps.items():
        assert values.shape == (1, 8, 24, 24)
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
        assert np.triu(values, k=1).max() == 0
        p = values[0, :, 1:].astype(np.float64)
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1) / np.log(np.arange(2, 25))
        np.testing.assert_allclose(entropy.mean(-1), scores[name], rtol=1e-4)


def test_evaluation_says_what_was_measured(model: Model, texts: list[str]) -> None:
    result = model.evaluate(texts, sequence_length=64, max_eval_windows=5)
    assert (result.sequences, result.window, result.protocol, result.tokens) == (5, 64, "chunks", 5 * 63)
    assert result.perplexity == pytest.approx(np.exp(result.loss))


def test_generation_takes_text_or_tokens(model: Model) -> None:
    text = model.generate("Mia was a", max_new_tokens=5)
    assert text.startswith("Mia was a")
    prompt = model.tokenizer.encode("Mia was a")
    new = model.generate(prompt, max_new_tokens=5)
    assert model.tokenizer.decode(prompt + new) == text
    assert model.generate(prompt, 5, temperature=1.0, seed=3) == model.generate(prompt, 5, temperature=1.0, seed=3)


def test_a_notebook_shows_the_head_map(model: Model) -> None:
    model.prune({FIRST: [0, 5]})
    html = model._repr_html_()
    assert html.count("<tr>") == 4 and html.count("pruned") == 2 and html.count("kept") == 30
    assert repr(model).startswith("Model(llama, causal-lm, 4 layers, 30 of 32 heads, ")


def test_a_summary_counts_what_is_there(model: Model) -> None:
    before = model.summary()
    model.prune({FIRST: [0]})
    after = model.summary()
    assert before["parameters"] - after["parameters"] == 4 * 16 * 128 == before["parameters"] - model.num_parameters
    assert after["heads_per_layer"][FIRST] == 7 and after["macs_per_token"] < before["macs_per_token"]


def test_heads_share_keys_and_values_in_groups() -> None:
    model = Model.from_pretrained(GOLDEN / "llama_gqa")
    first = model.layer_names[0]
    heads, groups = (model.summary()[key][first] for key in ("original_heads", "original_kv_heads"))
    assert [model.kv_group_of(0, head) for head in range(heads)] == [head * groups // heads for head in range(heads)]


def test_what_is_wrong_is_said_in_pythons_terms(model: Model, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="no config.json") as caught:
        Model.from_pretrained(tmp_path)
    assert isinstance(caught.value, FileError)
    with pytest.raises(OSError, match="already exists"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown layer"):
        model.prune({"x": [1]})
    with pytest.raises(ValueError, match="twice"):
        model.prune({FIRST: [1, 1]})
    with pytest.raises(ValueError, match="not in the archive"):
        model.restore({FIRST: [1]})
    with pytest.raises(ValueError, match="unknown score"):
        model.score("entrpy", [[1, 2, 3]])
    with pytest.raises(ValueError, match="unknown layer"):
        model.kv_group_of(-1, 0)
    for samples, batch_size in ((0, 4), (-1, 4), (128, 0)):
        with pytest.raises(ValueError, match="expected 1 or more"):
            model.score("wanda", [[1, 2, 3]], samples=samples, batch_size=batch_size)
    with pytest.raises(ValueError, match="max_new_tokens is -1"):
        model.generate([1], max_new_tokens=-1)
    with pytest.raises(ValueError, match="unknown format"):
        model.save_pretrained(tmp_path / "new", format="onyx")


def test_a_tokenizer_is_read_from_a_folder(model: Model, tmp_path: pathlib.Path) -> None:
    model.save_pretrained(tmp_path / "m")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "m")
    ids = tokenizer.encode("Mia had a ball.")
    assert tokenizer.decode(ids) == "Mia had a ball." and ids == model.tokenizer.encode("Mia had a ball.")
    assert tokenizer.frame == ([1], []) and max(ids) < tokenizer.vocab_size


def test_channels_are_pruned_scored_and_restored_like_heads(model: Model, texts: list[str]) -> None:
    dense = model.copy()
    first, second = model.mlp_names[:2]
    assert first != model.layer_names[0] and model.channels_per_layer == model.original_channels
    scores = model.score("surgeon", texts, units="channels")
    assert list(scores) == model.mlp_names and len(scores[first]) == model.channels_per_layer[first]
    gone = [int(i) for i in scores[first].argsort()[:20]]
    model.prune({model.layer_names[0]: [1]}, channels={first: gone, second: [4]})
    assert model.pruned_channels == {first: sorted(gone), second: [4]}
    assert model.channels_per_layer[first] == dense.channels_per_layer[first] - 20
    assert model.num_parameters < dense.num_parameters
    repaired = model.refit(dense, texts)
    assert set(repaired) == {*model.layer_names, *model.mlp_names}
    model.restore({model.layer_names[0]: [1]}, channels={first: gone, second: [4]})
    assert model.active_channels == dense.active_channels and model.active_heads == dense.active_heads
    for wrong, message in (
        ({"channels": {first: [100_000]}}, "channel 100000 of layer"),
        ({"channels": {"no.such.mlp": [0]}}, "unknown layer"),
        ({}, "nothing given"),
    ):
        with pytest.raises(ValueError, match=message):
            model.prune(**wrong)
    with pytest.raises(ValueError, match="defined for heads, not for channels"):
        model.score("entropy", texts, units="channels")


def test_a_pipeline_reaches_a_target_with_heads_and_channels(texts: list[str], tmp_path: pathlib.Path) -> None:
    dense = Model.from_pretrained("builtin")
    pipeline = UpgrayeddPipeline(
        "builtin", units="all", target="parameters=0.7x", max_steps_per_cycle=1, sequence_length=32, output_dir=tmp_path / "run"
    )
    smaller = pipeline.run_optimization(texts, num_cycles=1)
    assert 0.69 * dense.num_parameters < smaller.num_parameters <= 0.7 * dense.num_parameters
    assert sum(smaller.channels_per_layer.values()) < sum(dense.channels_per_layer.values())
    pruned = pipeline.history[0].pruned
    assert any(name in pruned for name in dense.mlp_names)
