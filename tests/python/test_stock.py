"""Models whose layers are all alike are written as stock models: transformers 5 and 4 load them in fresh processes, without
remote code, and compute what we do."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import load_folders
import numpy
import pytest
import torch

from upgrayedd import Model, UpgrayeddError, UpgrayeddPipeline
from upgrayedd.strategies import get_strategy

TESTS = pathlib.Path(__file__).resolve().parent
GOLDEN = TESTS.parent / "golden"
CASES = sorted(p.name for p in GOLDEN.iterdir() if (p / "golden.safetensors").is_file())
CLIENT = TESTS / "load_folders.py"
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
def test_a_fresh_process_computes_the_same(work, version, served, differences):
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
    difference = numpy.abs(got - want).max() / numpy.abs(want).max()
    shown = f"{format}: {shape}"
    differences("transformers", str(found[version]["version"]), models[index].family, shown, difference)
    assert difference <= 1e-4
    # transformers 4 begins its cache anew where rotations for long texts begin.
    if f"{index}/text" in found[version] and (name, version) != ("phi3_long", "4"):
        assert found[version][f"{index}/text"].tolist() == models[index].generate(load_folders.PROMPT, max_new_tokens=12)


TEXTS = ["a story, twice", "<extra>and<begin> it's 12.5 %"]


def test_a_tokenizer_of_transformers_5_is_read_by_4(tmp_path):
    """transformers 5 names a class and lists tokens in ways that 4 does not know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:36]
    vocab = {text: index for index, text in enumerate(["<end>", "<begin>", "<extra>", "<pad>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = dict(bos_token="<begin>", eos_token="<end>", pad_token="<pad>", extra_special_tokens=["<extra>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    tokenizer.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "TokenizersBackend" and config["extra_special_tokens"] == ["<extra>"]
    model = Model.from_transformers(LlamaForCausalLM.from_pretrained(GOLDEN / "llama_gqa"), tokenizer)
    model.save_pretrained(tmp_path / "ours")
    jobs = [{"folder": str(tmp_path / "ours"), "auto": "AutoModelForCausalLM", "generate": False, "texts": TEXTS}]
    want = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], -1]]
    for version, path in [("5", None), ("4", TRANSFORMERS_4)]:
        found = in_a_fresh_process(jobs, tmp_path, path)
        assert "0/error" not in found, found["0/error"]
        assert str(found["version"]).startswith(f"{version}.")
        assert found["0/tokens"].tolist() == want
        assert found["0/special"].tolist() == sorted(["<begin>", "<end>", "<extra>", "<pad>"])


# Without biases: a layer that has nothing left can go.
BASE = GOLDEN / "llama3_rope"


def run(out, units, **options):
    """A run on a golden model whose result is a stock folder."""
    data = [{"input_ids": torch.randint(5, 40, (2, 12), generator=torch.Generator().manual_seed(i))} for i in range(10)]
    strategy = get_strategy("fisher", growth_ratio=0.0, calibration_samples=4, **options)
    pipeline = UpgrayeddPipeline(
        Model.from_pretrained(BASE),
        strategy=strategy,
        units=units,
        shape="uniform",
        max_steps_per_cycle=2,
        output_dir=out,
    )
    return pipeline.run_optimization(data, num_cycles=1)


@pytest.mark.parametrize(("units", "ratio"), [("heads,channels", 0.3), ("layers", 0.5)])
def test_a_run_keeps_what_its_stock_result_was_made_of(units, ratio, tmp_path):
    smaller = run(tmp_path / "run", units, pruning_ratio=ratio)
    folder = tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert "upgrayedd" not in config and not list(folder.glob("*.py"))
    # By itself the folder is a whole model; as part of its run it knows its units, and has those that left.
    shutil.copytree(folder, tmp_path / "alone")
    alone = Model.from_pretrained(tmp_path / "alone")
    assert alone.original_heads == alone.heads_per_layer and alone.num_parameters < Model.from_pretrained(BASE).num_parameters
    again = Model.from_pretrained(tmp_path / "run")
    assert again.active_heads == smaller.active_heads and again.active_channels == smaller.active_channels
    ids = load_folders.IDS.numpy()
    assert numpy.array_equal(again.logits(ids), alone.logits(ids)) and numpy.array_equal(again.logits(ids), smaller.logits(ids))
    again.restore(again.pruned_heads, channels=again.pruned_channels)
    assert again.active_heads == Model.from_pretrained(BASE).active_heads
    assert again.num_parameters == Model.from_pretrained(BASE).num_parameters


