//! What becomes of every key of a model folder's JSON files: read, without effect, passed over with a note,
//! or refused.
//!
//! transformers' own lists are compared with these tables by a test, so that a key which a new version brings
//! is decided by somebody.

use serde_json::Value;

use crate::{Error, Result};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Decides what is computed, or is checked.
    Used,
    /// Changes nothing of what this program computes; why.
    Idle(&'static str),
    /// Not obeyed where it says something else than these values (as JSON); whoever works with it is told so.
    /// Why.
    Noted(&'static [&'static str], &'static str),
    /// Refused unless it is one of these values (as JSON). What would be right.
    Only(&'static [&'static str], &'static str),
}

use Fate::{Idle, Noted, Only, Used};

/// Keys and what becomes of each.
pub type Keys = &'static [(&'static str, Fate)];

const RECORD: &str = "says where the model comes from";
const OUTPUT: &str = "what a call returns or keeps, not what it computes";
/// Why a key for training has no effect.
pub const TRAINING: &str = "for training from nothing, or dropout, which is not applied";
/// Why a key for other tasks has no effect.
pub const ELSEWHERE: &str = "for other tasks than those that are supported";
const FRAME: &str = "tokens are framed by the tokenizer";
const CHAT: &str = "for chat templates and other programs, which get the file unchanged";
/// Why a key for speed has no effect.
pub const SPEED: &str = "the same result another way";

/// Of transformers' `PreTrainedConfig`, in the version that the tests install, and of older versions that
/// wrote more.
pub const COMMON: Keys = &[
    ("architectures", Used),
    ("model_type", Used),
    ("id2label", Used),
    ("label2id", Used),
    ("num_labels", Used),
    ("problem_type", Used),
    ("eos_token_id", Used),
    ("mask_token_id", Used),
    ("pad_token_id", Used),
    ("tokenizer_class", Used),
    ("pruned_heads", Used),
    ("upgrayedd", Used),
    ("is_encoder_decoder", Only(&["false", "null"], "false, a decoder or an encoder alone")),
    ("per_layer_config", Only(&["null", "{}"], "one shape for all layers")),
    ("quantization_config", Only(&["null"], "weights in f32, f16 or bf16: save the model dequantised")),
    ("transformers_weights", Only(&["null"], "the weights in model.safetensors")),
    ("configuration_files", Only(&["null", "[]"], "one config.json for all versions")),
    ("attribute_map", Only(&["null", "{}"], "keys under the names that the family's configuration has")),
    ("sliding_window", Only(&["null"], WINDOW)),
    ("attention_chunk_size", Only(&["null"], WINDOW)),
    ("layer_types", Only(&["null", "\"full_attention\""], WINDOW)),
    ("kv_sharing_modes", Only(&["null"], "null, keys and values of its own for each layer")),
    ("is_decoder", Idle("a family of decoders is one whatever it says")),
    ("add_cross_attention", Idle("for encoder-decoders")),
    ("chunk_size_feed_forward", Idle(SPEED)),
    ("use_cache", Idle(SPEED)),
    ("attn_implementation", Idle(SPEED)),
    ("_attn_implementation", Idle(SPEED)),
    ("_attn_implementation_autoset", Idle(SPEED)),
    ("experts_implementation", Idle(SPEED)),
    ("gradient_checkpointing", Idle(SPEED)),
    ("output_past", Idle(OUTPUT)),
    ("torchscript", Idle(SPEED)),
    ("use_bfloat16", Idle("for TensorFlow")),
    ("dtype", Idle("weights are computed with in f32, and written in the type that the files have")),
    ("torch_dtype", Idle("the same as dtype")),
    ("output_hidden_states", Idle(OUTPUT)),
    ("output_attentions", Idle(OUTPUT)),
    ("return_dict", Idle(OUTPUT)),
    ("use_return_dict", Idle(OUTPUT)),
    ("transformers_version", Idle(RECORD)),
    ("name_or_path", Idle(RECORD)),
    ("_name_or_path", Idle(RECORD)),
    ("_commit_hash", Idle(RECORD)),
    ("finetuning_task", Idle(RECORD)),
    ("task_specific_params", Idle(RECORD)),
    ("unsloth_version", Idle(RECORD)),
    ("transformers.js_config", Idle("for another program")),
    ("auto_map", Idle("code of a folder is never run")),
    ("initializer_range", Idle(TRAINING)),
    ("bos_token_id", Idle(FRAME)),
    ("cls_token_id", Idle(FRAME)),
    ("sep_token_id", Idle(FRAME)),
    ("decoder_start_token_id", Idle("for encoder-decoders")),
    ("tie_encoder_decoder", Idle("for encoder-decoders")),
    ("cross_attention_hidden_size", Idle("for encoder-decoders")),
    ("prefix", Idle("for pipelines of other programs")),
];

