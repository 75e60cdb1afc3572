"""Makes the golden files of this folder: tiny random models and what transformers computes with them.

    python tests/golden/make_golden.py [CASE ...]        (torch 2.15, transformers 5.23)

Each case is a Hugging Face folder with `golden.safetensors` (inputs, logits, loss, ten AdamW losses) and `grad/`, a
folder of the same shape that holds the gradients in place of the weights. A case with pruned heads is the dense model
whose pruned heads are masked at the input of the output projection.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

HERE = pathlib.Path(__file__).parent
VOCAB, LAYERS, HIDDEN = 40, 2, 24


def decoder(stock, stock_config=None, **kwargs):
    config = dict(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=36,
        num_hidden_layers=LAYERS,
        max_position_embeddings=32,
        pad_token_id=None,
    )
    made = getattr(transformers, stock_config or stock + "Config")(**(config | kwargs))
    return getattr(transformers, stock + "ForCausalLM")(made)


def llama(**kwargs):
    return decoder("Llama", **kwargs)


def neox(**kwargs):
    config = dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.67))
    return decoder("GPTNeoX", num_attention_heads=4, **(config | kwargs))


def opt(**kwargs):
    config = dict(ffn_dim=36, num_attention_heads=4, dropout=0, pad_token_id=1)
    return decoder("OPT", **(config | kwargs))


def gpt2(**kwargs):
    config = dict(
        vocab_size=VOCAB, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return GPT2LMHeadModel(GPT2Config(**(config | kwargs)))


def encoder(kind, **kwargs):
    config = dict(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=36,
        max_position_embeddings=32,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return kind(kind.config_class(**(config | kwargs)))


def bert(kind, **kwargs):
    return encoder(kind, **kwargs)


def mpnet(kind, **kwargs):
    return encoder(kind, max_position_embeddings=34, **kwargs)


def distilbert(kind, **kwargs):
    config = dict(vocab_size=VOCAB, dim=HIDDEN, n_layers=LAYERS, n_heads=4, hidden_dim=36, max_position_embeddings=32)
    config |= dict(dropout=0, attention_dropout=0, seq_classif_dropout=0)
    return kind(kind.config_class(**(config | kwargs)))


def modernbert(kind, **kwargs):
    """Windows of two tokens to either side, in the second layer."""
    config = dict(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=36,
        max_position_embeddings=32,
        local_attention=4,
        pad_token_id=0,
        cls_token_id=1,
        bos_token_id=1,
        sep_token_id=2,
        eos_token_id=2,
    )
    return kind(kind.config_class(**(config | kwargs)))


def roberta(kind, **kwargs):
    """Two rows of the table are those of padding and of what is before it."""
    return encoder(kind, max_position_embeddings=34, type_vocab_size=1, **kwargs)


GQA = dict(num_attention_heads=6, num_key_value_heads=2, head_dim=4, attention_bias=True, mlp_bias=True)
LONGROPE = dict(
    rope_type="longrope", short_factor=[1.0, 1.2], long_factor=[2.0, 5.0], rope_theta=100.0, partial_rotary_factor=0.67
)
PHI3 = dict(
    num_attention_heads=6,
    num_key_value_heads=2,
    hidden_size=36,
    rope_parameters=LONGROPE,
    original_max_position_embeddings=16,
)
GEMMA = dict(head_dim=4, num_attention_heads=6, num_key_value_heads=2, sliding_window=4, query_pre_attn_scalar=9)
GEMMA2 = GEMMA | dict(attn_logit_softcapping=2.0, final_logit_softcapping=1.5, attn_implementation="eager")
GEMMA3 = GEMMA | dict(
    layer_types=["sliding_attention", "full_attention"],
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=4.0, rope_theta=5000.0),
        sliding_attention=dict(rope_type="default", rope_theta=100.0),
    ),
)
SEVERAL = "multi_label_classification"
HEADS = dict(num_attention_heads=6, num_key_value_heads=2, head_dim=4)
QWEN3 = dict(attention_bias=True, use_sliding_window=True, sliding_window=4, max_window_layers=1, **HEADS)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
CASES = {
    "llama_mha": (lambda: llama(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True), {}),
    "llama_gqa": (lambda: llama(**GQA), {}),
    "llama_gqa_pruned": (lambda: llama(**GQA), {0: [1, 4, 5], 1: [0, 1, 2]}),
    "llama3_rope": (lambda: llama(num_attention_heads=6, num_key_value_heads=3, rope_parameters=LLAMA3), {0: [5]}),
    "gpt2": (gpt2, {}),
    "gpt2_pruned": (gpt2, {0: [0, 2], 1: [3]}),
    "bert_mlm": (lambda: bert(BertForMaskedLM), {}),
    "bert_mlm_pruned": (lambda: bert(BertForMaskedLM), {0: [1], 1: [0, 1, 2]}),
    "bert_classifier": (lambda: bert(BertForSequenceClassification, num_labels=3), {}),
    "bert_classifier_pruned": (lambda: bert(BertForSequenceClassification, num_labels=3), {0: [0, 3]}),
    "bert_regression": (lambda: bert(BertForSequenceClassification, num_labels=1), {1: [2]}),
    "bert_several_labels": (lambda: bert(BertForSequenceClassification, num_labels=3, problem_type=SEVERAL), {}),
    "roberta_several_labels_pruned": (
        lambda: roberta(RobertaForSequenceClassification, num_labels=4, problem_type=SEVERAL),
        {0: [1], 1: [3]},
    ),
    "bert_encoder": (lambda: bert(BertModel), {}),
    "qwen3": (lambda: decoder("Qwen3", **QWEN3), {}),
    "qwen3_pruned": (lambda: decoder("Qwen3", **QWEN3), {0: [1, 4, 5], 1: [0, 1, 2]}),
    "qwen2_pruned": (lambda: decoder("Qwen2", num_attention_heads=6, num_key_value_heads=3), {0: [0, 1, 2], 1: [5]}),
    "mistral_pruned": (lambda: decoder("Mistral", sliding_window=3, **HEADS), {0: [0, 1, 2], 1: [4]}),
    "smollm3_pruned": (lambda: decoder("SmolLM3", no_rope_layers=[1, 0], **HEADS), {0: [0], 1: [3, 4, 5]}),
    "gemma3_pruned": (lambda: decoder("Gemma3", stock_config="Gemma3TextConfig", **GEMMA3), {0: [1, 4, 5], 1: [0, 1, 2]}),
    "gemma2": (lambda: decoder("Gemma2", **GEMMA2), {}),
    "gemma2_pruned": (lambda: decoder("Gemma2", **GEMMA2), {0: [0, 1, 2], 1: [5]}),
    "olmo2": (lambda: decoder("Olmo2", num_attention_heads=6, num_key_value_heads=2), {}),
    "phi3_pruned": (lambda: decoder("Phi3", **PHI3), {0: [1, 4, 5], 1: [0, 1, 2]}),
    "phi3_long": (lambda: decoder("Phi3", **PHI3 | dict(original_max_position_embeddings=6, sliding_window=5)), {1: [3, 4, 5]}),
    "gpt_neox": (lambda: neox(), {}),
    "gpt_neox_pruned": (lambda: neox(use_parallel_residual=False, attention_bias=False), {0: [0, 2], 1: [3]}),
    "opt_pruned": (lambda: opt(), {0: [1], 1: [0, 1, 2]}),
    "opt_postnorm": (lambda: opt(do_layer_norm_before=False, tie_word_embeddings=False), {}),
    "roberta_mlm": (lambda: roberta(RobertaForMaskedLM), {}),
    "roberta_mlm_pruned": (lambda: roberta(RobertaForMaskedLM), {0: [1], 1: [0, 1, 2]}),
    "roberta_classifier_pruned": (lambda: roberta(RobertaForSequenceClassification, num_labels=3), {0: [0, 3]}),
    "roberta_encoder": (lambda: roberta(RobertaModel), {}),
    "xlm_roberta_regression_pruned": (
        lambda: roberta(transformers.XLMRobertaForSequenceClassification, num_labels=1),
        {1: [2]},
    ),
    "distilbert_mlm_pruned": (lambda: distilbert(transformers.DistilBertForMaskedLM), {0: [1], 1: [0, 1, 2]}),
    "distilbert_classifier": (lambda: distilbert(transformers.DistilBertForSequenceClassification, num_labels=3), {1: [3]}),
    "modernbert_mlm": (lambda: modernbert(transformers.ModernBertForMaskedLM), {}),
    "modernbert_mlm_pruned": (lambda: modernbert(transformers.ModernBertForMaskedLM), {0: [1], 1: [0, 1, 2]}),
    "modernbert_classifier_pruned": (
        lambda: modernbert(
            transformers.ModernBertForSequenceClassification,
            num_labels=3,
            classifier_pooling="mean",
            attention_bias=True,
            mlp_bias=True,
            norm_bias=True,
            classifier_bias=True,
        ),
        {0: [0, 3]},
    ),
    "modernbert_encoder": (lambda: modernbert(transformers.ModernBertModel), {}),
    "mpnet_mlm_pruned": (lambda: mpnet(transformers.MPNetForMaskedLM), {0: [1], 1: [0, 2]}),
    "mpnet_classifier": (lambda: mpnet(transformers.MPNetForSequenceClassification, num_labels=3), {}),
    "mpnet_encoder": (lambda: mpnet(transformers.MPNetModel), {1: [0]}),
    "camembert_mlm_pruned": (lambda: roberta(transformers.CamembertForMaskedLM), {0: [2, 3]}),
}


def randomise(model, generator):
    """Weights large enough that every part matters, norms and biases included."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_norm = "norm" in name.lower() or ".ln_" in name
            scale = 0.3 if p.dim() < 2 else 0.25
            middle = 0.0 if "Gemma" in type(model).__name__ else 1.0
            p.copy_(torch.randn(p.shape, generator=generator) * scale + (middle if is_norm and name.endswith("weight") else 0.0))


