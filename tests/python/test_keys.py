"""transformers' own configuration keys beside the tables of docs/config-keys.md: a new one has to be decided by somebody."""

import dataclasses
import inspect
import pathlib
import re

import pytest
import transformers
from transformers import CONFIG_MAPPING, GenerationConfig, LlamaConfig, PreTrainedConfig, masking_utils
from transformers.modeling_rope_utils import RotaryEmbeddingConfigMixin
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name
from transformers.tokenization_python import PythonBackend
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZERS = (
    transformers.BertTokenizer,
    transformers.CamembertTokenizer,
    transformers.DistilBertTokenizer,
    transformers.GemmaTokenizer,
    transformers.GPT2Tokenizer,
    transformers.GPTNeoXTokenizer,
    transformers.LlamaTokenizer,
    transformers.MPNetTokenizer,
    transformers.Qwen2Tokenizer,
    transformers.RobertaTokenizer,
    transformers.XLMRobertaTokenizer,
)
ATTENTION = {"sliding_window", "attention_chunk_size", "layer_types"}
"""What masks of other families read: no layer of these has a window."""
INSIDE = {
    "torch_dtype",
    "rope_scaling",
    "tokenizer_object",
    "gguf_file",
    "vocab",
    "merges",
    "post_processor",
    "tokenizer",
    "unk_id",
}
"""What transformers hands to itself; a file cannot hold it, or has it under another name."""
ELSEWHERE = {
    "gemma3_text": {"vision_config", "text_config", "mm_tokens_per_image", "image_token_id"},
    "gpt2": {"hidden_dropout", "classifier_dropout", "num_labels", "summary_last_dropout"},
}
"""What heads read that are not supported."""


def tables():
    """Section of the document → its keys."""
    found, section = {}, ""
    for line in (ROOT / "docs/config-keys.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif match := re.match(r"\| `(.+?)` \|", line):
            found.setdefault(section, set()).add(match[1])
        elif line.startswith("Settings for generation"):
            found["settings"] = set(re.findall(r"`(\w+)`", line))
    return found


def popped(code):
    """Keys that a function takes out of its keyword arguments."""
    return set(re.findall(r"kwargs\.(?:pop|get|setdefault)\(\s*\"(\w+)\"", inspect.getsource(code)))


def keys_of(config):
    """Every key of a configuration class that transformers itself knows or reads."""
    fields = {f.name for f in dataclasses.fields(config)} | set(config().to_dict()) | set(config.attribute_map)
    fields |= popped(PreTrainedConfig.__post_init__) | popped(RotaryEmbeddingConfigMixin.convert_rope_params_to_dict)
    fields |= set(GenerationConfig._get_default_generation_params())
    module = inspect.getmodule(getattr(transformers, config.__name__.replace("Config", "Model")))
    for code in (inspect.getsource(module), inspect.getsource(masking_utils)):
        code = re.sub(r'""".*?"""', "", code, flags=re.S)
        read = set(re.findall(r"\bconfig\.([a-z]\w*)", code)) | set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", code))
        fields |= {name for name in read if not callable(getattr(config, name, None))}
    return {name for name in fields if not name.startswith("_")} - ATTENTION - ELSEWHERE.get(config.model_type, set())


def undecided(keys, *sections):
    found = tables()
    return keys - set().union(*(found[section] for section in sections))


FAMILIES = [match[1] for section in tables() if (match := re.match("config.json of a (.+) model", section))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_configuration_is_decided(family):
    sections = (f"config.json of a {family} model", "config.json of any model", "settings")
    assert undecided(keys_of(CONFIG_MAPPING[family]), *sections) == set()


def test_a_key_that_nobody_has_decided_fails():
    class Invented(LlamaConfig):
        attention_temper: float = 1.0

    Invented.__name__ = "LlamaConfig"
    sections = ("config.json of a llama model", "config.json of any model", "settings")
    assert undecided(keys_of(Invented), *sections) == {"attention_temper"}


def test_every_setting_for_generation_is_decided():
    keys = popped(GenerationConfig.__init__) | set(GenerationConfig().to_dict())
    assert undecided({key for key in keys if key != "_commit_hash"}, "generation_config.json") == set()


def test_every_setting_of_a_tokenizer_is_decided():
    keys = set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    for code in (PreTrainedTokenizerBase.__init__, TokenizersBackend.__init__, TokenizersBackend.convert_to_native_format):
        keys |= popped(code)
    for tokenizer in TOKENIZERS:
        names = inspect.signature(tokenizer.__init__).parameters
        keys |= {name for name in names if name not in ("self", "args", "kwargs")}
    keys = {key for key in keys if not key.startswith("_")} - INSIDE - {"tokenizer_truncation", "tokenizer_padding"}
    section = "tokenizer_config.json and special_tokens_map.json"
    assert undecided(keys, section) == set()


def test_every_tokenizer_class_of_transformers_is_known():
    source = (ROOT / "crates/upgrayedd-models/src/tokenizer/class.rs").read_text(encoding="utf-8")
    known = set(re.findall(r'"(\w+Tokenizer\w*)"', source))
    names = {name.removesuffix("Fast") for name in [*dir(transformers), *filter(None, TOKENIZER_MAPPING_NAMES.values())]}
    missing = set()
    for name in names:
        if not name.endswith("Tokenizer") or name == "AutoTokenizer":
            continue
        try:
            found = tokenizer_class_from_name(name)
        except (ImportError, AttributeError):
            found = "not to be had here"
        # These take tokenizer.json as it is; so do subclasses that add nothing, by the same code.
        if found in (None, TokenizersBackend, PythonBackend) or name == "ParakeetTokenizer":
            continue
        if name not in known:
            missing.add(name)
    assert missing == set()
