//! The tokenizer classes of transformers 5 that build a tokenizer of their own instead of taking
//! tokenizer.json as it is.

use serde_json::{Map, Value, json};

use crate::{Error, Result, family};

/// Which class reads the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`, once `PreTrainedTokenizerFast`: tokenizer.json is what it is.
    Backend,
    /// `BertTokenizer`: WordPiece, as the options in tokenizer_config.json say.
    Bert,
    /// `GPT2Tokenizer`: BPE on bytes.
    Gpt2,
    /// `LlamaTokenizer`: BPE on text in which `▁` stands for a space.
    Llama,
}

/// Classes of transformers that build their own tokenizer in ways that are not known here, without the ending
/// `Fast`; a test compares them with transformers.
const UNKNOWN_HERE: [&str; 100] = [
    "AlbertTokenizer",
    "BartTokenizer",
    "BarthezTokenizer",
    "BartphoTokenizer",
    "BasicTokenizer",
    "BertGenerationTokenizer",
    "BertJapaneseTokenizer",
    "BertTokenizerLegacy",
    "BertweetTokenizer",
    "BigBirdTokenizer",
    "BioGptTokenizer",
    "BlenderbotSmallTokenizer",
    "BlenderbotTokenizer",
    "ByT5Tokenizer",
    "CLIPTokenizer",
    "CTRLTokenizer",
    "CamembertTokenizer",
    "CanineTokenizer",
    "CharacterTokenizer",
    "ClvpTokenizer",
    "CodeGenTokenizer",
    "CodeLlamaTokenizer",
    "CohereTokenizer",
    "ConvBertTokenizer",
    "CpmAntTokenizer",
    "CpmTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
    "DiaTokenizer",
    "DistilBertTokenizer",
    "EsmTokenizer",
    "EsmcTokenizer",
    "FNetTokenizer",
    "FSMTTokenizer",
    "FastSpeech2ConformerTokenizer",
    "FlaubertTokenizer",
    "FunnelTokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTNeoXTokenizer",
    "GPTSw3Tokenizer",
    "GemmaTokenizer",
    "HerbertTokenizer",
    "LEDTokenizer",
    "LasrTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
    "LongformerTokenizer",
    "LukeTokenizer",
    "M2M100Tokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MLukeTokenizer",
    "MPNetTokenizer",
    "MarianTokenizer",
    "MarkupLMTokenizer",
    "MecabTokenizer",
    "MgpstrTokenizer",
    "MvpTokenizer",
    "MyT5Tokenizer",
    "NllbTokenizer",
    "NougatTokenizer",
    "OpenAIGPTTokenizer",
    "PLBartTokenizer",
    "PegasusTokenizer",
    "PerceiverTokenizer",
    "PhobertTokenizer",
    "Pop2PianoTokenizer",
    "ProphetNetTokenizer",
    "Qwen2Tokenizer",
    "Qwen3_5Tokenizer",
    "RagTokenizer",
    "ReformerTokenizer",
    "RemBertTokenizer",
    "RoCBertTokenizer",
    "RoFormerTokenizer",
    "RobertaTokenizer",
    "SeamlessM4TTokenizer",
    "Siglip2Tokenizer",
    "SiglipTokenizer",
    "Speech2TextTokenizer",
    "SpeechT5Tokenizer",
    "SplinterTokenizer",
    "T5Tokenizer",
    "TapasTokenizer",
    "Tipsv2Tokenizer",
    "UdopTokenizer",
    "VideoPrismTokenizer",
    "VitsTokenizer",
    "Wav2Vec2CTCTokenizer",
    "Wav2Vec2PhonemeCTCTokenizer",
    "WhisperTokenizer",
    "WordpieceTokenizer",
    "XGLMTokenizer",
    "XLMRobertaTokenizer",
    "XLMTokenizer",
    "XLNetTokenizer",
];

impl Class {
    /// The class that `AutoTokenizer` would take: the one that is `named`, else that of the model's family.
    pub(super) fn choose(named: Option<&str>, model_type: Option<&str>, byte_level: bool) -> Result<Self> {
        let of_family =
            || family::all().into_iter().find(|family| Some(family.model_type) == model_type)?.tokenizer;
        let Some(named) = named.or_else(of_family) else { return Ok(Self::Backend) };
        match named.strip_suffix("Fast").unwrap_or(named) {
            "BertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "LxmertTokenizer"
            | "MobileBertTokenizer"
            | "SqueezeBertTokenizer" => Ok(Self::Bert),
            "GPT2Tokenizer" => Ok(Self::Gpt2),
            // Llama 3 and its like name this class, which would not be able to read their bytes.
            "LlamaTokenizer" if byte_level => Ok(Self::Backend),
            "LlamaTokenizer" => Ok(Self::Llama),
            other if UNKNOWN_HERE.contains(&other) => Err(Error::malformed(format!(
                "tokenizer_class {named} (of tokenizer_config.json or config.json) builds a tokenizer of its own in transformers, which this program does \
                 not: expected BertTokenizer, GPT2Tokenizer, LlamaTokenizer, or PreTrainedTokenizerFast, which takes tokenizer.json as it is"
            ))),
            _ => Ok(Self::Backend),
        }
    }

