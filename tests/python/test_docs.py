"""The commands of the pages for users run as they are written, and the pages' links lead somewhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from places import BUILD, ROOT

import upgrayedd

DOCS = ROOT / "docs"
PAGES = ["index.md", "your-model.md", "report.md"]
# What takes a machine of its own, or is watched elsewhere: test_report.py has the live page.
ELSEWHERE = ("cargo install", "upgrayedd watch")
# Learned and measured on less than a user would.
SHORT = {"--max-steps-per-cycle": 3, "--max-eval-windows": 4, "--refit-samples": 16}
NAMES = ("Mia", "Tom", "Lily", "Ben", "Sam")


def commands(page: str) -> list[str]:
    """The lines of a page that a user types."""
    blocks = re.findall(r"^```console\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    typed = [re.sub(r"\s{2,}#.*", "", line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]
    return [line for line in typed if not line.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a small model of each kind, and data for them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("docs")
    stories = [f"{one} was a kind child. One day {one} met {two} and they played in the park." for one in NAMES for two in NAMES]
    (folder / "text.txt").write_text("\n\n".join(stories * 12))
    (folder / "lines.txt").write_text("\n".join(stories * 4))
    rows = [f"{story}\t{index % 2}" for index, story in enumerate(stories * 4)]
    (folder / "train.tsv").write_text("\n".join(["sentence\tlabel", *rows]))

    pieces = Tokenizer(models.BPE())  # type: ignore[call-arg]
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    pieces.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    letters = pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(stories, trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=letters))
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    llama = LlamaConfig(vocab_size=pieces.get_vocab_size(), num_key_value_heads=2, intermediate_size=64, **shape)
    LlamaForCausalLM(llama).save_pretrained(folder / "decoder")
    PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|end|>").save_pretrained(folder / "decoder")

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    words.train_from_iterator(stories, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    config = BertConfig(vocab_size=words.get_vocab_size(), intermediate_size=64, **shape)
    for kind, model in (("masked", BertForMaskedLM), ("classifier", BertForSequenceClassification), ("sentences", BertModel)):
        model(config).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_commands_run(page: str, place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    search = {**os.environ, "PATH": f"{BUILD}:{os.environ['PATH']}"}
    if page == "report.md":
        few = ["--max-steps-per-cycle", "1", "--num-cycles", "1", "--max-eval-windows", "2", "--pruning-ratio", "0.2"]
        for strategy in ("auto", "entropy"):
            words = ["optimize", "--model", "decoder", "--data", "text.txt", "--strategy", strategy, *few]
            words += ["--out", f"runs/llama-{strategy}-1"]
            subprocess.run([BUILD / "upgrayedd", *words], check=True, cwd=tmp_path, capture_output=True)
    typed = commands(page)
    assert typed
    for line in typed:
        if line.startswith("upgrayedd optimize"):
            line += "".join(f" {option} {value}" for option, value in SHORT.items() if option not in line)
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=search, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path: pathlib.Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "your-model" / "index.html").is_file()
    reference = (tmp_path / "api" / "index.html").read_text()
    missing = [name for name in upgrayedd.__all__ if name != "__version__" and f'id="upgrayedd.{name}"' not in reference]
    assert not missing, "docs/api.md does not name them"
