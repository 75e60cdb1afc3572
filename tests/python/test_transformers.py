"""What Upgrayedd writes, loaded in stock transformers: the same logits, the same text, really smaller."""

import json
import pathlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

import upgrayedd

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
LOADERS = {
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "Model": AutoModel,
}


def loader(name):
    (architecture,) = json.loads((GOLDEN / name / "config.json").read_text())["architectures"]
    return next(auto for end, auto in LOADERS.items() if architecture.endswith(end))


def load(folder, auto=AutoModelForCausalLM):
    return auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


def logits(model, ids, mask=None, **more):
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, **more)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def assert_close(got, want, tolerance=1e-4):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def padded_equal(got, want, mask):
    if got.dim() == 3:
        got, want = got[mask.bool()], want[mask.bool()]
    assert_close(got, want)


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.iterdir() if (p / "golden.safetensors").is_file()))
def test_pruned_exports_load_in_stock_transformers(name, program, tmp_path):
    golden = load_file(GOLDEN / name / "golden.safetensors")
    with safe_open(GOLDEN / name / "golden.safetensors", "pt") as f:
        pruned = json.loads(f.metadata()["pruned"])
    program.example("prune", GOLDEN / name, json.dumps(pruned), tmp_path / "out")
    ids, mask = golden["input_ids"].long(), golden["attention_mask"].long()
    model = load(tmp_path / "out", loader(name))
    types = {"token_type_ids": golden["token_type_ids"].long()} if "token_type_ids" in golden else {}
    padded_equal(logits(model, ids, mask, **types), golden["logits"], mask)
    if pruned:
        dense = load(GOLDEN / name, loader(name))
        assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())
        # It learns, and what it saves loads again.
        model.train()
        if "labels" in golden:
            labels = golden["labels"] if "regression" in name or "several" in name else golden["labels"].long()
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        else:
            model(input_ids=ids, attention_mask=mask).last_hidden_state.square().sum().backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and "pooler" not in n)
        model.eval().save_pretrained(tmp_path / "again")
        padded_equal(logits(load(tmp_path / "again", loader(name)), ids, mask, **types), golden["logits"], mask)


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.iterdir() if (p / "golden.safetensors").is_file()))
def test_narrower_mlps_load_in_stock_transformers(name, tmp_path):
    golden = load_file(GOLDEN / name / "golden.safetensors")
    ours = upgrayedd.Model.from_pretrained(GOLDEN / name)
    before = ours.num_parameters
    ours.prune(channels={0: [0, 3, 4], 1: [*range(5, ours.channels_per_layer[ours.mlp_names[1]])]})
    assert ours.channels_per_layer[ours.mlp_names[1]] == 5 and ours.num_parameters < before
    ours.save_pretrained(tmp_path / "narrow")
    ids, mask = golden["input_ids"].long(), golden["attention_mask"].long()
    more = [golden["token_type_ids"]] if "token_type_ids" in golden else []
    theirs = load(tmp_path / "narrow", loader(name))
    got = logits(theirs, ids, mask, **({"token_type_ids": more[0].long()} if more else {}))
    compute = ours.hidden_states if ours.summary()["objective"] == "encoder" else ours.logits
    want = torch.tensor(compute(ids.numpy(), mask.numpy(), *(types.long().numpy() for types in more)))
    padded_equal(got, want, mask)
    # What transformers saves again comes back as it was.
    theirs.save_pretrained(tmp_path / "again")
    again = upgrayedd.Model.from_pretrained(tmp_path / "again")
    assert again.active_channels == ours.active_channels
    padded_equal(logits(load(tmp_path / "again", loader(name)), ids, mask), logits(theirs, ids, mask), mask)


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.iterdir() if (p / "golden.safetensors").is_file()))
def test_missing_blocks_load_in_stock_transformers(name, tmp_path):
    golden = load_file(GOLDEN / name / "golden.safetensors")
    ours = upgrayedd.Model.from_pretrained(GOLDEN / name)
    # The first attention: others look there for how many tokens the cache has.
    heads = {} if "olmo2" in name else {0: ours.active_heads[ours.layer_names[0]]}
    ours.prune(heads=heads, channels={1: range(ours.channels_per_layer[ours.mlp_names[1]])})
    assert heads == {} or ours.heads_per_layer[ours.layer_names[0]] == 0
    assert ours.channels_per_layer[ours.mlp_names[1]] == 0
    ours.save_pretrained(tmp_path / "gaps")
    ids, mask = golden["input_ids"].long(), golden["attention_mask"].long()
    types = [golden["token_type_ids"].long()] if "token_type_ids" in golden else []
    theirs = load(tmp_path / "gaps", loader(name))
    got = logits(theirs, ids, mask, **({"token_type_ids": types[0]} if types else {}))
    compute = ours.hidden_states if ours.summary()["objective"] == "encoder" else ours.logits
    padded_equal(got, torch.tensor(compute(ids.numpy(), mask.numpy(), *(t.numpy() for t in types))), mask)
    if loader(name) is AutoModelForCausalLM:
        prompt = ids[:1, :4]
        with_cache, without = (
            theirs.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=cache, pad_token_id=0) for cache in (True, False)
        )
        assert torch.equal(with_cache, without)


