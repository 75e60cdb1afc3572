"""The Python package beside torch and transformers: objects go in, come out smaller, and work on."""

import importlib
import inspect

import datasets
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import upgrayedd
from upgrayedd import Model, UpgrayeddPipeline
from upgrayedd.callbacks import ProgressCallback, TensorBoardCallback
from upgrayedd.strategies import get_strategy

VOCABULARY, LENGTH = 96, 16
TOKENS = torch.randint(5, VOCABULARY, (40, LENGTH), generator=torch.Generator().manual_seed(0))


def llama(**more):
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **shape, **more))


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2)
    )


def bert_config(**more):
    shape = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    return BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **shape, **more)


MODELS = {
    "llama": llama,
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": gpt2,
    "bert": lambda: BertForMaskedLM(bert_config()),
    "classifier": lambda: BertForSequenceClassification(bert_config(num_labels=3)),
    "regression": lambda: BertForSequenceClassification(bert_config(num_labels=1)),
}


def labels_for(name):
    if name == "classifier":
        return torch.arange(40) % 3
    if name == "regression":
        return torch.arange(40) / 20 - 1
    if name == "bert":
        return torch.where(torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(1)) < 0.3, TOKENS, -100)
    return TOKENS


def make(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def relative(ours, theirs):
    theirs = theirs.detach().float().numpy()
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("name", MODELS)
def test_a_transformers_model_goes_in_comes_out_smaller_and_trains_further(name, tmp_path):
    theirs, labels = make(name), labels_for(name)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    data = torch.utils.data.TensorDataset(TOKENS, torch.ones_like(TOKENS), labels)
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    assert relative(Model.from_transformers(theirs).logits(TOKENS[:3]), theirs(TOKENS[:3]).logits) < 1e-4

    pipeline = UpgrayeddPipeline(theirs, output_dir=tmp_path / "run", learning_rate=1e-3)
    smaller = pipeline.run_optimization(loader, num_cycles=2)
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())

    result = smaller.to_transformers().eval()
    assert isinstance(result, transformers.PreTrainedModel)
    assert sum(p.numel() for p in result.parameters()) == smaller.num_parameters < sum(p.numel() for p in theirs.parameters())
    assert relative(smaller.logits(TOKENS[:3]), result(TOKENS[:3]).logits) < 1e-4
    mask = torch.ones_like(TOKENS[:3])
    mask[:, -4:] = 0
    real = slice(None) if name in ("classifier", "regression") else (slice(None), slice(0, -4))
    assert relative(smaller.logits(TOKENS[:3], mask)[real], result(TOKENS[:3], attention_mask=mask).logits[real]) < 1e-4

    result.train()
    optimizer = torch.optim.AdamW(result.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        loss = result(input_ids=TOKENS[:8], labels=labels[:8]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    # What torch has trained comes back, heads and all, and can be pruned again.
    result.eval()
    again = Model.from_transformers(result)
    assert again.active_heads == smaller.active_heads
    assert relative(again.logits(TOKENS[:3]), result(TOKENS[:3]).logits) < 1e-4
    layer = max(again.heads_per_layer, key=lambda key: again.heads_per_layer[key])
    again.prune({layer: again.active_heads[layer][:1]})


def test_tied_weights_are_what_the_tensors_say():
    tied = make("llama tied")
    assert "lm_head.weight" not in Model.from_transformers(tied).named_parameters()
    tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.detach() * 2)
    untied = Model.from_transformers(tied)
    assert relative(untied.logits(TOKENS[:2]), tied(TOKENS[:2]).logits) < 1e-4
    assert "lm_head.weight" in untied.named_parameters()


def test_half_precision_stays_half_precision():
    theirs = make("llama").to(torch.bfloat16)
    ours = Model.from_transformers(theirs)
    assert ours.summary()["dtype"] == "bfloat16"
    back = ours.to_transformers()
    assert back.dtype == torch.bfloat16
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in back.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_pruned_transformers_model_saves_its_code_and_loads_anywhere(name, tmp_path):
    ours = Model.from_transformers(make(name))
    ours.prune({ours.layer_names[0]: [0, 3], ours.layer_names[2]: [1]})
    theirs = ours.to_transformers().eval()
    theirs.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    assert torch.equal(loaded(TOKENS[:2]).logits, theirs(TOKENS[:2]).logits)
    tokens = theirs.generate(TOKENS[:1], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, LENGTH:]
    assert ours.generate(TOKENS[0], max_new_tokens=8) == tokens.tolist()
    assert Model.from_pretrained(tmp_path / "saved").active_heads == ours.active_heads


def test_a_datasets_dataset_is_data(tmp_path):
    rows = {"input_ids": TOKENS.tolist(), "attention_mask": torch.ones_like(TOKENS).tolist()}
    runs = {
        "plain": datasets.Dataset.from_dict(rows),
        "torch": datasets.Dataset.from_dict(rows).with_format("torch"),
        "loader": torch.utils.data.DataLoader(TOKENS, batch_size=4),
    }
    losses = {}
    for name, data in runs.items():
        pipeline = UpgrayeddPipeline(make("llama"), output_dir=tmp_path / name)
        pipeline.run_optimization(data, num_cycles=1)
        losses[name] = [step["loss"] for step in pipeline.history.steps]
    assert len(losses["plain"]) == 8 and losses["plain"] == losses["torch"] == losses["loader"]


def word_tokenizer():
    words = ["[UNK]", "[PAD]", "[MASK]", *["Mia", "was", "a", "kind", "girl", "She", "had", "red", "ball"]]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[UNK]", "[PAD]", "[MASK]"])
    return tokenizer


@pytest.mark.parametrize("kind", ["tokenizers", "transformers", "folder"])
def test_texts_are_tokenised_by_whatever_tokenizer_the_user_has(kind, tmp_path):
    tokenizer = word_tokenizer()
    if kind == "transformers":
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", pad_token="[PAD]")
    elif kind == "folder":
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        tokenizer = tmp_path
    texts = ["Mia was a kind girl. She had a red ball."] * 60
    for model in ("llama", "bert"):
        pipeline = UpgrayeddPipeline(make(model), tokenizer, output_dir=tmp_path / model, sequence_length=16)
        smaller = pipeline.run_optimization(texts, num_cycles=1)
        assert smaller.tokenizer.encode("Mia had a ball") == [3, 9, 5, 11]
        assert (tmp_path / model / "model/tokenizer.json").is_file()


def test_text_needs_a_tokenizer_and_says_so(tmp_path):
    with pytest.raises(ValueError, match="tokenizer"):
        UpgrayeddPipeline(make("llama"), output_dir=tmp_path / "run").run_optimization(["text"] * 50)


def test_labelled_texts_teach_a_classifier(tmp_path):
    data = [{"text": text, "label": i % 3} for i, text in enumerate(["Mia was a kind girl", "She had a ball", "red"] * 20)]
    pipeline = UpgrayeddPipeline(make("classifier"), word_tokenizer(), output_dir=tmp_path / "run")
    pipeline.run_optimization(data, num_cycles=1)
    assert pipeline.history[0].accuracy is not None and pipeline.history[0].perplexity is None
    # A label of -100 does not count, for classes either.
    batch = {"input_ids": TOKENS[:4], "labels": torch.tensor([0, -100, 2, 1])}
    assert pipeline.model.evaluate([batch]).tokens == 3


def test_pairs_of_texts_are_read_as_transformers_reads_them(tmp_path):
    words = [f"w{i}" for i in range(60)]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    theirs = make("regression")
    theirs.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    # Many of them do not fit: the longer text is cut.
    pairs = [[" ".join(rng.choice(words, rng.integers(1, 16))) for _ in range(2)] for _ in range(30)]
    values = rng.normal(size=30).round(3)
    lines = [f"{first}\t{second}\t{value}" for (first, second), value in zip(pairs, values, strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["a\tb\tlabel", *lines]))
    batch = tokenizer(
        [a for a, _ in pairs], [b for _, b in pairs], truncation="longest_first", max_length=16, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs(**batch).logits
    model = Model.from_pretrained(tmp_path)
    assert relative(model.logits(**batch), expected) < 1e-4
    loss = float(((expected[:, 0] - torch.tensor(values)) ** 2).mean())
    for data in (
        upgrayedd.TextFiles(tmp_path / "pairs.tsv", text_field="a", text_pair_field="b"),
        [{**batch, "labels": torch.tensor(values)}],
        [{**batch, "labels": values.tolist()}],
        [{**batch, "labels": [[value] for value in values.tolist()]}],
    ):
        measured = model.evaluate(data, sequence_length=16)
        assert measured.loss == pytest.approx(loss, rel=1e-5) and measured.protocol == "numbers"
        assert -1 <= measured.spearman <= 1 and measured.accuracy is None
    with pytest.raises(ValueError, match="not all numbers"):
        model.evaluate([{**batch, "labels": [0.5, "much", *values[2:].tolist()]}])
    with pytest.raises(ValueError, match="token type 7"):
        model.logits(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"] * 7)
    with pytest.raises(ValueError, match="not integers"):
        Model.from_transformers(make("classifier")).evaluate([{**batch, "labels": torch.tensor(values)}])


def test_importances_may_be_torch_tensors():
    model = Model.from_transformers(make("llama"))
    importances = {name: torch.arange(4, dtype=torch.float32, requires_grad=True) for name in model.layer_names}
    chosen = get_strategy("magnitude", pruning_ratio=0.5).select_heads_to_prune(model, importances)
    assert chosen == dict.fromkeys(model.layer_names, [0, 1])


def test_progress_bars_and_tensorboard_take_a_run(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callbacks = [ProgressCallback(), TensorBoardCallback(tmp_path / "board")]
    loader = torch.utils.data.DataLoader(TOKENS, batch_size=4)
    UpgrayeddPipeline(make("gpt2"), output_dir=tmp_path / "run", callbacks=callbacks).run_optimization(loader, num_cycles=1)
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [point.step for point in board.Scalars("train/loss")] == list(range(1, 9))
    assert "learn" in capsys.readouterr().err


def test_every_model_file_of_the_package_is_a_module_that_transformers_can_copy():
    files = upgrayedd._native.modeling_files()
    assert len(files) >= 18 and "xlm_roberta" in files
    for family, text in files.items():
        module = importlib.import_module(f"upgrayedd.modeling.{family}")
        assert issubclass(module.UpgrayeddModel, transformers.PreTrainedModel)
        assert inspect.getsource(module) == text
        assert not any(placeholder in text for placeholder in ("STOCK", "MODULE", "PREFIX"))
