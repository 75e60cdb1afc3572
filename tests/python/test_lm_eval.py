"""The lm-evaluation-harness on a pruned model: its numbers are those of our own logits."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from upgrayedd import Model

ROOT = pathlib.Path(__file__).resolve().parents[2]
HARNESS = ROOT / ".venv" / "lm_eval"
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["park.", "kitchen."]
doc_to_target: 0
metric_list: [{metric: acc}]
""",
    "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
    "answers": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 12}
metric_list: [{metric: exact_match, regexes_to_ignore: [' ']}]
""",
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("harness")
    model = Model.from_pretrained("builtin")
    first = model.layer_names[0]
    model.prune({first: [0, 3, 5]})
    model.save_pretrained(folder / "model")
    return folder


def test_the_harness_measures_what_the_model_says(pruned: pathlib.Path) -> None:
    model = Model.from_pretrained(pruned / "model")
    questions = ["Mia was a kind girl. Mia and Tom played in the", "Tom put the key in the", "Mia put the key in the"]
    answers = [model.generate(question, 12).removeprefix(question).split(".")[0] for question in questions]
    data = [
        {"question": q, "answer": a if at else "something else"} for at, (q, a) in enumerate(zip(questions, answers, strict=True))
    ]
    (pruned / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    for name, text in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {pruned / 'data.jsonl'}}}}}\ntest_split: test\n"
        (pruned / f"{name}.yaml").write_text(f"task: {name}\n{source}{text}metadata: {{version: 1}}\n")
    words = ["--model_args", f"pretrained={pruned / 'model'}", "--batch_size", "2", "--tasks", ",".join(TASKS)]
    words += ["--include_path", str(pruned), "--output_path", str(pruned / "out")]
    search = {**os.environ, "PYTHONPATH": str(HARNESS), "HF_HUB_OFFLINE": "1", "HF_HOME": str(pruned / "cache")}
    done = subprocess.run([sys.executable, "-m", "upgrayedd.lm_eval", *words], env=search, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(next((pruned / "out").rglob("results*.json")).read_text())["results"]

    def log_likelihood(ids: list[int]) -> np.ndarray:
        logits = model.logits([ids])[0].astype(np.float64)
        own = (
            logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
        )
        return np.array([own[at, token] for at, token in enumerate(ids[1:])])

    tokenizer = model.tokenizer
    prefix = tokenizer.frame[0]
    right, bits, size = 0, 0.0, 0
    for question in questions:
        context = prefix + tokenizer._core.encode(question, False)
        sums = []
        for choice in ("park.", "kitchen."):
            whole = prefix + tokenizer._core.encode(f"{question} {choice}", False)
            sums.append(log_likelihood(whole)[len(context) - 1 :].sum())
        right += int(sums[0] >= sums[1])
        start = prefix or model._core.end_tokens()
        bits -= log_likelihood(start[:1] + tokenizer._core.encode(question, False)).sum() / math.log(2)
        size += len(question.encode())
    assert results["choices"]["acc,none"] == pytest.approx(right / len(questions))
    assert results["texts"]["bits_per_byte,none"] == pytest.approx(bits / size, rel=1e-5)
    assert results["answers"]["exact_match,none"] == pytest.approx(2 / 3)