/// Keys of rotary positions, in families that have none.
pub const NO_ROPE: Keys = &[
    ("rope_scaling", Idle("this family has no rotary positions")),
    ("rope_parameters", Idle("this family has no rotary positions")),
    ("rope_theta", Idle("this family has no rotary positions")),
    ("partial_rotary_factor", Idle("this family has no rotary positions")),
];

/// Generation settings that older versions kept in config.json; transformers 5 takes none of them from there.
pub const GENERATION_IN_CONFIG: &[&str] = &[
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "epsilon_cutoff",
    "eta_cutoff",
    "encoder_repetition_penalty",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "num_beam_groups",
    "diversity_penalty",
];

const WINDOW: &str =
    "null, layers that see the whole text: transformers generates with it, even in families without windows";
const ASKED: &str = "generation is as the command's own options say";

/// Of generation_config.json.
pub const GENERATION: Keys = &[
    ("eos_token_id", Used),
    ("max_length", Idle(ASKED)),
    ("max_new_tokens", Idle(ASKED)),
    ("temperature", Idle("means nothing unless do_sample says so")),
    ("top_k", Idle("means nothing unless do_sample says so")),
    ("top_p", Idle("means nothing unless do_sample says so")),
    ("min_p", Idle("means nothing unless do_sample says so")),
    ("top_h", Idle("means nothing unless do_sample says so")),
    ("typical_p", Idle("means nothing unless do_sample says so")),
    ("epsilon_cutoff", Idle("means nothing unless do_sample says so")),
    ("eta_cutoff", Idle("means nothing unless do_sample says so")),
    ("do_sample", Noted(&["false", "null"], ASKED)),
    ("num_beams", Noted(&["1", "null"], "there is no search by beams")),
    ("num_beam_groups", Noted(&["1", "null"], "there is no search by beams")),
    ("early_stopping", Idle("for search by beams")),
    ("length_penalty", Idle("for search by beams")),
    ("diversity_penalty", Idle("for search by beams")),
    ("constraints", Idle("for search by beams")),
    ("force_words_ids", Noted(&["null"], "words are not forced")),
    ("min_length", Noted(&["0", "null"], "generation ends at the first end token")),
    ("min_new_tokens", Noted(&["0", "null"], "generation ends at the first end token")),
    ("max_time", Noted(&["null"], "generation is not timed")),
    ("stop_strings", Noted(&["null"], "generation ends at end tokens only")),
    ("repetition_penalty", Noted(&["1.0", "1", "null"], "logits are taken as they are")),
    ("encoder_repetition_penalty", Noted(&["1.0", "1", "null"], "logits are taken as they are")),
    ("no_repeat_ngram_size", Noted(&["0", "null"], "logits are taken as they are")),
    ("encoder_no_repeat_ngram_size", Idle("for encoder-decoders")),
    ("bad_words_ids", Noted(&["null"], "logits are taken as they are")),
    ("renormalize_logits", Idle("without effect where logits are taken as they are")),
    ("forced_bos_token_id", Noted(&["null"], "tokens are not forced")),
    ("forced_eos_token_id", Noted(&["null"], "tokens are not forced")),
    ("remove_invalid_values", Idle("values that are not finite are an error")),
    ("exponential_decay_length_penalty", Noted(&["null"], "logits are taken as they are")),
    ("suppress_tokens", Noted(&["null"], "logits are taken as they are")),
    ("begin_suppress_tokens", Noted(&["null"], "logits are taken as they are")),
    ("sequence_bias", Noted(&["null"], "logits are taken as they are")),
    ("token_healing", Noted(&["false", "null"], "the prompt is taken as it is")),
    ("guidance_scale", Noted(&["null", "1", "1.0"], "logits are taken as they are")),
    ("watermarking_config", Noted(&["null"], "logits are taken as they are")),
    ("penalty_alpha", Noted(&["null"], "there is no contrastive search")),
    ("dola_layers", Noted(&["null"], "logits are those of the last layer")),
    ("num_return_sequences", Noted(&["1", "null"], "one text is generated")),
    ("bos_token_id", Idle(FRAME)),
    ("pad_token_id", Idle("one text is generated at a time")),
    ("decoder_start_token_id", Idle("for encoder-decoders")),
    ("force_bos_token_to_be_generated", Idle("for encoder-decoders")),
    ("use_mtp", Idle(SPEED)),
    ("use_cache", Idle(SPEED)),
    ("cache_implementation", Idle(SPEED)),
    ("cache_config", Idle(SPEED)),
    ("max_cache_len", Idle(SPEED)),
    ("is_assistant", Idle(SPEED)),
    ("num_assistant_tokens", Idle(SPEED)),
    ("num_assistant_tokens_schedule", Idle(SPEED)),
    ("assistant_confidence_threshold", Idle(SPEED)),
    ("prompt_lookup_num_tokens", Idle(SPEED)),
    ("max_matching_ngram_size", Idle(SPEED)),
    ("assistant_early_exit", Idle(SPEED)),
    ("assistant_lookbehind", Idle(SPEED)),
    ("target_lookbehind", Idle(SPEED)),
    ("assistant_ensemble_weight", Idle(SPEED)),
    ("speculation_type", Idle(SPEED)),
    ("compile_config", Idle(SPEED)),
    ("disable_compile", Idle(SPEED)),
    ("continuous_batching_config", Idle(SPEED)),
    ("low_memory", Idle(SPEED)),
    ("prefill_chunk_size", Idle(SPEED)),
    ("output_attentions", Idle(OUTPUT)),
    ("output_hidden_states", Idle(OUTPUT)),
    ("output_scores", Idle(OUTPUT)),
    ("output_logits", Idle(OUTPUT)),
    ("return_dict_in_generate", Idle(OUTPUT)),
    ("_from_model_config", Idle(RECORD)),
    ("transformers_version", Idle(RECORD)),
];

