//! The tokenizer classes of transformers 5 that build a tokenizer of their own instead of taking
//! tokenizer.json as it is.

use crate::family::{self, TokenizerClass};
use crate::{Error, Result};

/// Which class reads the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`, once `PreTrainedTokenizerFast`: tokenizer.json is what it is.
    Backend,
    /// `BertTokenizer`: WordPiece, as the options in tokenizer_config.json say.
    Bert,
    /// `DistilBertTokenizer`: the same without token types.
    DistilBert,
    /// `MPNetTokenizer`: the same in RoBERTa's frame.
    MpNet,
    /// `GPT2Tokenizer`: BPE on bytes.
    Gpt2,
    /// `RobertaTokenizer`: the same in a frame.
    Roberta,
    /// `Qwen2Tokenizer`: BPE on bytes, after other words.
    Qwen2,
    /// `GPTNeoXTokenizer`: BPE on bytes, framed as asked for.
    GptNeoX,
    /// `LlamaTokenizer`: BPE on text in which `▁` stands for a space.
    Llama,
    /// `GemmaTokenizer`: the same, with words that begin where a space ends.
    Gemma,
    /// `XLMRobertaTokenizer`: the likeliest pieces of text in which `▁` stands for a space.
    XlmRoberta,
    /// `CamembertTokenizer`: the same.
    Camembert,
}

/// What stands around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// What tokenizer.json has, or the options ask for.
    Stored,
    /// What the options ask for.
    Asked,
    /// `[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]`; the second text has types of its own.
    Bert,
    /// `<s> A </s>`, `<s> A </s> </s> B </s>`, by `cls_token` and `sep_token`.
    Roberta,
    /// The same by `bos_token` and `eos_token`.
    Sentences,
}

/// What is fixed about a class.
pub(super) struct Traits {
    /// transformers' name.
    pub(super) name: &'static str,
    /// The kind of vocabulary that it is built on; `None` takes any.
    pub(super) kind: Option<&'static str>,
    /// The files that it is read from where there is no tokenizer.json; none for those that are read from
    /// nothing else.
    pub(super) files: &'static [&'static str],
    /// Special tokens that it has without being told.
    pub(super) tokens: &'static [(&'static str, &'static str)],
    /// Special tokens without a meaning that it has without being told.
    pub(super) extra: &'static [&'static str],
    /// Whether the mask takes the space before it along.
    pub(super) mask_takes_space: bool,
    /// What it puts around a text.
    pub(super) frame: Frame,
}

