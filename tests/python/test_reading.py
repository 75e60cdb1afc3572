"""What people have around their transformers models and tokenizers, read as transformers reads it."""

import json
import warnings

import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from test_package import LENGTH, MODELS, TOKENS, make, relative

from upgrayedd import Model, Tokenizer, UpgrayeddPipeline


@pytest.mark.parametrize("name", MODELS)
def test_an_ordinary_model_is_read_without_a_word(name, tmp_path):
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours in (Model.from_transformers(theirs), Model.from_pretrained(tmp_path / "saved")):
            assert relative(ours.logits(TOKENS[:2]), theirs(TOKENS[:2]).logits) < 1e-4


@pytest.mark.parametrize("wrap", ["compiled", "parallel", "both"])
def test_wrappers_of_torch_are_looked_through(wrap):
    theirs = make("llama")
    wrapped = theirs
    if wrap in ("parallel", "both"):
        wrapped = torch.nn.DataParallel(wrapped)
    if wrap in ("compiled", "both"):
        wrapped = torch.compile(wrapped)
    pipeline = UpgrayeddPipeline(wrapped)
    assert relative(pipeline.model.logits(TOKENS[:2]), theirs(TOKENS[:2]).logits) < 1e-4
    # A wrapper inside leaves its name in those of the tensors.
    theirs.model.layers[1] = torch.compile(theirs.model.layers[1])
    with pytest.warns(match="_orig_mod"):
        inside = Model.from_transformers(theirs)
    assert relative(inside.logits(TOKENS[:2]), theirs(TOKENS[:2]).logits) < 1e-4


def test_adapters_and_quantised_weights_are_refused():
    theirs = make("llama")

    class PeftModel(torch.nn.Module):
        config = theirs.config

    with pytest.raises(ValueError, match="merge_and_unload"):
        Model.from_transformers(PeftModel())
    weight = theirs.model.layers[0].mlp.up_proj.weight
    theirs.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="holds int8 values"):
        Model.from_transformers(theirs)
    with pytest.raises(ValueError, match="without a config"):
        UpgrayeddPipeline(torch.nn.Linear(2, 2))


def test_a_tokenizer_in_memory_is_what_it_is_whatever_the_model(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Mia", "mia", "was", "##S", "##s", "wa"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    cased = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=False)
    cased.add_tokens(["<e1>"])
    text = "Mia waS <e1> mia was"
    right = cased(text)["input_ids"]
    assert right[1:3] == [5, 10]
    for given in (cased, cased.backend_tokenizer):
        for name in ("bert", "llama", "gpt2"):
            pipeline = UpgrayeddPipeline(make(name), given)
            assert pipeline.model.tokenizer.encode(text) == right
    # The files that come with a result say the same to transformers.
    pipeline = UpgrayeddPipeline(make("bert"), cased)
    pipeline.model.save_pretrained(tmp_path / "result")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "result")(text)["input_ids"] == right
    assert Tokenizer.from_pretrained(tmp_path / "result").encode(text) == right


def test_a_head_for_sentence_pairs_comes_along(tmp_path):
    torch.manual_seed(0)
    config = make("bert").config
    theirs = transformers.BertForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    ours = Model.from_pretrained(tmp_path / "model")
    ours.save_pretrained(tmp_path / "again")
    again, info = transformers.BertForPreTraining.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        want, got = theirs(TOKENS[:2]), again(TOKENS[:2])
    assert torch.equal(got.seq_relationship_logits, want.seq_relationship_logits)
    assert torch.equal(got.prediction_logits, want.prediction_logits)


@pytest.mark.parametrize("kind", [transformers.BertForMaskedLM, transformers.BertForPreTraining])
@pytest.mark.parametrize("form", ["hf", "hf-dense"])
def test_an_untied_decoder_keeps_its_bias(kind, form, tmp_path):
    config = make("bert").config
    config.tie_word_embeddings = False
    theirs = kind(config).eval()
    torch.nn.init.normal_(theirs.cls.predictions.decoder.bias)
    theirs.save_pretrained(tmp_path / "model")
    ours = Model.from_pretrained(tmp_path / "model")
    ours.save_pretrained(tmp_path / "whole", format=form)
    again = kind.from_pretrained(tmp_path / "whole").eval()
    logits = "prediction_logits" if kind is transformers.BertForPreTraining else "logits"
    with torch.no_grad():
        right = getattr(theirs(TOKENS[:2]), logits)
        assert relative(ours.logits(TOKENS[:2]), right) < 1e-4
        assert torch.equal(getattr(again(TOKENS[:2]), logits), right)
    ours.prune({ours.layer_names[0]: [0]})
    ours.save_pretrained(tmp_path / "smaller", format=form)
    load = transformers.AutoModelForMaskedLM.from_pretrained
    smaller = load(tmp_path / "smaller", trust_remote_code=True).eval()
    assert relative(ours.logits(TOKENS[:2]), smaller(TOKENS[:2]).logits) < 1e-4