/// Of tokenizer_config.json and special_tokens_map.json; every other key that ends in `_token` and holds a
/// text is a special token, too.
pub const TOKENIZER: Keys = &[
    ("tokenizer_class", Used),
    ("bos_token", Used),
    ("eos_token", Used),
    ("unk_token", Used),
    ("sep_token", Used),
    ("pad_token", Used),
    ("cls_token", Used),
    ("mask_token", Used),
    ("additional_special_tokens", Used),
    ("extra_special_tokens", Used),
    ("model_specific_special_tokens", Used),
    ("added_tokens_decoder", Used),
    ("add_bos_token", Used),
    ("add_eos_token", Used),
    ("add_prefix_space", Used),
    ("do_lower_case", Used),
    ("strip_accents", Used),
    ("tokenize_chinese_chars", Used),
    ("legacy", Used),
    ("trim_offsets", Idle("places in the text are not asked for")),
    ("split_special_tokens", Used),
    ("model_input_names", Used),
    ("truncation_side", Used),
    ("fast_tokenizer_files", Only(&["null"], "one tokenizer.json for all versions")),
    ("fix_mistral_regex", Only(&["null", "false"], "a tokenizer.json with the right pattern")),
    ("auto_map", Noted(&["null"], "code of a folder is never run")),
    ("vocab_file", Idle("files are looked for by name in the folder")),
    ("merges_file", Idle("files are looked for by name in the folder")),
    ("tokenizer_file", Idle("files are looked for by name in the folder")),
    ("special_tokens_map_file", Idle("files are looked for by name in the folder")),
    ("sp_model_kwargs", Idle("for SentencePiece models, which are not read")),
    ("do_basic_tokenize", Idle("without effect in transformers 5")),
    ("never_split", Idle("without effect in transformers 5")),
    ("errors", Idle("for decoding; what is no text is replaced")),
    ("clean_up_tokenization_spaces", Idle("for decoding, off in transformers 5 unless asked for")),
    ("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", Idle("for decoding")),
    ("spaces_between_special_tokens", Idle("for decoding")),
    ("use_default_system_prompt", Idle(CHAT)),
    ("chat_template", Idle(CHAT)),
    ("response_template", Idle(CHAT)),
    ("response_schema", Idle(CHAT)),
    ("chat_control_tokens", Idle(CHAT)),
    ("processor_class", Idle(CHAT)),
    ("model_max_length", Idle("sequences are as long as asked for, and as the model allows")),
    ("max_len", Idle("the same as model_max_length")),
    ("max_length", Idle("sequences are as long as asked for")),
    ("stride", Idle("sequences are cut by this program")),
    ("truncation_strategy", Idle("sequences are cut by this program")),
    ("padding_side", Idle("padding is masked, wherever it is")),
    ("pad_to_multiple_of", Idle("padding is masked")),
    ("pad_token_type_id", Idle("padding is masked")),
    ("backend", Idle(RECORD)),
    ("is_local", Idle(RECORD)),
    ("local_files_only", Idle(RECORD)),
    ("name_or_path", Idle(RECORD)),
    ("files_loaded", Idle(RECORD)),
    ("init_inputs", Idle(RECORD)),
    ("verbose", Idle(OUTPUT)),
    ("use_fast", Idle("without effect in transformers 5")),
    ("from_slow", Idle("without effect in transformers 5")),
];

