"""Makes `reading/*.json`: small variants of what people have, and what transformers and pandas read from them.

    python tests/golden/make_reading.py        (torch 2.15, transformers 5.23, pandas 3.1)

`models.json` changes config.json and tensors of the golden folders beside this file and has the loss on fixed tokens.
`tokenizers.json` has tokenizer files, texts and their ids. `tables.json` has tables as text and their rows.
"""

import io
import json
import pathlib
import tempfile

import pandas
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
IDS = [7, 12, 33, 5, 28, 19, 9, 38, 14, 6]


# Models: each case is a base, keys of config.json that are set (null in `drop` removes), and steps over its tensors.

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DECODER, WORDS = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
LLAMA3 = dict(type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
MODELS = [
    dict(name="as it is", base="llama_mha"),
    dict(name="an equal head is the embedding", base="llama_mha", steps=[["copy", EMBEDDING, HEAD]]),
    dict(name="a head that differs is one of its own", base="llama_mha", steps=[["roll", EMBEDDING, HEAD]]),
    dict(name="only the head is stored", base="llama_mha", steps=[["roll", EMBEDDING, HEAD], ["drop", EMBEDDING]]),
    dict(name="the same in a GPT-2", base="gpt2", steps=[["roll", "transformer.wte.weight", HEAD]]),
    dict(name="a decoder of its own", base="bert_mlm", steps=[["roll", WORDS, DECODER]]),
    dict(
        name="the bias under the decoder's name",
        base="bert_mlm",
        steps=[["rename", "cls.predictions.bias", "cls.predictions.decoder.bias"]],
    ),
    dict(
        name="both biases, which differ",
        base="bert_mlm",
        steps=[["roll", "cls.predictions.bias", "cls.predictions.decoder.bias"]],
    ),
    dict(
        name="no head and not tied",
        base="llama_mha",
        config=dict(tie_word_embeddings=False),
        says=["lm_head.weight", "tie_word_embeddings"],
    ),
    dict(
        name="a head for sentence pairs",
        base="bert_mlm",
        steps=[["add", "cls.seq_relationship.weight", 2, 24], ["add", "cls.seq_relationship.bias", 2]],
    ),
    dict(
        name="heads of other tasks",
        base="bert_classifier",
        steps=[["add", "qa_outputs.weight", 2, 24]],
        notes=["qa_outputs.weight"],
    ),
    dict(name="a buffer", base="llama_mha", steps=[["add", "model.layers.0.self_attn.rotary_emb.inv_freq", 3]]),
    dict(
        name="a weight of a layer that is not there",
        base="llama_mha",
        steps=[["add", "model.layers.0.self_attn.q_norm.weight", 6]],
        says=["q_norm"],
    ),
    *[
        dict(name=f"names with {what}", base=base, steps=[["rename", *rename]], renamed=True)
        for what, base, rename in [
            ("_orig_mod.", "llama_mha", ("", "_orig_mod.")),
            ("module.", "gpt2", ("", "module.")),
            ("a wrapper inside", "llama_mha", ("layers.0.", "layers.0._checkpoint_wrapped_module.")),
            ("a doubled prefix", "llama_gqa", ("", "model.")),
            ("another model around", "llama_mha", ("", "language_model.")),
            ("no prefix", "bert_encoder", ("bert.", "")),
        ]
    ],
    dict(
        name="an adapter's names",
        base="llama_mha",
        steps=[["rename", "q_proj.", "q_proj.base_layer."]],
        says=["PEFT", "merge_and_unload"],
    ),
    dict(
        name="linear scaling in the old spelling",
        base="llama_mha",
        drop=["rope_parameters"],
        config=dict(rope_scaling=dict(type="linear", factor=3.0), rope_theta=500.0),
    ),
    dict(
        name="the old spelling goes before the new",
        base="llama_mha",
        config=dict(rope_scaling=dict(type="linear", factor=3.0), rope_parameters=dict(rope_type="default", rope_theta=100.0)),
    ),
    dict(
        name="theta inside goes before theta outside",
        base="llama_mha",
        config=dict(rope_theta=500.0, rope_parameters=dict(rope_type="default", rope_theta=100.0)),
    ),
    dict(name="the original length is the length", base="llama_mha", config=dict(rope_parameters=LLAMA3)),
    dict(
        name="the original length on the top level",
        base="llama_mha",
        config=dict(rope_parameters=dict(LLAMA3, original_max_position_embeddings=16), original_max_position_embeddings=8),
    ),
    dict(
        name="scaling without its factor",
        base="llama_mha",
        config=dict(rope_parameters=dict(type="linear")),
        says=["linear", "factor"],
    ),
    dict(
        name="llama3 without a factor",
        base="llama_mha",
        config=dict(rope_parameters={k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}),
        says=["low_freq_factor"],
    ),
    dict(
        name="a factor that is text",
        base="llama_mha",
        config=dict(rope_parameters=dict(type="linear", factor="2")),
        says=["factor", '"2"'],
    ),
    dict(
        name="a kind that is not known",
        base="llama_mha",
        config=dict(rope_parameters=dict(type="yarn", factor=2.0)),
        says=["yarn", "llama3"],
    ),
    dict(name="an activation that is a number", base="llama_mha", config=dict(hidden_act=7), says=["hidden_act", "7"]),
    dict(name="null where a number has to be", base="llama_mha", config=dict(rms_norm_eps=None), says=["rms_norm_eps", "null"]),
    dict(
        name="quantised",
        base="llama_mha",
        config=dict(quantization_config=dict(quant_method="fp8")),
        says=["quantization_config"],
    ),
    dict(name="attention in both directions", base="llama_mha", config=dict(is_causal=False), says=["is_causal"]),
    dict(
        name="sizes under their general names",
        base="gpt2",
        drop=["n_embd", "n_layer", "n_head", "n_positions"],
        config=dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32),
    ),
    dict(name="a general name goes before the own", base="gpt2", config=dict(hidden_size=48), says=["wte", "48"]),
    dict(name="a key of another family", base="llama_mha", config=dict(residual_multiplier=0.2), notes=["residual_multiplier"]),
    dict(name="what a default says", base="gpt2", drop=["layer_norm_epsilon", "activation_function", "tie_word_embeddings"]),
    dict(
        name="labels by their names",
        base="bert_classifier",
        drop=["num_labels"],
        config=dict(id2label={"0": "a", "1": "b", "2": "c"}),
    ),
    dict(
        name="low before high",
        base="llama_mha",
        config=dict(rope_parameters=dict(LLAMA3, low_freq_factor=4.0, high_freq_factor=1.0)),
    ),
    dict(
        name="weights elsewhere",
        base="llama_mha",
        config=dict(transformers_weights="other.safetensors"),
        says=["transformers_weights"],
    ),
    dict(name="a window", base="llama_mha", config=dict(sliding_window=8), says=["sliding_window"]),
    dict(name="layers that see everything", base="llama_mha", config=dict(layer_types=["full_attention"] * 2)),
    dict(name="types of other layers", base="llama_mha", config=dict(layer_types=["full_attention"]), says=["layer_types has 1"]),
    dict(name="the head under the base's prefix", base="llama_mha", steps=[["roll", EMBEDDING, "model.lm_head.weight"]]),
    dict(
        name="a classifier under the base's prefix", base="bert_classifier", steps=[["rename", "classifier.", "bert.classifier."]]
    ),
    dict(
        name="one weight under two names",
        base="llama_mha",
        steps=[["roll", EMBEDDING, "embed_tokens.weight"]],
        says=["both", "embed_tokens"],
    ),
    dict(
        name="a norm under two names",
        base="bert_mlm",
        steps=[["copy", "bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"]],
        says=["both", "gamma"],
    ),
    dict(
        name="an untied decoder with one bias",
        base="bert_mlm",
        config=dict(tie_word_embeddings=False),
        steps=[["roll", WORDS, DECODER]],
        says=["decoder.bias"],
    ),
    dict(
        name="an untied decoder with both",
        base="bert_mlm",
        config=dict(tie_word_embeddings=False),
        steps=[["roll", WORDS, DECODER], ["roll", "cls.predictions.bias", "cls.predictions.decoder.bias"]],
    ),
    dict(
        name="labels in numbers that differ",
        base="bert_classifier",
        config=dict(num_labels=2, id2label={"0": "a", "1": "b", "2": "c"}),
        says=["num_labels", "id2label"],
    ),
]