def test_a_head_of_its_own_is_written_as_one(tmp_path):
    theirs = make("llama tied")
    theirs.save_pretrained(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].roll(1, 0).contiguous()
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.warns(match="differs from the embedding"):
        ours = Model.from_pretrained(tmp_path / "model")
    ours.prune({ours.layer_names[0]: [0]})
    ours.save_pretrained(tmp_path / "smaller")
    assert json.loads((tmp_path / "smaller/config.json").read_text())["tie_word_embeddings"] is False
    load = transformers.AutoModelForCausalLM.from_pretrained
    again = load(tmp_path / "smaller", trust_remote_code=True).eval()
    assert relative(ours.logits(TOKENS[:2]), again(TOKENS[:2]).logits) < 1e-4
    assert ours.logits(TOKENS[:2]).shape == (2, LENGTH, theirs.config.vocab_size)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["padded at the end", "a hole", "ignored at the start"])
def test_labels_count_as_in_transformers_whatever_the_mask_says(name, kind):
    theirs, mask, labels = make(name), torch.ones_like(TOKENS[:4]), TOKENS[:4].clone()
    if kind == "padded at the end":
        mask[1:, -5:] = 0
    elif kind == "a hole":
        mask[:, 4:7] = 0
    else:
        mask[:, :3] = 0
        labels[:, :4] = -100
    batch = {"input_ids": TOKENS[:4], "attention_mask": mask, "labels": labels}
    # Positions are not counted anew behind padding, here as there.
    with torch.no_grad():
        right = theirs(**batch).loss.item()
    assert Model.from_transformers(theirs).evaluate([batch]).loss == pytest.approx(right, rel=1e-4)


def test_labels_predicted_from_padding_alone_are_refused():
    mask = torch.ones_like(TOKENS[:4])
    mask[:, :3] = 0
    labels = torch.where(mask == 1, TOKENS[:4], -100)
    with pytest.raises(ValueError, match="predicted from padding alone"):
        Model.from_transformers(make("llama")).evaluate([{"input_ids": TOKENS[:4], "attention_mask": mask, "labels": labels}])


def test_what_a_loader_has_collated_column_by_column_is_refused():
    rows = [{"input_ids": row.tolist()} for row in TOKENS]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    with pytest.raises(ValueError, match="rows or columns"):
        Model.from_transformers(make("llama")).evaluate(loader)


def test_a_mask_in_the_place_of_labels_is_refused():
    data = torch.utils.data.TensorDataset(TOKENS, torch.ones_like(TOKENS))
    with pytest.raises(ValueError, match="look like an attention mask"):
        Model.from_transformers(make("gpt2")).evaluate(torch.utils.data.DataLoader(data, batch_size=4))


def test_labelled_parquet_is_read_like_jsonl(tmp_path):
    texts = ["Mia was a kind girl", None, "She had a ball", "red", "a ball"]
    columns = {
        "integers": [0, 1, 2, 1, -1],
        "floats": [0.0, 1.0, 2.0, 1.0, -1.0],
        "names": ["a", "b", "c", "b", "-1"],
    }
    theirs = make("classifier")
    theirs.config.id2label = {0: "a", 1: "b", 2: "c"}
    ours = Model.from_transformers(theirs, words_of(tmp_path))
    losses = set()
    for name, labels in columns.items():
        table = {"id": list(range(5)), "text": texts, "label": labels}
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        lines = tmp_path / f"{name}.jsonl"
        rows = zip(texts, labels, strict=True)
        lines.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        for file in (path, lines):
            with pytest.warns() as said:
                result = ours.evaluate(file, sequence_length=16)
            assert result.tokens == 3
            assert all(any(words in str(w.message) for w in said) for words in ("want of a text", "want of a label"))
            losses.add(result.loss)
    assert len(losses) == 1


def words_of(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mia", "was", "a", "kind", "girl", "she", "had", "ball", "red"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return transformers.BertTokenizerFast(str(folder / "vocab.txt"))