    /// transformers' name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Backend => "TokenizersBackend",
            Self::Bert => "BertTokenizer",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::Llama => "LlamaTokenizer",
        }
    }

    /// The files that it is read from where there is no tokenizer.json; none for those that are read from
    /// nothing else.
    pub(super) fn vocabulary_files(self) -> &'static [&'static str] {
        match self {
            Self::Bert => &["vocab.txt"],
            Self::Gpt2 => &["vocab.json", "merges.txt"],
            Self::Backend | Self::Llama => &[],
        }
    }

    /// Whether a model gets token types from it, unless its files say otherwise.
    pub(super) fn gives_types(self) -> bool {
        self == Self::Bert
    }

    /// The kind of vocabulary that it is built on; `None` takes any.
    pub(super) fn model_kind(self) -> Option<&'static str> {
        match self {
            Self::Backend => None,
            Self::Bert => Some("WordPiece"),
            Self::Gpt2 | Self::Llama => Some("BPE"),
        }
    }

    /// Special tokens that it has without being told.
    pub(super) fn default_tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Backend => &[],
            Self::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Gpt2 => &[
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
            ],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        }
    }

    /// The parts of a tokenizer.json that it builds on a vocabulary, as `options` (tokenizer_config.json)
    /// say.
    pub(super) fn parts(
        self,
        model: &Value,
        options: &Map<String, Value>,
        unk_token: Option<&str>,
    ) -> Result<Map<String, Value>> {
        let vocab = &model["vocab"];
        let merges = model.get("merges").cloned().unwrap_or_else(|| json!([]));
        let parts = match self {
            Self::Backend => json!({}),
            Self::Bert => json!({
                "normalizer": {
                    "type": "BertNormalizer",
                    "clean_text": true,
                    "handle_chinese_chars": flag(options, "tokenize_chinese_chars", true)?,
                    "strip_accents": optional_flag(options, "strip_accents")?,
                    "lowercase": flag(options, "do_lower_case", true)?,
                },
                "pre_tokenizer": { "type": "BertPreTokenizer" },
                "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
                "model": {
                    "type": "WordPiece",
                    // What Python makes of no token at all.
                    "unk_token": unk_token.unwrap_or("None"),
                    "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100,
                    "vocab": vocab,
                },
            }),
            Self::Gpt2 => {
                let space = flag(options, "add_prefix_space", false)?;
                json!({
                    "normalizer": null,
                    "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true },
                    "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
                    "model": bpe(vocab, &merges, false),
                })
            }
            Self::Llama => {
                let space = optional_flag(options, "add_prefix_space")?.unwrap_or(true);
                let scheme = match (space, flag(options, "legacy", false)?) {
                    (false, _) => "never",
                    (true, false) => "first",
                    (true, true) => "always",
                };
                let mut decoders = vec![
                    json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
                    json!({ "type": "ByteFallback" }),
                    json!({ "type": "Fuse" }),
                ];
                if space {
                    decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
                }
                json!({
                    "normalizer": null,
                    "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false },
                    "decoder": { "type": "Sequence", "decoders": decoders },
                    "model": bpe(vocab, &merges, true),
                })
            }
        };
        match parts {
            Value::Object(parts) => Ok(parts),
            _ => Ok(Map::new()),
        }
    }
}

fn bpe(vocab: &Value, merges: &Value, text: bool) -> Value {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": if text { Value::Null } else { json!("") },
        "end_of_word_suffix": if text { Value::Null } else { json!("") },
        "fuse_unk": text,
        "byte_fallback": text,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    })
}

fn optional_flag(options: &Map<String, Value>, key: &str) -> Result<Option<bool>> {
    match options.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(value) => {
            Err(Error::out_of_range(format!("tokenizer_config.json: {key}"), value, "true or false"))
        }
    }
}

/// An option that is true or false; `default` stands in for a missing one.
pub(super) fn flag(options: &Map<String, Value>, key: &str, default: bool) -> Result<bool> {
    Ok(optional_flag(options, key)?.unwrap_or(default))
}