def mask_heads(model, pruned):
    """Zeroes the pruned heads' part of each output projection's input."""
    for layer, heads in pruned.items():
        kind = model.config.model_type
        if kind == "gpt_neox":
            projection = model.gpt_neox.layers[layer].attention.dense
        elif kind == "opt":
            projection = model.model.decoder.layers[layer].self_attn.out_proj
        elif kind == "distilbert":
            projection = model.base_model.transformer.layer[layer].attention.out_lin
        elif kind == "mpnet":
            projection = model.base_model.encoder.layer[layer].attention.attn.o
        elif kind == "modernbert":
            projection = model.base_model.layers[layer].attn.Wo
        elif hasattr(model, "transformer"):
            projection = model.transformer.h[layer].attn.c_proj
        elif hasattr(model, "model"):
            projection = model.model.layers[layer].self_attn.o_proj
        else:
            projection = model.base_model.encoder.layer[layer].attention.output.dense
        config = model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = projection.weight.shape[0] if hasattr(model, "transformer") else projection.weight.shape[1]
        gate = torch.ones(size)
        for head in heads:
            gate[head * width : (head + 1) * width] = 0
        projection.register_forward_pre_hook(lambda _, args, gate=gate: (args[0] * gate, *args[1:]))


def inputs(name, model, generator):
    ids = torch.randint(5, VOCAB, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    is_encoder = "bert" in name or "mpnet" in name
    if is_encoder:
        mask[1, 6:] = 0
        mask[2, 4:] = 0
        ids = torch.where(mask == 1, ids, model.config.pad_token_id)
    if "classifier" in name:
        return ids, mask, torch.tensor([2, 0, 1])
    if "several_labels" in name:
        return ids, mask, torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0.25]])[:, : model.config.num_labels]
    if "regression" in name:
        return ids, mask, torch.tensor([0.5, -1.25, 3.0])
    if name.startswith("opt"):
        # Positions follow the mask, wherever padding is.
        mask[1, :2] = 0
        mask[2, 7:] = 0
    labels = torch.where(mask == 1, ids, -100) if name.startswith("opt") else ids.clone()
    if is_encoder:
        chosen = torch.rand(ids.shape, generator=generator) < 0.4
        labels = torch.where(chosen & (mask == 1), ids, -100)
    return ids, mask, labels


