"""Llamas of real shapes with random weights in bfloat16, made tensor by tensor: they take no more memory than a tensor does.

python bench/random_llama.py FOLDER --shape 1.1b|3b|7b --tokenizer FOLDER
"""

import argparse
import json
import pathlib
import shutil
import struct

import numpy as np

# Layers, width, channels, heads, key/value heads: those of TinyLlama 1.1B, OpenLLaMA 3B and Llama 7B.
SHAPES = {
    "1.1b": (22, 2048, 5632, 32, 4),
    "3b": (26, 3200, 8640, 32, 32),
    "7b": (32, 4096, 11008, 32, 32),
}


def weights(layers, width, channels, heads, kv_heads, vocab):
    """Names and shapes, in the order in which they stand in the file."""
    dim = width // heads
    yield "model.embed_tokens.weight", (vocab, width)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, shape in (
            ("input_layernorm", (width,)),
            ("self_attn.q_proj", (heads * dim, width)),
            ("self_attn.k_proj", (kv_heads * dim, width)),
            ("self_attn.v_proj", (kv_heads * dim, width)),
            ("self_attn.o_proj", (width, heads * dim)),
            ("post_attention_layernorm", (width,)),
            ("mlp.gate_proj", (channels, width)),
            ("mlp.up_proj", (channels, width)),
            ("mlp.down_proj", (width, channels)),
        ):
            yield f"{at}{name}.weight", shape
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocab, width)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    options = parser.parse_args()
    layers, width, channels, heads, kv_heads = SHAPES[options.shape]
    vocab = json.loads((options.tokenizer / "config.json").read_text())["vocab_size"]
    options.folder.mkdir(parents=True)
    config = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=width,
        intermediate_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        hidden_act="silu",
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        bos_token_id=1,
        eos_token_id=2,
    )
    (options.folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.tokenizer / name, options.folder)
    table = list(weights(layers, width, channels, heads, kv_heads, vocab))
    header, at = {}, 0
    for name, shape in table:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at := at + 2 * int(np.prod(shape))]}
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with (options.folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in table:
            values = np.ones(shape, np.float32) if len(shape) == 1 else random.standard_normal(shape, np.float32) * 0.02
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


main()
