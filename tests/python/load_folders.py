"""Loads model folders in whatever transformers is installed, without remote code, and keeps what they compute.

python load_folders.py JOBS.json OUT.npz        where JOBS is a list of {"folder", "auto", "generate", "texts"}
"""

import json
import sys

import numpy
import torch
import transformers

PROMPT = [7, 12, 33, 5]
IDS = torch.tensor([[7, 12, 33, 5, 9, 21, 3, 17], [2, 30, 4, 4, 19, 6, 11, 38]])


def run(job):
    auto = getattr(transformers, job["auto"])
    # Gemma 2's caps are left out by other implementations in transformers 4.
    model = auto.from_pretrained(job["folder"], attn_implementation="eager").float().eval()
    with torch.no_grad():
        out = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
        found = {"out": (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()}
        if job["generate"]:
            more = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
            found["text"] = model.generate(torch.tensor([PROMPT]), **more)[0, len(PROMPT) :].numpy()
    if "texts" in job:
        tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
        found["tokens"] = numpy.concatenate([numpy.array([*tokenizer(text)["input_ids"], -1]) for text in job["texts"]])
        found["special"] = numpy.array(sorted(tokenizer.all_special_tokens))
    return found


def main(jobs, out):
    with open(jobs) as f:
        jobs = json.load(f)
    arrays = {"version": numpy.array(transformers.__version__)}
    for index, job in enumerate(jobs):
        try:
            arrays |= {f"{index}/{key}": value for key, value in run(job).items()}
        except Exception as error:
            arrays[f"{index}/error"] = numpy.array(f"{type(error).__name__}: {error}")
    numpy.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
