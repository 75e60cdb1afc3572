"""Every family through the Python objects, beside transformers: generation token by token, models that go in and come out,
pruning that goes on from a result."""

import json
import pathlib

import pytest
import torch
import transformers
from safetensors import safe_open

import upgrayedd
from upgrayedd import Model, UpgrayeddPipeline
from upgrayedd.strategies import get_strategy

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
CASES = sorted(p.name for p in GOLDEN.iterdir() if (p / "golden.safetensors").is_file())


def stock(name):
    config = json.loads((GOLDEN / name / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(GOLDEN / name).eval()


def pruned_heads(name):
    with safe_open(GOLDEN / name / "golden.safetensors", "pt") as f:
        return {int(layer): heads for layer, heads in json.loads(f.metadata()["pruned"]).items()}


def by_name(model, heads):
    return {model.layer_names[layer]: indices for layer, indices in heads.items()}


DECODERS = [name for name in CASES if "bert" not in name and "mpnet" not in name]


@pytest.mark.parametrize("name", DECODERS)
def test_generation_agrees_token_by_token(name, tmp_path):
    theirs = stock(name)
    ours = Model.from_transformers(theirs)
    if heads := pruned_heads(name):
        ours.prune(by_name(ours, heads))
        theirs = ours.to_transformers().eval()
    # The longest that phi3_long has short rotations for is 6.
    prompt = [7, 12, 33, 5]
    more = dict(max_new_tokens=14, do_sample=False, pad_token_id=0, eos_token_id=None)
    want = theirs.generate(torch.tensor([prompt]), **more)[0, len(prompt) :].tolist()
    assert ours.generate(prompt, max_new_tokens=14) == want


def batches(name, model):
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(10):
        ids = torch.randint(5, model.config.vocab_size, (2, 12), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "classifier" in name:
            batch["labels"] = torch.tensor([0, 2])
        elif "regression" in name:
            batch["labels"] = torch.tensor([0.5, -1.0])
        elif "several" in name:
            batch["labels"] = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 0]])[:, : model.config.num_labels]
        elif "mlm" in name:
            batch["labels"] = torch.where(torch.arange(12) % 3 == 0, ids, -100)
        found.append(batch)
    return found


@pytest.mark.parametrize("name", [c for c in CASES if c.endswith("pruned") or c in ("llama_gqa", "gpt2", "mpnet_encoder")])
def test_a_result_goes_on_as_a_model(name, tmp_path):
    theirs = stock(name)
    data = batches(name, theirs)
    before = {n: p.detach().clone() for n, p in theirs.named_parameters()}

    def optimise(model, out):
        strategy = get_strategy("auto", pruning_ratio=0.2, growth_ratio=0.3, calibration_samples=4)
        pipeline = UpgrayeddPipeline(model, strategy=strategy, max_steps_per_cycle=2, output_dir=out)
        return pipeline.run_optimization(data, num_cycles=1)

    smaller = optimise(theirs, tmp_path / "first")
    assert all(torch.equal(p, before[n]) for n, p in theirs.named_parameters()), "the caller's model has changed"
    left = sum(len(heads) for heads in smaller.active_heads.values())
    again = optimise(Model.from_pretrained(tmp_path / "first" / "model"), tmp_path / "second")
    assert sum(len(heads) for heads in again.active_heads.values()) < left
    torch_model = again.to_transformers().eval()
    ids = data[0]["input_ids"]
    with torch.no_grad():
        result = torch_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if hasattr(result, "logits"):
        got = torch.from_numpy(again.logits(ids.numpy()))
        assert torch.allclose(got, result.logits, atol=1e-4 * result.logits.abs().max().item())
    scores = again.score("wanda" if "encoder" in name else "fisher", data)
    assert {layer: len(values) for layer, values in scores.items()} == again.heads_per_layer
    assert upgrayedd.Model.from_pretrained(tmp_path / "second" / "model").num_parameters == again.num_parameters