def test_the_card_says_what_was_done_and_who_loads_it(tmp_path):
    run(tmp_path / "run", "heads,channels", pruning_ratio=0.3)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| held-out loss (chunks) |" in card and "a stock model of its family: it loads anywhere" in card
    assert "upgrayedd optimize" in card and str(tmp_path) not in card and card.count("BLAKE3") == 2
    Model.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "dense", format="hf-dense")
    other = (tmp_path / "dense" / "README.md").read_text()
    assert "| held-out loss (chunks) |" in other and "zeros where units were" in other and "stock model of" not in other
    # What has changed since is not what was measured.
    changed = Model.from_pretrained(tmp_path / "run")
    changed.prune({changed.layer_names[0]: changed.active_heads[changed.layer_names[0]][:1]})
    changed.save_pretrained(tmp_path / "changed")
    card = (tmp_path / "changed" / "README.md").read_text()
    assert "| held-out loss" not in card and "trust_remote_code=True" in card
    code = (tmp_path / "changed" / "modeling_upgrayedd.py").read_text()
    assert code.splitlines()[1].split()[-1] in card


def test_a_license_is_that_of_the_base(tmp_path):
    folder = tmp_path / "base"
    Model.from_pretrained(GOLDEN / "gpt2").save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense:\n- mit\n- apache-2.0\nlicense_link: LICENSE\nlanguage: en\n---\n# Base\n")
    Model.from_pretrained(folder).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense:\n- mit\n- apache-2.0\n---\n" in card and "# base" in card and "pruned" not in card


def test_what_transformers_4_cannot_be_told_is_said(tmp_path):
    """Rotations that its classes do not take: the card names version 5."""
    from transformers import Gemma3ForCausalLM

    theirs = Gemma3ForCausalLM.from_pretrained(GOLDEN / "gemma3_pruned")
    theirs.config.rope_parameters["sliding_attention"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
    model = Model.from_transformers(theirs)
    prune(model, "channels")
    model.save_pretrained(tmp_path / "gemma3")
    card = (tmp_path / "gemma3" / "README.md").read_text()
    assert (
        "in version 5, since version 4 knows no scaled rotations of layers with a window" in card and "loads anywhere" not in card
    )


def test_a_path_does_not_leave(tmp_path):
    from transformers import LlamaForCausalLM

    Model.from_transformers(LlamaForCausalLM.from_pretrained(GOLDEN / "llama_gqa")).save_pretrained(tmp_path / "out")
    assert str(GOLDEN) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.[jm][sd]*"))


def test_a_result_obeys_its_folder(tmp_path):
    """Units are the run's, everything else is as config.json says now."""
    run(tmp_path / "run", "heads,channels", pruning_ratio=0.3)
    file = tmp_path / "run" / "model" / "config.json"
    config = json.loads(file.read_text())
    before = Model.from_pretrained(tmp_path / "run").logits(load_folders.IDS.numpy())
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 77.0
    config["rms_norm_eps"] = 0.1
    file.write_text(json.dumps(config))
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "alone")
    changed, alone = (
        Model.from_pretrained(path).logits(load_folders.IDS.numpy()) for path in (tmp_path / "run", tmp_path / "alone")
    )
    assert numpy.array_equal(changed, alone) and not numpy.array_equal(changed, before)


def test_formats_that_would_be_the_same_folder_are_refused(tmp_path):
    model = Model.from_pretrained(GOLDEN / "bert_encoder")
    with pytest.raises(UpgrayeddError, match="hf and hf-dense would both be config.json"):
        model.save_pretrained(tmp_path / "out", format="hf,hf-dense")
    model.save_pretrained(tmp_path / "out", format="onnx,hf")
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "onnx" / "model.onnx").is_file()
    with pytest.raises(OSError, match="already exists"):
        model.save_pretrained(tmp_path / "out", format="hf-v4")