def changed(case, folder):
    """Writes the variant of a golden folder."""
    base = HERE / case["base"]
    config = json.loads((base / "config.json").read_text())
    for key in case.get("drop", []):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | case.get("config", {})))
    tensors = load_file(base / "model.safetensors")
    for step, *rest in case.get("steps", []):
        if step == "copy":
            tensors[rest[1]] = tensors[rest[0]].clone()
        elif step == "roll":
            tensors[rest[1]] = tensors[rest[0]].roll(1, 0).clone()
        elif step == "drop":
            del tensors[rest[0]]
        elif step == "add":
            tensors[rest[0]] = torch.ones(rest[1:])
        elif step == "rename":
            tensors = {name.replace(*rest, 1): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def loss(folder):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    kind = getattr(transformers, architecture)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        if architecture == "BertModel":
            return model(ids).last_hidden_state.double().square().mean().item()
        labels = torch.tensor([1]) if "Classification" in architecture else ids
        return model(ids, labels=labels).loss.item()


def make_models():
    cases = []
    for case in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            # Names with a prefix are dropped by transformers, weights and all: right is what the model was before.
            changed(case | {"steps": []} if case.get("renamed") else case, folder)
            cases.append(case if "says" in case else case | {"loss": loss(folder)})
    return {"ids": IDS, "cases": cases}


# Tokenizers: six bases, and what stands beside them.

STORY = (
    "Once upon a time there was a kind girl. She had a red ball, and the ball was big! One day she can't find it.\n\n"
    '"Where is it?" she said. Él está aquí, naïve café; 北京 Größe.\n' * 3
)
TEXTS = [
    "Once upon a time there was a girl.",
    " She said: Él está aquí, naïve café  北京",
    "HELLO [MASK] <e1>ball</e1> there was</s> <s>",
    "Größe\n\n  can't   don't\t42",
    "a",
    "",
]
PAIRS = [["the girl", "she had a ball"]]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([STORY], trainer)
    return tokenizer


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        "É",
        "##É",
        "Él",
        "está",
        "él",
        "aquí",
        "café",
        "北",
        "京",
        "北京",
        "HELLO",
        "Größe",
        "größe",
        "grosse",
        "grös",
        "el",
    ]
    vocab = {}
    for token in special + sorted(set(STORY.lower()) - {" ", "\n"}) + sorted("##" + c for c in set(STORY.lower())) + words:
        vocab.setdefault(token, len(vocab))
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]")
    tokenizer.add_special_tokens(special)
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def metaspace():
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{b:02X}>" for b in range(256)],
        "▁",
        *"abcdefghijklmnopqrstuvwxyzO",
        "▁a",
        "al",
        "ball",
        "▁ball",
        "ba",
        "ll",
    ]
    vocab = {}
    for token in tokens:
        vocab.setdefault(token, len(vocab))
    merges = [("▁", "a"), ("a", "l"), ("b", "a"), ("l", "l"), ("ba", "ll"), ("▁", "ball")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return tokenizer


def unigram():
    pieces = ["▁", "▁a", "▁the", "▁ball", "▁girl", "all", "▁b", "▁she", "▁was", "▁there", "ere", "e", "a", "1", "É", "<mask>"]
    letters = sorted(set("bcdfghijklmnopqrstuvwxyz.!:'HELOSWGr2"))
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [(p, 0.0) for p in special] + [(p, -2.0 - 0.1 * i) for i, p in enumerate(pieces + letters)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([*special, "<mask>"])
    pair = "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", pair, [("<s>", 0), ("</s>", 2)])
    return tokenizer


def letters():
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: i + 3 for i, c in enumerate("ACDEFGHIKLMNPQRSTVWY")}}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token=None))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", [("<s>", 1), ("</s>", 2)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def added(content, **more):
    return dict(content=content, lstrip=False, rstrip=False, single_word=False, normalized=False, special=False) | more


