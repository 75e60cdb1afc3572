"""GGUF files in the real llama.cpp (npm node-llama-cpp): the same probabilities as ours, the same tokens; and PyPI's gguf reads
them."""

import json
import pathlib
import subprocess

import gguf
import numpy
import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from upgrayedd import Model, UpgrayeddError

TESTS = pathlib.Path(__file__).resolve().parents[1]
CORPUS = (TESTS.parent / "README.md").read_text() + (TESTS.parent / "ARCHITECTURE.md").read_text()
TEXTS = [
    "Once upon a time, there was a little girl who liked to read.",
    "It's 1,234,567.89 m² — don't you think?",
    "  two spaces,\ttabs\n\nand lines \n",
    "Grüße aus Köln, naïve café, ÅÄÖ",
    "日本語のテキスト と 中文",
    "🙂👍🏽 emoji and \u200b nothing",
    "def f(x):\n    return x**2  # comment",
    "WE'LL see IF i'd BEEN told",
    "x",
    "<end>not a token<end>",
]
SPACE = "\u2581"

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASES = (
    rf"{UPPER}*{LOWER}+{SHORT}|{UPPER}+{LOWER}*{SHORT}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(cut=None, regex=True):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = level if cut is None else pre_tokenizers.Sequence([cut, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>", "<begin>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def split(pattern, ignore_merges=False):
    tokenizer = byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"), regex=False)
    tokenizer.model.ignore_merges = ignore_merges
    return tokenizer


def pieces(first):
    """A tokenizer as SentencePiece makes them: bytes for what has no token, and every way to make a token among the merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=True)
    trained.train_from_iterator([CORPUS], trainers.BpeTrainer(vocab_size=360, show_progress=False))
    order = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    texts = ["<unk>", "<begin>", "<end>"] + [f"<0x{byte:02X}>" for byte in range(256)] + [text for text, _ in order]
    vocab = {text: index for index, text in enumerate(texts)}
    made = [text for text, _ in order if len(text) > 1]
    ways = [(text[:at], text[at:]) for text in made for at in range(1, len(text))]
    merges = [(a, b) for a, b in ways if a in vocab and b in vocab]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(SPACE)] if first else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.add_special_tokens(["<unk>", "<begin>", "<end>"])
    if first:
        tokenizer.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 1)])
    return tokenizer


TOKENIZERS = {
    "gpt-2": lambda: byte_level(),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: split(WORDS, ignore_merges=True),
    "smaug-bpe": lambda: split(WORDS),
    "qwen2": lambda: split(WORDS.replace("{1,3}", "")),
    "gpt-4o": lambda: split(CASES),
    "pieces": lambda: pieces(True),
    "pieces, no space": lambda: pieces(False),
}
VOCAB = 704
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    max_position_embeddings=128,
)
GROUPED = dict(SIZES, num_key_value_heads=2, head_dim=8)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LONG = dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.3, 1.2], long_factor=[2.0, 5.0, 6.0, 7.0], rope_theta=1000.0)
LINEAR = dict(rope_type="linear", factor=2.0, rope_theta=500.0)
ROPE = dict(rope_type="default", rope_theta=500.0)
GEMMA = dict(GROUPED, query_pre_attn_scalar=12, sliding_window=5)

# Name: class, configuration, tokenizer, largest difference of a probability in 32 bits. ggml's GELU is a table in 16 bits.
DECODERS = {
    "llama": ("Llama", dict(GROUPED, rope_parameters=LLAMA3), "smollm", 1e-5),
    "llama, biases": ("Llama", dict(GROUPED, attention_bias=True, mlp_bias=True, rope_parameters=ROPE), "pieces", 1e-5),
    "mistral": ("Mistral", dict(GROUPED, sliding_window=None), "llama-bpe", 1e-5),
    "qwen2": ("Qwen2", dict(SIZES, num_key_value_heads=4), "qwen2", 1e-5),
    "qwen3": ("Qwen3", dict(GROUPED, rope_parameters=ROPE), "qwen2", 1e-5),
    "gemma2": ("Gemma2", GEMMA, "pieces, no space", 1e-3),
    "gemma2, no caps": (
        "Gemma2",
        dict(GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
        "pieces, no space",
        1e-3,
    ),
    "gemma3": (
        "Gemma3",
        dict(
            GEMMA,
            num_hidden_layers=7,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=4.0, rope_theta=5000.0),
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
            ),
        ),
        "pieces, no space",
        1e-3,
    ),
    "phi3": ("Phi3", dict(SIZES, num_key_value_heads=4, rope_parameters=ROPE), "gpt-4o", 1e-5),
    "phi3, long": (
        "Phi3",
        # A context there has 256 tokens at least, and factors for long texts go by the context.
        dict(
            SIZES,
            num_key_value_heads=4,
            rope_parameters=LONG,
            original_max_position_embeddings=512,
            max_position_embeddings=1024,
            sliding_window=None,
        ),
        "gpt-4o",
        1e-5,
    ),
    "smollm3": ("SmolLM3", dict(GROUPED, num_hidden_layers=5, rope_parameters=LINEAR), "smaug-bpe", 1e-5),
    "olmo2": ("Olmo2", dict(SIZES, num_key_value_heads=4), "gpt-2", 1e-5),
    "olmo2, tied": ("Olmo2", dict(SIZES, num_key_value_heads=4, tie_word_embeddings=True), "gpt-2", 1e-5),
    "gpt_neox": ("GPTNeoX", SIZES, "gpt-2", 5e-4),
    "gpt_neox, tied": ("GPTNeoX", dict(SIZES, tie_word_embeddings=True), "gpt-2", 5e-4),
    "gpt2": ("GPT2", dict(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=8, n_positions=128), "gpt-2", 5e-4),
}


def stock(kind, config):
    torch.manual_seed(len(kind))
    config = {"pad_token_id": 0, **config}
    made = getattr(transformers, f"{kind}Config" if kind != "Gemma3" else "Gemma3TextConfig")(**config)
    model = getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(made)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def tokenizer(name):
    made = TOKENIZERS[name]()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<begin>", eos_token="<end>")


def channels(model):
    return {name: [at, 8 + at, *range(20, 26)] for at, name in enumerate(model.mlp_names)}


def whole(model):
    pass


def narrower(model):
    model.prune(channels=channels(model))


def fewer_heads(model):
    """Half of the readers of each key/value head, others in each layer."""
    readers = 8 // len({model.kv_group_of(0, head) for head in range(8)})
    gone = [head for head in range(8) if head % readers < readers // 2]
    other = [head for head in range(8) if head % readers >= readers // 2]
    model.prune({name: other if at % 2 else gone for at, name in enumerate(model.layer_names)}, channels=channels(model))


def fewer_layers(model):
    last, mlp = model.layer_names[-1], model.mlp_names[-1]
    model.prune({last: list(range(8))}, channels={mlp: list(range(96))})


def uneven(model):
    """Key/value heads with one reader, with all, and none at all; a layer without attention."""
    first, second = model.layer_names
    model.prune({first: [1], second: [0, 1, 2, 4, 5, 6, 7]}, channels={model.mlp_names[0]: [3, 5, 7, 8]})


def no_attention(model):
    model.prune({model.layer_names[1]: list(range(8))}, channels={model.mlp_names[0]: [1]})


def no_mlp(model):
    model.prune(channels={model.mlp_names[1]: list(range(96))})


SHAPES = {shape.__name__: shape for shape in (whole, narrower, fewer_heads, fewer_layers, uneven, no_attention, no_mlp)}
STOCK = ("whole", "narrower", "fewer_heads")
FREE = ("uneven", "no_attention", "no_mlp")
WORKS = [(name, shape, "float32", "gguf") for name in DECODERS for shape in STOCK]
WORKS = [w for w in WORKS if w[1] != "fewer_heads" or not w[0].startswith(("olmo2", "phi3, long", "gpt_neox", "gpt2"))]
WORKS += [(name, "fewer_layers", "float32", "gguf") for name in ("llama", "qwen3", "gemma3", "smollm3")]
WORKS += [(name, shape, "float32", "gguf") for name in ("llama", "llama, biases", "mistral", "qwen2") for shape in FREE]
WORKS += [("llama", shape, dtype, "gguf") for shape in ("fewer_heads", "uneven") for dtype in ("float16", "bfloat16")]
WORKS += [("llama", shape, "float32", "gguf-q8_0") for shape in ("fewer_heads", "uneven")]
TOKENS = [7, 12, 333, 5, 9, 21, 3, 170, 41, 42, 4, 99]


@pytest.fixture(scope="module")
def in_llama_cpp(tmp_path_factory):
    """What llama.cpp computes of every file, and the models that were written."""
    subprocess.run([TESTS.parent / "scripts" / "node-env"], check=True)
    root = tmp_path_factory.mktemp("gguf")
    jobs, written = [], []
    made = {name: tokenizer(name) for name in TOKENIZERS}
    for index, (name, shape, dtype, format) in enumerate(WORKS):
        kind, config, tokens, _ = DECODERS[name]
        model = Model.from_transformers(stock(kind, config), made[tokens])
        SHAPES[shape](model)
        model.save_pretrained(root / str(index), format=format, dtype=dtype)
        file = root / str(index) / ("model-q8_0.gguf" if format == "gguf-q8_0" else "model.gguf")
        jobs.append({"file": str(file), "tokens": TOKENS, "texts": TEXTS})
        written.append((model, file))
    return written, run(jobs, root)


def run(jobs, root):
    """What the client says of each job; a job at which it dies is an error, and the next process goes on after it."""
    client, found = TESTS / "node" / "llama.mjs", []
    while len(found) < len(jobs):
        (root / "out.json").write_text("[]")
        (root / "jobs.json").write_text(json.dumps(jobs[len(found) :]))
        process = subprocess.run(
            ["node", client, root / "jobs.json", root / "out.json"], cwd=client.parent, capture_output=True, text=True
        )
        found += json.loads((root / "out.json").read_text())
        if process.returncode != 0 and len(found) < len(jobs):
            found.append({"error": process.stderr[-2000:]})
    return found


def version_of(package):
    return f"npm {package} {json.loads((TESTS / 'node' / 'package.json').read_text())['dependencies'][package]}"


def probabilities(logits):
    logits = numpy.asarray(logits, dtype=float)
    powers = numpy.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: "-".join(work).replace(" ", "_"))
def test_llama_cpp_computes_the_same(work, in_llama_cpp, differences):
    name, shape, dtype, format = work
    written, found = in_llama_cpp
    index = WORKS.index(work)
    (model, file), theirs = written[index], found[index]
    assert "error" not in theirs, theirs["error"]
    # Heads of Qwen2 and Phi-3 are as wide together as the model there.
    deci = shape in FREE or (name, shape) in (("qwen2", "fewer_heads"), ("phi3", "fewer_heads"))
    assert (theirs["architecture"] == "deci") == deci
    bound = DECODERS[name][3]
    if format == "gguf-q8_0":
        bound = 2e-2
    elif dtype != "float32":
        bound = 5e-3
    want = probabilities(model.logits(numpy.array([TOKENS]))[0])
    difference = numpy.abs(probabilities(theirs["logits"]) - want).max()
    kind = "gguf-q8_0" if format == "gguf-q8_0" else f"gguf {dtype}"
    differences("llama.cpp", version_of("node-llama-cpp"), model.family, f"{kind}: {shape.replace('_', ' ')}", difference)
    assert difference <= bound
    reader = gguf.GGUFReader(file)
    first = [reader.get_field("tokenizer.ggml.bos_token_id").contents()]
    before = first if reader.get_field("tokenizer.ggml.add_bos_token").contents() else []
    assert [before + tokens for tokens in theirs["texts"]] == [model.tokenizer.encode(text) for text in TEXTS]
    assert reader.get_field("general.architecture").contents() == theirs["architecture"]
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == VOCAB
    assert {tensor.name for tensor in reader.tensors} >= {"token_embd.weight", "output_norm.weight", "blk.0.attn_output.weight"}


SENTENCES = ["The cat sat on a mat.", "It's 12 Café, naïve ÅÄÖ!", "a model of layers and heads"]


def words(lowercase):
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator([CORPUS], trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def bert(lowercase):
    torch.manual_seed(3)
    config = transformers.BertConfig(**{**SIZES, "max_position_embeddings": 64})
    theirs = transformers.BertModel(config, add_pooling_layer=False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return Model.from_transformers(theirs, words(lowercase))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_llama_cpp_encodes_sentences(pooling, tmp_path, differences):
    subprocess.run([TESTS.parent / "scripts" / "node-env"], check=True)
    bert(True).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "1_Pooling").mkdir()
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (tmp_path / "base" / "modules.json").write_text(json.dumps(modules))
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
    (tmp_path / "base" / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    model = Model.from_pretrained(tmp_path / "base")
    model.prune(channels=channels(model))
    model.save_pretrained(tmp_path / "out", format="gguf", dtype="float32")
    (found,) = run([{"file": str(tmp_path / "out" / "model.gguf"), "sentences": SENTENCES}], tmp_path)
    assert "error" not in found, found["error"]
    for sentence, ids, got in zip(SENTENCES, found["sentences"], found["embeddings"], strict=True):
        tokens = model.tokenizer.encode(sentence)
        assert ids == tokens[1:-1]
        states = model.hidden_states(numpy.array([tokens]))[0]
        want = states.mean(0) if pooling == "mean" else states[0]
        difference = numpy.abs(numpy.array(got) / numpy.linalg.norm(got) - want / numpy.linalg.norm(want)).max()
        differences("llama.cpp", version_of("node-llama-cpp"), "bert", f"gguf float32: {pooling} of narrower", difference)
        # Its GELU is the approximation by tanh, in 16 bits.
        assert difference <= 5e-3


def test_eight_bits_are_those_of_the_gguf_package(tmp_path):
    kind, config, tokens, _ = DECODERS["llama"]
    model = Model.from_transformers(stock(kind, config), tokenizer(tokens))
    model.save_pretrained(tmp_path / "8", format="gguf-q8_0")
    model.save_pretrained(tmp_path / "32", format="gguf")
    wide = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "32" / "model.gguf").tensors}
    seen = 0
    for tensor in gguf.GGUFReader(tmp_path / "8" / "model-q8_0.gguf").tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            seen += 1
            want = gguf.quants.quantize(wide[tensor.name].data, gguf.GGMLQuantizationType.Q8_0)
            assert numpy.array_equal(tensor.data.reshape(want.shape), want), tensor.name
    assert seen == 2 * 7 + 2


def test_what_llama_cpp_cannot_do_is_refused(tmp_path):
    def refused(name, shape, words, **changed):
        kind, config, tokens, _ = DECODERS[name]
        model = Model.from_transformers(stock(kind, {**config, **changed}), tokenizer(tokens))
        SHAPES[shape](model)
        with pytest.raises(UpgrayeddError) as error:
            model.save_pretrained(tmp_path / "out", format="gguf")
        assert words in str(error.value) and not (tmp_path / "out").exists(), str(error.value)

    refused("gpt2", "uneven", "layers differ in their channels: shape uniform makes all layers alike")
    refused("qwen3", "uneven", "norms of queries and keys")
    refused(
        "gemma3",
        "whole",
        "has windows in all layers but each 6th",
        sliding_window_pattern=2,
        num_hidden_layers=4,
        layer_types=None,
    )
    refused("smollm3", "whole", "rotates heads in other layers", no_rope_layers=[1, 0, 1, 1, 1])
    model = bert(lowercase=False)
    with pytest.raises(UpgrayeddError, match="there they are lowered without accents"):
        model.save_pretrained(tmp_path / "out", format="gguf")
    refused("gemma2", "whole", "predicts by its embedding", tie_word_embeddings=False)
    refused("llama", "whole", "has no rotations for long texts", rope_parameters=dict(LONG, original_max_position_embeddings=64))
    refused("phi3, long", "uneven", "has no rotations for long texts")
    refused("llama", "whole", "the tokenizer has 400 tokens, the model only 64", vocab_size=64)


def test_a_module_that_llama_cpp_lacks_is_refused(tmp_path):
    bert(True).save_pretrained(tmp_path / "base")
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in ("Transformer", "Dense")]
    (tmp_path / "base" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UpgrayeddError, match="modules.json has a module Dense"):
        Model.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "out", format="gguf")


def test_what_tokens_do_otherwise_is_said(tmp_path):
    kind, config, tokens, _ = DECODERS["llama"]
    made = tokenizer(tokens)
    made.add_tokens([AddedToken("<|user|>", rstrip=True, special=True)])
    model = Model.from_transformers(stock(kind, config), made)
    model.save_pretrained(tmp_path / "out", format="gguf,gguf-q8_0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "In the model's tokenizer <|user|> takes the spaces after it, and not in llama.cpp" in card
    assert (tmp_path / "out" / "model.gguf").is_file() and (tmp_path / "out" / "model-q8_0.gguf").is_file()
    with pytest.raises(UpgrayeddError, match="format gguf is named twice"):
        model.save_pretrained(tmp_path / "twice", format="gguf,gguf")


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path):
    kind, config, _, _ = DECODERS["llama"]
    odd = PreTrainedTokenizerFast(tokenizer_object=split(r"\p{L}+|\p{N}+|[^\p{L}\p{N}]+"), eos_token="<end>")
    model = Model.from_transformers(stock(kind, config), odd)
    with pytest.raises(UpgrayeddError, match="llama.cpp has no tokenizer like this one: texts are cut by"):
        model.save_pretrained(tmp_path / "out", format="gguf")
    with pytest.raises(UpgrayeddError, match="came without a tokenizer"):
        Model.from_transformers(stock(kind, config)).save_pretrained(tmp_path / "out", format="gguf")
