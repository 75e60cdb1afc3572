//! Rotary positions as config.json describes them, in the old spelling and the new (Su et al. 2021).

use serde_json::Value;

use super::config::Config;
use crate::{Error, Result};

/// Kinds of rotary positions that are computed.
pub(super) const KINDS: [&str; 3] = ["default", "linear", "llama3"];

/// `head_dim / 2` inverse frequencies, with the scalings that need no knowledge of the sequence.
///
/// As in transformers 5: `rope_scaling` goes before `rope_parameters`, a value inside goes before the one on
/// the top level, and `original_max_position_embeddings` is the other way round. What a kind needs and the
/// file does not say is refused.
pub(super) fn inv_freq(
    config: &Config<'_>,
    head_dim: usize,
    max_positions: usize,
    default_theta: f64,
) -> Result<Vec<f32>> {
    let parameters = match config.object("rope_scaling")? {
        Some(old) => Some(old),
        None => config.object("rope_parameters")?,
    };
    let theta = config.number("rope_theta", Some(default_theta))?;
    inv_freq_of(config, parameters, head_dim, max_positions, theta)
}

/// The same of one set of parameters, if there is one; `theta` is the base that it need not have.
pub(super) fn inv_freq_of(
    config: &Config<'_>,
    parameters: Option<&Value>,
    head_dim: usize,
    max_positions: usize,
    theta: f64,
) -> Result<Vec<f32>> {
    let inner = Config::new(parameters.unwrap_or(&Value::Null), &[]);
    if let Some((key, _)) =
        parameters.and_then(Value::as_object).and_then(|p| p.iter().find(|(_, v)| v.is_object()))
    {
        return Err(Error::malformed(format!(
            "config.json: the rope parameters under {key:?} are for one kind of layers only: expected one set for all layers"
        )));
    }
    check_whole_heads([config, &inner])?;
    let theta = match inner.get("rope_theta") {
        Some(_) => inner.number("rope_theta", None)?,
        None => theta,
    };
    let kind = match (inner.get("rope_type"), inner.get("type")) {
        (None, None) => "default",
        (Some(value), _) | (None, Some(value)) => value
            .as_str()
            .ok_or_else(|| Error::out_of_range("config.json: the rope type", value, KINDS.join(", ")))?,
    };
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    let needed = |key: &str| {
        inner.number(key, None).map_err(|_| {
            let value = inner.get(key).unwrap_or(&Value::Null);
            Error::malformed(format!(
                "config.json: rope type {kind:?} needs {key}, a positive number, which is {value}"
            ))
        })
    };
    let scaled: Vec<f64> = match kind {
        "default" => plain.collect(),
        "linear" => {
            let factor = needed("factor")?;
            plain.map(|f| f / factor).collect()
        }
        "llama3" => {
            let (factor, low, high) =
                (needed("factor")?, needed("low_freq_factor")?, needed("high_freq_factor")?);
            const ORIGINAL: &str = "original_max_position_embeddings";
            let original = match config.get(ORIGINAL) {
                Some(_) => config.number(ORIGINAL, None)?,
                None => inner.number(ORIGINAL, Some(max_positions as f64))?,
            };
            plain.map(|f| llama3(f, original, factor, low, high)).collect()
        }
        other => {
            return Err(Error::unsupported(format!(
                "config.json: rope type {other:?} is not supported: expected {}",
                KINDS.join(", ")
            )));
        }
    };
    let frequencies: Vec<f32> = scaled.into_iter().map(|f| f as f32).collect();
    match frequencies.iter().all(|f| f.is_finite()) {
        true => Ok(frequencies),
        false => {
            Err(Error::malformed("config.json: the rope parameters make frequencies that are not finite"))
        }
    }
}

/// Refuses heads that are rotated in part.
fn check_whole_heads(places: [&Config<'_>; 2]) -> Result<()> {
    for place in places {
        let share = match place.get("partial_rotary_factor") {
            None | Some(Value::Null) => 1.0,
            Some(_) => place.number("partial_rotary_factor", None)?,
        };
        if share != 1.0 {
            return Err(Error::unsupported(format!(
                "config.json: partial_rotary_factor is {share}: only heads that are rotated as a whole (1.0) are supported"
            )));
        }
    }
    Ok(())
}

/// Llama 3's scaling: slow frequencies by `factor`, fast ones not at all, those between in between.
fn llama3(frequency: f64, original_length: f64, factor: f64, low: f64, high: f64) -> f64 {
    let turns = original_length * frequency / (2.0 * std::f64::consts::PI);
    if turns < low {
        return frequency / factor;
    }
    if turns > high {
        return frequency;
    }
    let blend = (turns - low) / (high - low);
    frequency / factor * (1.0 - blend) + frequency * blend
}
