//! What transformers 5 writes, in words that transformers 4 reads as well.

use serde_json::{Map, Value, json};

use crate::family::{Family, Task};
use crate::spec::ModelSpec;

/// Adds to a config.json what transformers 4 looks for under other keys, as far as the family reads the two spellings
/// like the one.
pub(super) fn add_older_keys(config: &mut Value, family: &Family, spec: &ModelSpec) {
    let Some(keys) = config.as_object() else { return };
    let mut older = keys.clone();
    add_rotations(&mut older, family);
    add_pattern(&mut older, family);
    let added = older.into_iter().filter(|(key, value)| keys.get(key) != Some(value)).collect::<Vec<_>>();
    for (key, value) in added {
        let mut both = config.clone();
        both[&key] = value;
        if family.spec(&both, Task::of(spec.objective)).is_ok_and(|read| read == *spec) {
            *config = both;
        }
    }
}

/// What of a config.json transformers 4 cannot be told.
pub(super) fn why_not_older(config: &Value, family: &Family, spec: &ModelSpec) -> Option<&'static str> {
    let mut older = config.clone();
    add_older_keys(&mut older, family, spec);
    let parameters = config["rope_parameters"].as_object().is_some();
    let whole = match &config["rope_parameters"]["full_attention"] {
        Value::Null => &config["rope_parameters"],
        whole => whole,
    };
    let scaled = |set: &Value| set["rope_type"].as_str().is_some_and(|kind| kind != "default");
    let is_set = |key: &str| !older[key].is_null();
    if parameters && scaled(whole) && !is_set("rope_scaling") {
        return Some("rotations like these");
    }
    // Its class takes no other keys than the factors themselves.
    if is_phi3(family)
        && ["factor", "attention_factor"].iter().any(|key| !whole[*key].is_null())
        && scaled(whole)
    {
        return Some("other factors of rotations than those by frequency");
    }
    if parameters && scaled(&config["rope_parameters"]["sliding_attention"]) {
        return Some("scaled rotations of layers with a window");
    }
    (family.obeys(EVERY) && config["layer_types"].is_array() && !is_set(EVERY))
        .then_some("windows in layers that follow no rule")
}

/// How often a layer has no window, where it is a rule.
const EVERY: &str = "global_attn_every_n_layers";

fn is_phi3(family: &Family) -> bool {
    family.model_type == "phi3"
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
        && let Some(scaling) = scaling(whole, is_phi3(family))
    {
        add(keys, "rope_scaling", Some(&scaling));
    }
}

/// A set of parameters as `rope_scaling` has it; nothing for the usual rotation.
fn scaling(set: &Value, phi3: bool) -> Option<Value> {
    let kind = set.get("rope_type").filter(|kind| *kind != "default")?;
    if kind == "longrope" && phi3 {
        // Its class in transformers 4 takes these three keys and no others.
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