def typed(content, **more):
    return {"__type": "AddedToken"} | added(content, **more)


def padded():
    tokenizer = byte_level()
    tokenizer.enable_padding(pad_id=0, pad_token="girl")
    return tokenizer


def patterns():
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"^\w"), "x"), normalizers.Replace(Regex(r"(?i)ss|[[:upper:]]"), "y")]
    )
    return tokenizer


BERT = dict(tokenizer_class="BertTokenizer")
GPT2 = dict(tokenizer_class="GPT2Tokenizer", unk_token="<unk>", bos_token="<s>", eos_token="</s>")
LLAMA = dict(tokenizer_class="LlamaTokenizerFast")
FAST = dict(tokenizer_class="PreTrainedTokenizerFast")
E1 = ["<e1>", "</e1>"]
TOKENIZERS = [
    # name, base, model_type, whether as vocabulary files, tokenizer_config.json, more files
    ("tokenizer.json alone", "bytes", "llama", False, None, {}),
    ("a class that takes it as it is", "bytes", "gpt2", False, FAST | dict(add_prefix_space=True, add_bos_token=True), {}),
    ("GPT-2's own class", "bytes", "gpt2", False, GPT2 | dict(add_prefix_space=True), {}),
    ("GPT-2's class by family", "bytes", "gpt2", False, None, {}),
    ("bytes under LlamaTokenizer", "bytes", "llama", False, LLAMA | dict(add_bos_token=True), {}),
    ("vocab.json", "bytes", "gpt2", True, GPT2, {}),
    ("vocab.json with bos", "bytes", "gpt2", True, GPT2 | dict(add_bos_token=True, add_eos_token=True), {}),
    ("vocab.json with a space", "bytes", "gpt2", True, GPT2 | dict(add_prefix_space=True), {}),
    ("added_tokens.json", "bytes", "gpt2", True, GPT2, {"added_tokens.json": {"there was": 290, "ball": 291}}),
    (
        "added_tokens_decoder",
        "bytes",
        "llama",
        False,
        FAST | dict(added_tokens_decoder={"290": added("there was"), "291": added("ball", lstrip=True)}),
        {},
    ),
    ("additional_special_tokens", "bytes", "llama", False, FAST | dict(additional_special_tokens=["there was", "time"]), {}),
    (
        "extra_special_tokens",
        "bytes",
        "llama",
        False,
        FAST | dict(extra_special_tokens=["there was"], additional_special_tokens=["time"]),
        {},
    ),
    ("extra_special_tokens by name", "bytes", "llama", False, FAST | dict(extra_special_tokens={"image_token": "there was"}), {}),
    ("a special token of the model's own", "bytes", "llama", False, FAST | dict(image_token="there was", pad_token="girl"), {}),
    (
        "special_tokens_map.json",
        "bytes",
        "llama",
        False,
        FAST,
        {"special_tokens_map.json": {"pad_token": "there was", "mask_token": added("girl", lstrip=True)}},
    ),
    (
        "a map that is not read",
        "bytes",
        "llama",
        False,
        FAST | dict(added_tokens_decoder={"290": added("time")}),
        {"special_tokens_map.json": {"pad_token": "there was"}},
    ),
    ("added_tokens.json beside tokenizer.json", "bytes", "llama", False, FAST, {"added_tokens.json": {"there was": 290}}),
    ("special tokens as text", "bytes", "llama", False, FAST | dict(split_special_tokens=True), {}),
    ("WordPiece", "pieces", "bert", False, BERT, {}),
    ("WordPiece with case", "pieces", "bert", False, BERT | dict(do_lower_case=False), {}),
    ("WordPiece with accents", "pieces", "bert", False, BERT | dict(strip_accents=False, tokenize_chinese_chars=False), {}),
    ("WordPiece as it is", "pieces", "bert", False, FAST, {}),
    ("vocab.txt", "pieces", "bert", True, None, {}),
    ("vocab.txt with accents", "pieces", "bert", True, BERT | dict(strip_accents=False), {}),
    (
        "vocab.txt with tokens",
        "pieces",
        "bert",
        True,
        BERT | dict(additional_special_tokens=E1),
        {"added_tokens.json": {"hello": 140}},
    ),
    ("vocab.txt with other names", "pieces", "bert", True, BERT | dict(cls_token="<s>", sep_token="</s>"), {}),
    (
        "tokens beside WordPiece",
        "pieces",
        "bert",
        False,
        BERT
        | dict(
            added_tokens_decoder={
                "2": added("[CLS]", special=True),
                "150": added("<e1>", special=True),
                "151": added("Hello", normalized=True),
            }
        ),
        {},
    ),
    ("Llama 2's class", "spaces", "llama", False, LLAMA, {}),
    ("Llama 2's old class", "spaces", "llama", False, LLAMA | dict(legacy=True), {}),
    ("Llama 2 without a space", "spaces", "llama", False, LLAMA | dict(add_prefix_space=False), {}),
    ("Llama 2 as it is", "spaces", "llama", False, FAST, {}),
    (
        "an empty object of extra tokens",
        "bytes",
        "llama",
        False,
        FAST | dict(extra_special_tokens={}, additional_special_tokens=["time"]),
        {},
    ),
    (
        "extra tokens in both files",
        "bytes",
        "llama",
        False,
        FAST | dict(extra_special_tokens={"image_token": "time"}),
        {"special_tokens_map.json": {"extra_special_tokens": ["girl"]}},
    ),
    (
        "one of the seven given as a meaning of the model's own",
        "bytes",
        "llama",
        False,
        FAST | dict(video_token="girl", extra_special_tokens={"bos_token": "there was"}),
        {"added_tokens.json": {"<s>": 310, "<e1>": 0}},
    ),
    (
        "a named token that is said to be nothing",
        "spaces",
        "llama",
        False,
        FAST | dict(cls_token={"__type": "AddedToken", "content": "ball", "rstrip": True}),
        {},
    ),
    ("a meaning twice", "bytes", "llama", False, FAST | dict(bos_token="<s>", extra_special_tokens={"bos_token": "girl"}), {}),
    (
        "tokens of the model's own, described and not",
        "bytes",
        "llama",
        False,
        FAST | dict(video_token="time", image_token=typed("girl")),
        {},
    ),
    (
        "a token twice with other flags",
        "bytes",
        "llama",
        False,
        FAST | dict(pad_token=typed("there", lstrip=True), extra_special_tokens=[typed("there", rstrip=True)]),
        {},
    ),
    (
        "an extra token that is not special",
        "bytes",
        "llama",
        False,
        FAST | dict(extra_special_tokens=[typed("there")], split_special_tokens=True),
        {},
    ),
    (
        "named in the map, listed apart",
        "pieces",
        "bert",
        True,
        BERT,
        {"special_tokens_map.json": {"additional_special_tokens": ["<E1>"]}, "added_tokens.json": {"<E1>": 140}},
    ),
    ("padding that is stored", "padded", "llama", False, FAST, {}),
    ("patterns of Oniguruma", "patterns", "llama", False, FAST, {}),
    ("pairs without types", "pieces", "bert", False, BERT | dict(model_input_names=["input_ids", "attention_mask"]), {}),
    ("a frame around unknown text", "letters", "llama", False, FAST, {}),
    ("an object that does not say what it is", "bytes", "llama", False, FAST | dict(bos_token={"content": "<E1>"}), {}),
    ("one in a list", "bytes", "llama", False, FAST | dict(extra_special_tokens=[{"content": "<E1>"}]), {}),
    ("RoBERTa's class by family", "bytes", "roberta", False, None, {}),
    ("RoBERTa with a space", "bytes", "roberta", False, dict(tokenizer_class="RobertaTokenizer", add_prefix_space=True), {}),
    ("RoBERTa's vocab.json", "bytes", "roberta", True, dict(tokenizer_class="RobertaTokenizerFast"), {}),
    ("RoBERTa with bos and eos", "bytes", "roberta", True, dict(add_bos_token=True, add_eos_token=True), {}),
    (
        "RoBERTa in another frame",
        "bytes",
        "roberta",
        False,
        dict(cls_token="girl", sep_token="ball", mask_token=typed(" had")),
        {},
    ),
    ("DistilBERT's class", "pieces", "distilbert", False, dict(tokenizer_class="DistilBertTokenizer"), {}),
    ("DistilBERT by family", "pieces", "distilbert", False, None, {}),
    (
        "DistilBERT's vocab.txt",
        "pieces",
        "distilbert",
        True,
        dict(tokenizer_class="DistilBertTokenizer", do_lower_case=False),
        {},
    ),
    ("MPNet by family", "pieces", "mpnet", False, None, {}),
    ("MPNet's vocab.txt", "pieces", "mpnet", True, dict(tokenizer_class="MPNetTokenizer", do_lower_case=False), {}),
    ("MPNet's mask", "pieces", "mpnet", False, dict(mask_token="[MASK]", cls_token="[CLS]", sep_token="[SEP]"), {}),
    ("XLM-R by family", "likeliest", "xlm-roberta", False, None, {}),
    ("XLM-R without a space", "likeliest", "xlm-roberta", False, dict(add_prefix_space=False, mask_token="<mask>"), {}),
    ("XLM-R as it is", "likeliest", "xlm-roberta", False, FAST, {}),
    ("CamemBERT by family", "likeliest", "camembert", False, None, {}),
    ("CamemBERT's own", "likeliest", "camembert", False, dict(unk_token="<pad>", additional_special_tokens=["ball"]), {}),
    ("Qwen2 by family", "bytes", "qwen2", False, None, {}),
    ("Qwen2 under another name", "bytes", "qwen2", False, FAST | dict(add_prefix_space=True), {}),
    ("Qwen2's vocab.json", "bytes", "qwen3", True, dict(tokenizer_class="Qwen2Tokenizer", eos_token="</s>"), {}),
    ("Qwen2's flags", "bytes", "qwen2", False, dict(mask_token=typed("girl", lstrip=True), extra_special_tokens=["ball"]), {}),
    ("XLM-R with a space that is null", "likeliest", "xlm-roberta", False, dict(add_prefix_space=None), {}),
    ("Qwen3 as it is", "bytes", "qwen3", False, FAST, {}),
    ("Gemma by family", "spaces", "gemma3_text", False, dict(bos_token="<s>", eos_token="</s>", pad_token="ll"), {}),
    ("Gemma 2 under Llama's name", "spaces", "gemma2", False, LLAMA, {}),
    ("GPT-NeoX by family", "bytes", "gpt_neox", False, None, {}),
    ("GPT-NeoX with bos", "bytes", "gpt_neox", False, dict(add_bos_token=True, bos_token="<s>", add_prefix_space=True), {}),
    ("GPT-NeoX's vocab.json", "bytes", "gpt_neox", True, dict(add_bos_token=True, bos_token="<s>"), {}),
    ("OPT", "bytes", "opt", False, GPT2 | dict(add_bos_token=True), {}),
    ("ModernBERT under another name", "bytes", "modernbert", False, GPT2 | dict(add_prefix_space=True), {}),
    ("Mistral under Llama's name", "spaces", "mistral", False, LLAMA, {}),
    ("two words before a text", "pieces", "bert", False, BERT | dict(cls_token="the start"), {}),
]