def save(model, folder, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(model.config.to_dict() | {"architectures": [type(model).__name__]}, indent=1, default=str) + "\n"
    )
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def make(name, build, pruned):
    generator = torch.Generator().manual_seed(len(name) * 1000 + sum(map(ord, name)))
    model = build().eval()
    randomise(model, generator)
    save(model, HERE / name, weights(model))
    mask_heads(model, pruned)
    ids, mask, labels = inputs(name, model, generator)
    golden = {"input_ids": ids.float(), "attention_mask": mask.float()}
    if name.endswith("encoder"):
        golden["logits"] = model(input_ids=ids, attention_mask=mask).last_hidden_state.detach()
    else:
        pair = {}
        if name == "bert_regression":
            # Pairs: the second of each two segments has token type 1.
            pair["token_type_ids"] = (torch.arange(ids.shape[1]) >= 3).long() * mask
            golden["token_type_ids"] = pair["token_type_ids"].float()
        run = lambda: model(input_ids=ids, attention_mask=mask, labels=labels, **pair)  # noqa: E731
        result = run()
        result.loss.backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        save(model, HERE / name / "grad", gradients)
        golden |= {"labels": labels.float(), "logits": result.logits.detach(), "loss": result.loss.detach().reshape(1)}
        golden["adamw_losses"] = train(model, run)
    save_file({k: v.contiguous() for k, v in golden.items()}, HERE / name / "golden.safetensors", {"pruned": json.dumps(pruned)})


def train(model, run):
    """Ten AdamW steps, gradients clipped to norm 1, decay on matrices only; the losses before each."""
    decays = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = run().loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


for case in sys.argv[1:] or CASES:
    make(case, *CASES[case])
    print(case)
