"""Models whose layers are all alike are written as stock models: transformers 5 and 4 load them in fresh processes, without
remote code, and compute what we do."""

import json
import os
import pathlib
import subprocess
import sys

import numpy
import pytest
import torch
from clients import load_folders

from upgrayedd import Model

TESTS = pathlib.Path(__file__).resolve().parent
GOLDEN = TESTS.parent / "golden"
CASES = sorted(p.name for p in GOLDEN.iterdir() if (p / "golden.safetensors").is_file())
CLIENT = TESTS / "clients" / "load_folders.py"
TRANSFORMERS_4 = pathlib.Path(sys.prefix) / "transformers4"

AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "Model": "AutoModel",
}
LISTED = ("gpt2", "bert", "roberta", "xlm_roberta", "camembert", "distilbert")


def auto(name):
    (architecture,) = json.loads((GOLDEN / name / "config.json").read_text())["architectures"]
    return next(auto for end, auto in AUTO.items() if architecture.endswith(end))


def channels(model):
    """Four of each layer's, others in each."""
    return {name: [at, 5 + at, 11, 20 + 3 * at] for at, name in enumerate(model.mlp_names)}


def heads(model):
    """One reader of each key/value head, others in each layer."""
    gone = {}
    for at, name in enumerate(model.layer_names):
        groups = {}
        for head in range(model.original_heads[name]):
            groups.setdefault(model.kv_group_of(name, head), []).append(head)
        gone[name] = [readers[at % len(readers)] for readers in groups.values()]
    return gone


def has_key_value_heads(model):
    first = model.layer_names[0]
    return model.kv_group_of(first, 1) == 0


def prune(model, shape):
    if shape == "channels":
        model.prune(channels=channels(model))
    elif shape == "heads":
        model.prune(heads(model), channels=channels(model))
    elif shape == "a layer":
        model.prune({model.layer_names[1]: list(range(model.original_heads[model.layer_names[1]]))})
        model.prune(channels={model.mlp_names[1]: list(range(model.original_channels[model.mlp_names[1]]))})
    elif shape == "listed":
        first, second = model.layer_names
        model.prune({first: [1], second: [0, 2]}, channels=channels(model))


def shapes(name):
    model = Model.from_pretrained(GOLDEN / name)
    yield "whole"
    yield "channels"
    # Heads of OLMo 2 stay, and those of Phi-3 need rotations of usual length to be another number.
    if has_key_value_heads(model) and model.family not in ("olmo2", "phi3"):
        yield "heads"
        if "bias" not in " ".join(n for n in model.named_parameters() if "o_proj" in n or "down_proj" in n):
            yield "a layer"


WORKS = [(name, shape, "hf") for name in CASES for shape in shapes(name)]
WORKS += [(name, "listed", "hf-v4") for name in CASES if name.startswith(LISTED)]


def in_a_fresh_process(jobs, folder, path=None):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {}), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, CLIENT, folder / "jobs.json", folder / "out.npz"], check=True, env=environment)
    return numpy.load(folder / "out.npz")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What both versions compute of every folder, and the models that were written."""
    root = tmp_path_factory.mktemp("stock")
    jobs, models = [], []
    for index, (name, shape, format) in enumerate(WORKS):
        model = Model.from_pretrained(GOLDEN / name)
        prune(model, shape)
        folder = root / str(index)
        model.save_pretrained(folder, format=format)
        assert not list(folder.glob("*.py")) and "auto_map" not in (folder / "config.json").read_text()
        jobs.append({"folder": str(folder), "auto": auto(name), "generate": auto(name) == "AutoModelForCausalLM"})
        models.append(model)
    found = {}
    for version, path in [("5", None), ("4", TRANSFORMERS_4)]:
        folder = root / f"transformers{version}"
        folder.mkdir()
        found[version] = in_a_fresh_process(jobs, folder, path)
        assert str(found[version]["version"]).startswith(f"{version}."), found[version]["version"]
    return models, found


@pytest.mark.parametrize("version", ["5", "4"])
@pytest.mark.parametrize("work", WORKS, ids=lambda work: "-".join(work).replace(" ", "_"))
def test_a_fresh_process_computes_the_same(work, version, served):
    models, found = served
    name, shape, format = work
    index = WORKS.index(work)
    if f"{index}/error" in found[version]:
        error = str(found[version][f"{index}/error"])
        assert (format, version) == ("hf-v4", "5"), error
        return
    assert (format, version) != ("hf-v4", "5"), "it loads now: say so"
    theirs = models[index].to_transformers().float().eval()
    ids = load_folders.IDS
    with torch.no_grad():
        out = theirs(input_ids=ids, attention_mask=torch.ones_like(ids))
    want = (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()
    got = found[version][f"{index}/out"]
    assert got.shape == want.shape
    assert numpy.abs(got - want).max() <= 1e-4 * numpy.abs(want).max()
    # transformers 4 begins its cache anew where rotations for long texts begin.
    if f"{index}/text" in found[version] and (name, version) != ("phi3_long", "4"):
        assert found[version][f"{index}/text"].tolist() == models[index].generate(load_folders.PROMPT, max_new_tokens=12)