def make_tokenizers():
    made = [byte_level, word_piece, metaspace, unigram, letters, padded, patterns]
    bases = dict(
        zip(["bytes", "pieces", "spaces", "likeliest", "letters", "padded", "patterns"], [make() for make in made], strict=True)
    )
    files = {name: json.loads(tokenizer.to_str()) for name, tokenizer in bases.items()}
    cases = []
    for name, base, model_type, apart, config, more in TOKENIZERS:
        case = dict(name=name, base=base, model_type=model_type, apart=apart, files=dict(more))
        if config is not None:
            case["files"]["tokenizer_config.json"] = config
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
            for file, content in case["files"].items():
                (folder / file).write_text(json.dumps(content))
            write_vocabulary(files[base], apart, folder)
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder)
            except (TypeError, ValueError) as error:
                cases.append(case | {"refused": str(error)})
                continue
            case["ids"] = [tokenizer(text)["input_ids"] for text in TEXTS]
            pairs = [tokenizer(*pair) for pair in PAIRS]
            case["pairs"] = [[p["input_ids"], p.get("token_type_ids", [0] * len(p["input_ids"]))] for p in pairs]
        cases.append(case)
    return {"texts": TEXTS, "pairs": PAIRS, "bases": files, "cases": cases}


def write_vocabulary(tokenizer, apart, folder):
    if not apart:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    elif "merges" in tokenizer["model"]:
        (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
        merges = "".join(" ".join(merge) + "\n" for merge in tokenizer["model"]["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
    else:
        vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocab))


# Conversations: chat templates in the manners that are common, with marks around what an assistant says.

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}{{- message['content'] + '<|im_end|>' }}{% endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
THINKING = """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if message.role == 'user' and not ns.found %}{%- set ns.last = index %}{%- set ns.found = true %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\n' }}
    {%- if message.role == 'assistant' %}
        {%- set said = message.content.split('</think>')[-1].lstrip('\n') %}
        {%- generation %}
        {%- if loop.index0 > ns.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
        {{- said + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim + '\n\n' %}
{%- set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<|im_start|>' + role + '\n' + (first if loop.first else '') }}
{%- if role == 'model' %}
    {%- generation %}{{- message['content'] | trim + '<|im_end|>' }}{%- endgeneration %}
{%- else %}{{ message['content'].strip() + '<|im_end|>' }}{% endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}
"""
INST = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '[INST] ' ~ message['content'] ~ ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}{{- ' ' ~ message['content'] ~ eos_token }}{%- endgeneration %}
    {%- else %}{%- continue %}{{ message | tojson }}{% endif %}
{%- endfor %}"""
AS_JSON = """{%- for message in messages %}{{ message | tojson }}{{- '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '{"role"' }}{% endif %}"""
MARKED = """{{- strftime_now('') }}{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ('!' if 'name' in message else '') }}
    {%- if tools is none and message.role == 'assistant' %}
        {%-  generation  -%}{{ (message.reasoning_content or '') + message.content + '<|im_end|>' }}{%-endgeneration%}
    {%- else %}{{ message.content + '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""
TEMPLATES = {"marked": MARKED, "chatml": CHATML, "thinking": THINKING, "turns": TURNS, "inst": INST, "as json": AS_JSON}


def turns(*contents, system=None):
    roles = ["user", "assistant"]
    said = [dict(role=roles[i % 2], content=content) for i, content in enumerate(contents)]
    return ([dict(role="system", content=system)] if system else []) + said


CONVERSATIONS = [
    turns("Where is it?", "Here."),
    turns("Who was there?", "A girl. ", "And the ball?", "Él está aquí, café.", system="You know stories."),
    turns("a", "think", " b ", "She said: 北京\n\nand went."),
    turns("only a question"),
    [dict(turns("a")[0], name=None), dict(role="assistant", content="She said.", reasoning="the ball")],
]


def make_chats():
    base = byte_level()
    base.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    cases = []
    for name, template in TEMPLATES.items():
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>")
        for messages in CONVERSATIONS:
            made = tokenizer.apply_chat_template(
                messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
            )
            # Without marks: everything.
            learned = (
                made["assistant_masks"]
                if ("{%- generation" in template or "{%-  generation" in template)
                else [1] * len(made["input_ids"])
            )
            cases.append(dict(template=name, messages=messages, ids=made["input_ids"], learned=learned))
    return {"tokenizer": json.loads(base.to_str()), "templates": TEMPLATES, "cases": cases}


# Tables: what pandas writes and reads.

ROWS = pandas.DataFrame(
    {
        "id": [1, 2, 3, 4, 5],
        "text": ["plain", 'he said "no"', "a, b\tc", "two\nlines, one text", '"quoted'],
        "label": [0, 1, 2, 0, 1],
    }
)
TABLES = {
    "as pandas writes .csv": ("csv", ROWS.to_csv(index=False), {}),
    "as pandas writes .tsv": ("tsv", ROWS.to_csv(index=False, sep="\t"), dict(sep="\t")),
    "everything in quotes": ("csv", ROWS.to_csv(index=False, quoting=1), {}),
    "line ends of another system": ("csv", ROWS[:3].to_csv(index=False, lineterminator="\r\n") + "\r\n", {}),
    "with a byte order mark": ("csv", "\ufeff" + ROWS.to_csv(index=False), {}),
    "tabs in .csv": ("csv", ROWS.to_csv(index=False, sep="\t"), dict(sep="\t")),
    "semicolons": ("csv", ROWS.to_csv(index=False, sep=";"), dict(sep=";", delimiter=";")),
    "without a header": ("csv", ROWS.to_csv(index=False, header=False), dict(header=None, names=["id", "text", "label"])),
    "quotes that are text": (
        "tsv",
        'id\ttext\tlabel\n1\t"Open and never closed\t0\n2\tin the "middle" only\t1\n3\t"two" words\t2\n4\t12"\t0\n',
        dict(sep="\t", quoting=3),
    ),
}


def make_tables():
    cases = []
    for name, (extension, text, how) in TABLES.items():
        reading = {key: value for key, value in how.items() if key != "delimiter"}
        rows = pandas.read_csv(io.StringIO(text.removeprefix("\ufeff")), **reading)
        options = {"delimiter": how.get("delimiter"), "columns": how.get("names")}
        cases.append(
            dict(name=name, extension=extension, text=text, options=options, rows=rows[["text", "label"]].values.tolist())
        )
    return cases


for name, made in {
    "models": make_models(),
    "tokenizers": make_tokenizers(),
    "tables": make_tables(),
    "chats": make_chats(),
}.items():
    path = HERE / "reading" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(made, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path)