def test_dense_export_needs_no_remote_code(program, tmp_path):
    program.example("prune", GOLDEN / "gpt2", '{"0": [0, 2], "1": [3]}', tmp_path / "small")
    program.run("export", "--model", tmp_path / "small", "--format", "hf-dense", "--out", tmp_path / "dense")
    ids = torch.arange(5, 15)[None]
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    assert_close(logits(dense, ids), logits(load(tmp_path / "small"), ids))


def windows(tokens, length, count):
    return [tokens[i * length : (i + 1) * length] for i in range(count)]


def perplexity_by_transformers(model, tokenizer, path, length, count):
    tokens = torch.tensor(tokenizer.encode(path.read_text()).ids)
    total, targets = 0.0, 0
    for window in windows(tokens, length, count):
        with torch.no_grad():
            loss = model(input_ids=window[None], labels=window[None]).loss
        total += loss.item() * (length - 1)
        targets += length - 1
    return torch.tensor(total / targets).exp().item()


@pytest.mark.parametrize(
    ("name", "data", "length"),
    [("stories260K", "tinystories/stories.txt", 256), ("SmolLM2-135M-Instruct", "wikitext-2/valid.txt", 512)],
)
def test_perplexity_of_real_models(name, data, length, program, real, text):
    from tokenizers import Tokenizer

    folder, path = real(name), text(data)
    count = 12
    ours = program.json("evaluate", "--model", folder, "--data", path, "--sequence-length", length, "--max-eval-windows", count)
    theirs = perplexity_by_transformers(load(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), path, length, count)
    assert ours["tokens"] == count * (length - 1)
    assert abs(ours["perplexity"] / theirs - 1) < 1e-3


@pytest.mark.parametrize(
    "name", ["stories260K", "glassllm-en", "SmolLM2-135M-Instruct", "IgLM", "IgLM-S", "rxnfp-bert-mlm", "all-MiniLM-L6-v2"]
)
def test_logits_of_real_models(name, program, real, tmp_path):
    folder = real(name)
    config = json.loads((folder / "config.json").read_text())
    ids = [(7 * i + 3) % min(config["vocab_size"], 1000) for i in range(40)]
    # rxnfp's config names no model_type, which transformers cannot do without.
    if "model_type" not in config:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/model.safetensors").symlink_to(folder / "model.safetensors")
        (tmp_path / "model/config.json").write_text(
            json.dumps(config | {"model_type": "bert", "architectures": ["BertForMaskedLM"]})
        )
        theirs = load(tmp_path / "model", AutoModelForMaskedLM)
    elif name == "all-MiniLM-L6-v2":
        pytest.skip("an encoder has no logits; the golden encoder compares hidden states")
    else:
        theirs = load(folder)
    program.example("logits", folder, json.dumps(ids), tmp_path / "logits.safetensors")
    assert_close(load_file(tmp_path / "logits.safetensors")["logits"], logits(theirs, torch.tensor([ids]))[0])


def test_an_optimised_model_is_smaller_and_says_the_same(program, tmp_path):
    summary = program.json("optimize", "--max-steps-per-cycle", 4, "--num-cycles", 2, "--out", tmp_path / "run")
    folder = tmp_path / "run/model"
    model = load(folder)
    before, after = summary["before"]["cost"], summary["after"]["cost"]
    assert sum(p.numel() for p in model.parameters()) == after["parameters"] < before["parameters"]
    ours = program.json("generate", "--model", tmp_path / "run", "--prompt", "Once there was a", "--max-new-tokens", 40)
    prompt = torch.tensor([ours["prompt_tokens"]])
    theirs = model.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=2, pad_token_id=2)
    assert theirs[0, prompt.shape[1] :].tolist() == ours["tokens"]
    ids = theirs[0].tolist()
    program.example("logits", folder, json.dumps(ids), tmp_path / "logits.safetensors")
    assert_close(load_file(tmp_path / "logits.safetensors")["logits"], logits(model, torch.tensor([ids]))[0])
