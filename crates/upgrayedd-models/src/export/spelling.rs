//! What transformers 5 writes, in words that transformers 4 reads as well.

use serde_json::{Map, Value, json};

use crate::family::{Family, Task};
use crate::spec::ModelSpec;

/// Adds to a config.json what transformers 4 looks for under other keys. Where the family would read the two
/// spellings otherwise than the one, the config stays as it is.
pub(super) fn add_older_keys(config: &mut Value, family: &Family, spec: &ModelSpec) {
    let Some(keys) = config.as_object() else { return };
    let mut both = keys.clone();
    add_rotations(&mut both, family);
    add_pattern(&mut both, family);
    let both = Value::Object(both);
    if family.spec(&both, Task::of(spec.objective)).is_ok_and(|read| read == *spec) {
        *config = both;
    }
}

/// Adds a key that is not there, or is null.
fn add(keys: &mut Map<String, Value>, key: &str, value: Option<&Value>) {
    if let Some(value) = value.filter(|_| keys.get(key).is_none_or(Value::is_null)) {
        keys.insert(key.to_owned(), value.clone());
    }
}

/// Rotations, which are one object in transformers 5.
fn add_rotations(keys: &mut Map<String, Value>, family: &Family) {
    let Some(Value::Object(sets)) = keys.get("rope_parameters").cloned() else { return };
    let first = |names: &[&'static str]| names.iter().copied().find(|name| family.obeys(name));
    // One set a type of layers, or one for all.
    let all = Value::Object(sets.clone());
    let (whole, windows) = match (sets.get("full_attention"), sets.get("sliding_attention")) {
        (None, None) => (&all, &Value::Null),
        (whole, windows) => (whole.unwrap_or(&Value::Null), windows.unwrap_or(&Value::Null)),
    };
    if let Some(theta) = first(&["global_rope_theta", "rotary_emb_base", "rope_theta"]) {
        add(keys, theta, whole.get("rope_theta"));
    }
    if let Some(theta) = first(&["local_rope_theta", "rope_local_base_freq"]) {
        add(keys, theta, windows.get("rope_theta"));
    }
    if let Some(share) = first(&["rotary_pct", "partial_rotary_factor"]) {
        add(keys, share, whole.get("partial_rotary_factor"));
    }
    if family.obeys("rope_scaling")
        && let Some(scaling) = scaling(whole)
    {
        add(keys, "rope_scaling", Some(&scaling));
    }
}

/// A set of parameters as `rope_scaling` has it; nothing for the usual rotation.
fn scaling(set: &Value) -> Option<Value> {
    let kind = set.get("rope_type").filter(|kind| *kind != "default")?;
    if kind == "longrope" {
        // Classes of transformers 4 take these three keys and no others.
        return Some(
            json!({ "type": kind, "short_factor": set["short_factor"], "long_factor": set["long_factor"] }),
        );
    }
    let mut scaling = set.as_object()?.clone();
    scaling.retain(|key, value| {
        !matches!(key.as_str(), "rope_theta" | "partial_rotary_factor") && !value.is_null()
    });
    Some(Value::Object(scaling))
}

/// Which layers have a window, by how often one has none.
fn add_pattern(keys: &mut Map<String, Value>, family: &Family) {
    const EVERY: &str = "global_attn_every_n_layers";
    let Some(types) = keys.get("layer_types").and_then(Value::as_array).filter(|_| family.obeys(EVERY))
    else {
        return;
    };
    let whole: Vec<usize> = (0..types.len()).filter(|layer| types[*layer] == "full_attention").collect();
    let every = whole.get(1).copied().unwrap_or(types.len());
    if whole.iter().copied().eq((0..types.len()).step_by(every.max(1))) {
        add(keys, EVERY, Some(&every.into()));
    }
}

/// A tokenizer_config.json whose class and special tokens transformers 4 knows, if it names others.
pub(super) fn older_tokenizer(text: &str) -> Option<String> {
    let Ok(Value::Object(mut keys)) = serde_json::from_str(text) else { return None };
    let mut changed = false;
    if keys.get("tokenizer_class").is_some_and(|class| class == "TokenizersBackend") {
        // The same class in both.
        keys.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        changed = true;
    }
    if let Some(list @ Value::Array(_)) = keys.get("extra_special_tokens").cloned() {
        keys.shift_remove("extra_special_tokens");
        add(&mut keys, "additional_special_tokens", Some(&list));
        changed = true;
    }
    changed.then(|| serde_json::to_string_pretty(&keys).ok()).flatten()
}