/// What becomes of a key, by the first of the tables that has it.
pub(crate) fn fate_of(tables: &[Keys], key: &str) -> Option<Fate> {
    tables.iter().flat_map(|table| table.iter()).find(|(name, _)| *name == key).map(|(_, fate)| *fate)
}

/// Refuses what `tables` refuse in the object `values`, and returns notes on the rest: what is not obeyed,
/// and keys that nobody knows.
pub(crate) fn check(
    file: &str,
    values: &Value,
    tables: &[Keys],
    known_elsewhere: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let (mut notes, mut unknown) = (Vec::new(), Vec::new());
    for (key, value) in values.as_object().into_iter().flatten() {
        // Of a list, each of its values.
        let values = match value {
            Value::Array(list) if !list.is_empty() => &list[..],
            other => std::slice::from_ref(other),
        };
        let among = |allowed: &[&str]| values.iter().all(|v| allowed.contains(&v.to_string().as_str()));
        match fate_of(tables, key) {
            Some(Used | Idle(_)) => {}
            Some(Only(allowed, right)) if !among(allowed) => {
                return Err(Error::unsupported(format!(
                    "{file}: {key} is {}, which is not supported: expected {right}",
                    short(value)
                )));
            }
            Some(Noted(usual, why)) if !among(usual) => {
                notes.push(format!("{file}: {key} is {}, which is not obeyed: {why}", short(value)));
            }
            Some(Only(..) | Noted(..)) => {}
            None if known_elsewhere(key) || value.is_null() => {}
            None => unknown.push(key.as_str()),
        }
    }
    if !unknown.is_empty() {
        let keys = if unknown.len() == 1 { "the key" } else { "the keys" };
        notes.push(format!("{file}: nothing is known of {keys} {}: not read", unknown.join(", ")));
    }
    Ok(notes)
}

/// A value in at most a line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain(['…']).collect() }
}