const PLAIN: Traits = Traits {
    name: "TokenizersBackend",
    kind: None,
    files: &[],
    tokens: &[],
    extra: &[],
    mask_takes_space: false,
    frame: Frame::Stored,
};
const BERT_TOKENS: &[(&str, &str)] = &[
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
const ROBERTA_TOKENS: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
const MPNET_TOKENS: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "[UNK]"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
const END: &str = "<|endoftext|>";
const BYTES: &[&str] = &["vocab.json", "merges.txt"];

/// Classes of transformers that build their own tokenizer in ways that are not known here, without the ending
/// `Fast`; a test compares them with transformers.
const UNKNOWN_HERE: [&str; 92] = [
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
    "EsmTokenizer",
    "EsmcTokenizer",
    "FNetTokenizer",
    "FSMTTokenizer",
    "FastSpeech2ConformerTokenizer",
    "FlaubertTokenizer",
    "FunnelTokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTSw3Tokenizer",
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
    "Qwen3_5Tokenizer",
    "RagTokenizer",
    "ReformerTokenizer",
    "RemBertTokenizer",
    "RoCBertTokenizer",
    "RoFormerTokenizer",
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
    "XLMTokenizer",
    "XLNetTokenizer",
];

impl Class {
    /// The class that `AutoTokenizer` would take: the one that is `named`, or that of the model's family.
    pub(super) fn choose(named: Option<&str>, model_type: Option<&str>, byte_level: bool) -> Result<Self> {
        let family = family::all().into_iter().find(|family| Some(family.model_type) == model_type);
        let class = match family.map(|family| family.tokenizer) {
            Some(TokenizerClass::Always(class)) => Some(class),
            Some(TokenizerClass::Usually(class)) => named.or(Some(class)),
            Some(TokenizerClass::Named) | None => named,
        };
        let Some(class) = class else { return Ok(Self::Backend) };
        match class.strip_suffix("Fast").unwrap_or(class) {
            "BertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "LxmertTokenizer"
            | "MobileBertTokenizer"
            | "SqueezeBertTokenizer" => Ok(Self::Bert),
            "DistilBertTokenizer" => Ok(Self::DistilBert),
            "MPNetTokenizer" => Ok(Self::MpNet),
            "GPT2Tokenizer" => Ok(Self::Gpt2),
            "RobertaTokenizer" => Ok(Self::Roberta),
            "Qwen2Tokenizer" => Ok(Self::Qwen2),
            "GPTNeoXTokenizer" => Ok(Self::GptNeoX),
            "GemmaTokenizer" => Ok(Self::Gemma),
            "XLMRobertaTokenizer" => Ok(Self::XlmRoberta),
            "CamembertTokenizer" => Ok(Self::Camembert),
            // Llama 3 and its like name this class, which would not be able to read their bytes.
            "LlamaTokenizer" if byte_level => Ok(Self::Backend),
            "LlamaTokenizer" => Ok(Self::Llama),
            other if UNKNOWN_HERE.contains(&other) => Err(Error::malformed(format!(
                "tokenizer_class {class} (of tokenizer_config.json or config.json) builds a tokenizer of its own in transformers, which this program does \
                 not: expected one of {}, or PreTrainedTokenizerFast, which takes tokenizer.json as it is",
                Self::BUILT.map(|class| class.traits().name).join(", ")
            ))),
            _ => Ok(Self::Backend),
        }
    }

    /// Those that build their own.
    const BUILT: [Self; 11] = [
        Self::Bert,
        Self::DistilBert,
        Self::MpNet,
        Self::Gpt2,
        Self::Roberta,
        Self::Qwen2,
        Self::GptNeoX,
        Self::Llama,
        Self::Gemma,
        Self::XlmRoberta,
        Self::Camembert,
    ];

    pub(super) fn traits(self) -> Traits {
        let (pieces, bpe, unigram) = (Some("WordPiece"), Some("BPE"), Some("Unigram"));
        let words = &["vocab.txt"];
        match self {
            Self::Backend => PLAIN,
            Self::Bert => Traits {
                name: "BertTokenizer",
                kind: pieces,
                files: words,
                tokens: BERT_TOKENS,
                frame: Frame::Bert,
                ..PLAIN
            },
            Self::DistilBert => Traits { name: "DistilBertTokenizer", ..Self::Bert.traits() },
            Self::MpNet => Traits {
                name: "MPNetTokenizer",
                kind: pieces,
                files: words,
                tokens: MPNET_TOKENS,
                mask_takes_space: true,
                frame: Frame::Roberta,
                ..PLAIN
            },
            Self::Gpt2 => Traits {
                name: "GPT2Tokenizer",
                kind: bpe,
                files: BYTES,
                tokens: &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
                ..PLAIN
            },
            Self::Roberta => Traits {
                name: "RobertaTokenizer",
                kind: bpe,
                files: BYTES,
                tokens: ROBERTA_TOKENS,
                frame: Frame::Roberta,
                ..PLAIN
            },
            Self::Qwen2 => Traits {
                name: "Qwen2Tokenizer",
                kind: bpe,
                files: BYTES,
                tokens: &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
                ..PLAIN
            },
            Self::GptNeoX => Traits {
                name: "GPTNeoXTokenizer",
                kind: bpe,
                files: BYTES,
                tokens: &[
                    ("bos_token", END),
                    ("eos_token", END),
                    ("unk_token", END),
                    ("pad_token", "<|padding|>"),
                ],
                frame: Frame::Asked,
                ..PLAIN
            },
            Self::Llama => Traits {
                name: "LlamaTokenizer",
                kind: bpe,
                tokens: &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
                ..PLAIN
            },
            Self::Gemma => Traits {
                name: "GemmaTokenizer",
                kind: bpe,
                tokens: &[
                    ("bos_token", "<bos>"),
                    ("eos_token", "<eos>"),
                    ("unk_token", "<unk>"),
                    ("pad_token", "<pad>"),
                    ("mask_token", "<mask>"),
                ],
                ..PLAIN
            },
            Self::XlmRoberta => Traits {
                name: "XLMRobertaTokenizer",
                kind: unigram,
                tokens: ROBERTA_TOKENS,
                frame: Frame::Sentences,
                ..PLAIN
            },
            Self::Camembert => Traits {
                name: "CamembertTokenizer",
                extra: &["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
                mask_takes_space: true,
                ..Self::XlmRoberta.traits()
            },
        }
    }

    /// Whether a model gets token types from it, unless its files say otherwise.
    pub(super) fn gives_types(self) -> bool {
        self == Self::Bert
    }
}
