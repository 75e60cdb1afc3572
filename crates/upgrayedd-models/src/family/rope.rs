//! Rotary positions as config.json describes them, in the old spelling and the new (Su et al. 2021).

use serde_json::Value;

use super::config::Config;
use crate::spec::Rope;
use crate::{Error, Result};

/// Kinds of rotary positions that are computed.
pub(super) const KINDS: [&str; 4] = ["default", "linear", "llama3", "longrope"];

/// What a rotation depends on beside its parameters.
#[derive(Clone, Copy)]
pub(super) struct Of {
    /// Columns of a head that are rotated.
    pub(super) columns: usize,
    pub(super) max_positions: usize,
    /// The base where nothing says another.
    pub(super) theta: f64,
}

/// The rotation of heads that are rotated as a whole.
///
/// As in transformers 5: `rope_scaling` goes before `rope_parameters`, a value inside goes before the one on
/// the top level, and `original_max_position_embeddings` is the other way round. What a kind needs and the
/// file does not say is refused.
pub(super) fn whole(config: &Config<'_>, of: Of) -> Result<Rope> {
    let parameters = parameters(config)?;
    check_whole_heads([config, &Config::new(parameters.unwrap_or(&Value::Null), &[])])?;
    let theta = config.number("rope_theta", Some(of.theta))?;
    rotation(config, parameters, Of { theta, ..of })
}

/// The parameters in the old spelling or in the new, if there are any.
pub(super) fn parameters<'a>(config: &Config<'a>) -> Result<Option<&'a Value>> {
    match config.object("rope_scaling")? {
        Some(old) => Ok(Some(old)),
        None => config.object("rope_parameters"),
    }
}

/// The rotation of one set of parameters, if there is one.
pub(super) fn rotation(config: &Config<'_>, parameters: Option<&Value>, of: Of) -> Result<Rope> {
    let inner = Config::new(parameters.unwrap_or(&Value::Null), &[]);
    if let Some((key, _)) =
        parameters.and_then(Value::as_object).and_then(|p| p.iter().find(|(_, v)| v.is_object()))
    {
        return Err(Error::malformed(format!(
            "config.json: the rope parameters under {key:?} are for one kind of layers only: expected one set for all layers"
        )));
    }
    if !of.columns.is_multiple_of(2) {
        return Err(Error::malformed(format!(
            "config.json: {} columns of a head are rotated: rotary positions need an even number",
            of.columns
        )));
    }
    let theta = match inner.get("rope_theta") {
        Some(_) => inner.number("rope_theta", None)?,
        None => of.theta,
    };
    let kind = match (inner.get("rope_type"), inner.get("type")) {
        (None, None) => "default",
        (Some(value), _) | (None, Some(value)) => value
            .as_str()
            .ok_or_else(|| Error::out_of_range("config.json: the rope type", value, KINDS.join(", ")))?,
    };
    let plain = (0..of.columns / 2).map(|i| theta.powf(-2.0 * i as f64 / of.columns as f64));
    let needed = |key: &str| {
        inner.number(key, None).map_err(|_| {
            let value = inner.get(key).unwrap_or(&Value::Null);
            Error::malformed(format!(
                "config.json: rope type {kind:?} needs {key}, a positive number, which is {value}"
            ))
        })
    };
    let original = || {
        const ORIGINAL: &str = "original_max_position_embeddings";
        match config.get(ORIGINAL) {
            Some(_) => config.number(ORIGINAL, None),
            None => inner.number(ORIGINAL, Some(of.max_positions as f64)),
        }
    };
    let simple = |frequencies: Vec<f64>| {
        Ok(Rope { base: theta, inv_freq: finite(frequencies)?, scale: 1.0, long: None })
    };
    match kind {
        "default" => simple(plain.collect()),
        "linear" => {
            let factor = needed("factor")?;
            simple(plain.map(|f| f / factor).collect())
        }
        "llama3" => {
            let (factor, low, high) =
                (needed("factor")?, needed("low_freq_factor")?, needed("high_freq_factor")?);
            let original = original()?;
            simple(plain.map(|f| llama3(f, original, factor, low, high)).collect())
        }
        "longrope" => {
            let factors = |key| inner.numbers(key, of.columns / 2);
            let (short, long, original) = (factors("short_factor")?, factors("long_factor")?, original()?);
            if original < 2.0 || original.fract() != 0.0 {
                return Err(Error::malformed(format!(
                    "config.json: original_max_position_embeddings is {original}: rope type \"longrope\" needs a whole number of 2 or more"
                )));
            }
            let factor = match inner.get("factor").filter(|v| !v.is_null()) {
                Some(_) => inner.number("factor", None)?,
                None => of.max_positions as f64 / original,
            };
            let scale = match inner.get("attention_factor").filter(|v| !v.is_null()) {
                Some(_) => inner.number("attention_factor", None)?,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / original.ln()).sqrt(),
            };
            if !(scale as f32).is_finite() {
                return Err(Error::malformed("config.json: attention_factor is too large"));
            }
            let scaled =
                |factors: Vec<f64>| finite(plain.clone().zip(factors).map(|(f, by)| f / by).collect());
            let long = Some((original as usize, scaled(long)?));
            Ok(Rope { base: theta, inv_freq: scaled(short)?, scale: scale as f32, long })
        }
        other => Err(Error::unsupported(format!(
            "config.json: rope type {other:?} is not supported: expected {}",
            KINDS.join(", ")
        ))),
    }
}

fn finite(frequencies: Vec<f64>) -> Result<Vec<f32>> {
    let frequencies: Vec<f32> = frequencies.into_iter().map(|f| f as f32).collect();
    match frequencies.iter().all(|f| f.is_finite()) {
        true => Ok(frequencies),
        false => {
            Err(Error::malformed("config.json: the rope parameters make frequencies that are not finite"))
        }
    }
}

/// How many columns of a head are rotated, where that may be a part of them.
pub(super) fn part_of(parameters: Option<&Value>, otherwise: f64, head_dim: usize) -> Result<usize> {
    let inner = Config::new(parameters.unwrap_or(&Value::Null), &[]);
    let share = match inner.get("partial_rotary_factor") {
        None | Some(Value::Null) => otherwise,
        Some(_) => inner.number("partial_rotary_factor", None)?,
    };
    if share > 1.0 {
        return Err(Error::out_of_range(
            "config.json: partial_rotary_factor",
            share,
            "more than 0 and at most 1",
        ));
    }
    Ok((head_dim as f64 * share) as usize)
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
