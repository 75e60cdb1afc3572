"""ONNX graphs of encoders and classifiers: checked by onnx, run in onnxruntime and in transformers.js."""

import json
import pathlib
import subprocess

import numpy
import onnx
import onnxruntime
import pytest
from test_stock import CASES, GOLDEN, auto

from upgrayedd import Model, UpgrayeddError

TESTS = pathlib.Path(__file__).resolve().parents[1]
ENCODERS = [name for name in CASES if auto(name) != "AutoModelForCausalLM"]
IDS = numpy.array([[7, 12, 33, 5, 9, 21, 3, 17, 4], [2, 30, 4, 25, 19, 6, 1, 1, 1], [8, 9, 3, 14, 1, 1, 1, 1, 1]])
MASK = (IDS != 1).astype(numpy.int64)
MASK[0] = 1


def whole(model):
    pass


def free(model):
    """Heads and channels that differ from layer to layer."""
    first, second = model.layer_names
    model.prune({first: [1], second: [0, 3]}, channels={model.mlp_names[0]: [3, 5, 7, 8]})


def blocks(model):
    """A layer without attention, another without its MLP."""
    first, second = model.layer_names
    mlp = model.mlp_names[1]
    model.prune({first: list(range(model.original_heads[first]))}, channels={mlp: list(range(model.original_channels[mlp]))})


SHAPES = {shape.__name__: shape for shape in (whole, free, blocks)}


def types_of(session):
    """Token types, where a graph asks for them: of pairs whose second text begins in the middle."""
    if "token_type_ids" not in [one.name for one in session.get_inputs()]:
        return {}
    return {"token_type_ids": numpy.tile((numpy.arange(IDS.shape[1]) > 4).astype(numpy.int64), (len(IDS), 1))}


def expected(model, feed):
    import torch

    theirs = model.to_transformers().float().eval()
    with torch.no_grad():
        out = theirs(**{name: torch.from_numpy(value) for name, value in feed.items()})
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


def distance(got, want):
    assert got.shape == want.shape
    if got.ndim == 3:
        # What padding computes is nobody's.
        got, want = got[MASK.astype(bool)], want[MASK.astype(bool)]
    return numpy.abs(got - want).max() / numpy.abs(want).max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ENCODERS)
def test_onnxruntime_computes_the_same(name, shape, tmp_path, differences):
    model = Model.from_pretrained(GOLDEN / name)
    SHAPES[shape](model)
    model.save_pretrained(tmp_path / "out", format="onnx", dtype="float32")
    file = tmp_path / "out" / "onnx" / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {"input_ids": IDS, "attention_mask": MASK, **types_of(session)}
    difference = distance(session.run(None, feed)[0], expected(model, feed))
    differences("onnxruntime", onnxruntime.__version__, model.family, f"onnx: {shape}", difference)
    assert difference <= 1e-4
    # Any other size.
    one = {key: value[:1, :4] for key, value in feed.items()}
    assert session.run(None, one)[0].shape[0] == 1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == model.family and "auto_map" not in config and "upgrayedd" not in config


def test_half_the_bytes_and_nearly_the_same(tmp_path):
    model = Model.from_pretrained(GOLDEN / "bert_encoder")
    for dtype in ("float32", "float16"):
        model.save_pretrained(tmp_path / dtype, format="onnx", dtype=dtype)
    wide, half = tmp_path / "float32/onnx/model.onnx", tmp_path / "float16/onnx/model_fp16.onnx"
    session = onnxruntime.InferenceSession(half, providers=["CPUExecutionProvider"])
    feed = {"input_ids": IDS, "attention_mask": MASK, **types_of(session)}
    assert distance(session.run(None, feed)[0], expected(model, feed)) <= 5e-3
    assert 'dtype: "fp16"' in (tmp_path / "float16" / "README.md").read_text()
    weights = [sum(len(t.raw_data) for t in onnx.load(file).graph.initializer) for file in (wide, half)]
    assert weights[1] < 0.55 * weights[0]


def test_numbers_that_16_bits_cannot_hold_are_refused(tmp_path):
    import torch
    from transformers import BertModel

    theirs = BertModel.from_pretrained(GOLDEN / "bert_encoder")
    with torch.no_grad():
        theirs.embeddings.word_embeddings.weight[3, 4] = 1e5
    with pytest.raises(UpgrayeddError, match="holds 100000, which float16 cannot store"):
        Model.from_transformers(theirs).save_pretrained(tmp_path / "out", format="onnx", dtype="float16")


def test_decoders_are_told_of_gguf(tmp_path):
    model = Model.from_pretrained(GOLDEN / "llama_gqa")
    with pytest.raises(UpgrayeddError, match="a decoder goes to other programs as format gguf"):
        model.save_pretrained(tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def tokenizer(vocab):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    names = dict(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **names)


WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a the cat dog sat on mat ran far ##s ##ing and . , b c d e f g h i j k l m n o p q r s t u v"
)
TEXTS = ["The cat sat on a mat.", "dogs ran", "a b c d e f , and sitting cats ran far far far ."]


def test_transformers_js_encodes_sentences(tmp_path, differences):
    """In Node, from local files: the pooled hidden states are ours."""
    import torch
    from transformers import BertModel

    subprocess.run([TESTS.parent / "scripts" / "node-env"], check=True)
    vocab = {word: index for index, word in enumerate(WORDS.split())}
    assert len(vocab) == 40
    model = Model.from_transformers(BertModel.from_pretrained(GOLDEN / "bert_encoder"), tokenizer(vocab))
    free(model)
    (tmp_path / "models").mkdir()
    model.save_pretrained(tmp_path / "models" / "sentences", format="onnx", dtype="float32")
    job = {"folder": str(tmp_path / "models"), "model": "sentences", "texts": TEXTS}
    (tmp_path / "job.json").write_text(json.dumps(job))
    client = TESTS / "node" / "sentences.mjs"
    subprocess.run(["node", client, tmp_path / "job.json", tmp_path / "out.json"], check=True, cwd=client.parent)
    found = json.loads((tmp_path / "out.json").read_text())
    theirs = model.to_transformers().float().eval()
    for text, ids, got in zip(TEXTS, found["ids"], found["embeddings"], strict=True):
        assert ids == model.tokenizer.encode(text)
        with torch.no_grad():
            want = theirs(input_ids=torch.tensor([ids])).last_hidden_state.mean(1)[0].numpy()
        difference = numpy.abs(numpy.array(got) - want).max() / numpy.abs(want).max()
        differences("transformers.js", found["version"], model.family, "onnx: free", difference)
        assert difference <= 1e-4
