//! Labelled examples for classifiers and regression.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::options::DataOptions;
use super::record::{Label, Record, Skipped, Wanted};
use super::records::{KINDS, for_each_record};
use super::rows::{Row, Targets};
use super::text::extension;
use crate::model::Model;
use crate::spec::Objective;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Classes that mean that there is none.
const UNLABELLED: [i64; 2] = [-1, -100];

/// Examples, and what was passed over.
pub(super) struct Labelled {
    pub(super) rows: Vec<Row>,
    pub(super) notices: Vec<String>,
}

/// Reads all examples, framed and cut to the sequence length.
pub(super) fn read(
    files: &[PathBuf],
    model: &Model,
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<Labelled> {
    let objective = model.spec.objective;
    let mut rows = Vec::new();
    let (mut skipped, mut unlabelled) = (Skipped::default(), 0);
    let classes = Classes::of(&model.config, objective.outputs().unwrap_or(1))?;
    for path in files {
        extension(path, &KINDS)?;
        let before = (rows.len(), unlabelled);
        let row_or_line =
            if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) { "row" } else { "line" };
        for_each_record(path, &Wanted { options, labelled: true }, &mut |record| {
            let Record { number, text, pair, label, has_more } = record;
            skipped.with_more += usize::from(has_more);
            let bad = |message: String| Error::bad_file(path, format!("{row_or_line} {number}: {message}"));
            let wants_pair = options.read.text_pair_field.is_some();
            let (Some(text), Some(label), false) = (text, label, wants_pair && pair.is_none()) else {
                skipped.without_text += 1;
                return Ok(());
            };
            let targets = match objective {
                Objective::MultiLabel { .. } => classes.marks(&label),
                _ if objective.is_regression() => value_of(&label),
                _ => classes.target(&label),
            };
            let Some(targets) = targets.map_err(bad)? else {
                unlabelled += 1;
                return Ok(());
            };
            let pair = pair.filter(|_| wants_pair);
            let (tokens, types) = tokenizer.sequence(&text, pair.as_deref(), options.sequence_length)?;
            if tokens.is_empty() {
                let what = if pair.is_some() { "one of the two texts is empty" } else { "the text is empty" };
                return Err(bad(what.to_owned()));
            }
            let row = Row { tokens, mask: None, types, targets };
            row.check(&model.spec, rows.len()).map_err(|e| bad(e.to_string()))?;
            rows.push(row);
            Ok(())
        })?;
        if rows.len() == before.0 {
            let message = match unlabelled - before.1 {
                0 => "holds no examples".to_owned(),
                count => {
                    format!(
                        "holds no labelled examples: the labels of all {count} are -1 or -100, which mean that there is none"
                    )
                }
            };
            return Err(Error::bad_file(path, message));
        }
    }
    let mut notices = skipped.notices();
    if unlabelled > 0 {
        let examples =
            if unlabelled == 1 { "1 example".to_owned() } else { format!("{unlabelled} examples") };
        notices
            .push(format!("not read, for want of a label (-1 and -100 mean that there is none): {examples}"));
    }
    Ok(Labelled { rows, notices })
}

fn value_of(label: &Label) -> std::result::Result<Option<Targets>, String> {
    let value = match label {
        Label::Number(value) => *value as f32,
        Label::Text(text) | Label::Cell(text) => text.trim().parse().unwrap_or(f32::NAN),
        Label::Mark(_) | Label::List(_) => f32::NAN,
    };
    if value.is_finite() {
        return Ok(Some(Targets::Value(value)));
    }
    Err(format!("label {} is no number, which this model predicts (regression)", shown(label)))
}

fn shown(label: &Label) -> String {
    match label {
        Label::Number(value) => value.to_string(),
        Label::Text(text) | Label::Cell(text) => format!("{text:?}"),
        Label::Mark(mark) => mark.to_string(),
        Label::List(labels) => format!("[{}]", labels.iter().map(shown).collect::<Vec<_>>().join(", ")),
    }
}

/// Orders numbers by what they are: there is one zero.
fn bits(number: f64) -> u64 {
    (number + 0.0).to_bits()
}

/// The classes of a model, by number and by name.
struct Classes {
    count: usize,
    /// Names with all the classes that config.json gives them.
    names: BTreeMap<String, Vec<i64>>,
    /// Names that are numbers, by their value.
    numerals: BTreeMap<u64, String>,
}

/// What a text says if it is a number, or true or false, however it is written.
fn numeral(text: &str) -> Option<f64> {
    match text.trim() {
        "True" | "true" | "TRUE" => Some(1.0),
        "False" | "false" | "FALSE" => Some(0.0),
        number => number.parse().ok().filter(|n: &f64| n.is_finite()),
    }
}

impl Classes {
    /// As `label2id` and `id2label` have them.
    fn of(config: &Value, count: usize) -> Result<Self> {
        let mut names: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
        let mut add = |name: &str, class: Option<i64>, key: &str| match class
            .filter(|c| (0..count as i64).contains(c))
        {
            Some(class) => {
                let known = names.entry(name.to_owned()).or_default();
                if !known.contains(&class) {
                    known.push(class);
                }
                Ok(())
            }
            None => Err(Error::data(format!(
                "config.json: {key} gives {name:?} a class that is none of 0 to {}",
                count.max(1) - 1
            ))),
        };
        if count > 1 || config["problem_type"] == "multi_label_classification" {
            for (name, class) in config["label2id"].as_object().into_iter().flatten() {
                add(name, number(class), "label2id")?;
            }
            for (class, name) in config["id2label"].as_object().into_iter().flatten() {
                if let Some(name) = name.as_str() {
                    add(name, class.parse().ok(), "id2label")?;
                }
            }
        }
        let numerals = names.keys().filter_map(|name| Some((bits(numeral(name)?), name.clone()))).collect();
        Ok(Self { count, names, numerals })
    }

    /// Which labels there are: a number for each from a list of names or classes, or from a list of marks for all
    /// classes, true or false, or 1 and 0.
    fn marks(&self, label: &Label) -> std::result::Result<Option<Targets>, String> {
        let alone = [label.clone()];
        let labels = match label {
            Label::List(labels) => &labels[..],
            _ => &alone,
        };
        if labels.iter().any(|label| matches!(label, Label::Mark(_))) || self.are_marks(label, labels)? {
            let mark = |label: &Label| match label {
                Label::Mark(value) | Label::Number(value) if (0.0..=1.0).contains(value) => {
                    Some(*value as f32)
                }
                _ => None,
            };
            let marks: Option<Vec<f32>> = labels.iter().map(mark).collect();
            let wrong = || {
                format!(
                    "label {} is no list of {} marks, true or false, or 0 and 1",
                    shown(label),
                    self.count
                )
            };
            let marks = marks.filter(|marks| marks.len() == self.count);
            return marks.map(|marks| Some(Targets::Labels(marks))).ok_or_else(wrong);
        }
        let mut marks = vec![0.0; self.count];
        for label in labels {
            match self.target(label)? {
                Some(Targets::Label(class)) => marks[class as usize] = 1.0,
                _ if labels.len() == 1 => return Ok(None),
                _ => {
                    return Err(format!(
                        "label {} has one among others that says that there is none",
                        shown(label)
                    ));
                }
            }
        }
        Ok(Some(Targets::Labels(marks)))
    }

    /// Whether a list of numbers has one for each class, and not the numbers of classes.
    fn are_marks(&self, label: &Label, labels: &[Label]) -> std::result::Result<bool, String> {
        let numbers: Option<Vec<f64>> = labels
            .iter()
            .map(|label| match label {
                Label::Number(value) => Some(*value),
                _ => None,
            })
            .collect();
        let Some(numbers) = numbers.filter(|numbers| numbers.len() == self.count) else { return Ok(false) };
        if !matches!(label, Label::List(_)) || numbers.iter().any(|n| !(0.0..=1.0).contains(n)) {
            return Ok(false);
        }
        if self.count == 1 {
            return Ok(true);
        }
        let repeated = (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at]));
        let classes = numbers.iter().all(|n| n.fract() == 0.0 && (*n as usize) < self.count);
        if classes && !repeated {
            return Err(format!(
                "label {} may be the numbers of classes, or a mark for each class: write true and false, or 1.0 and 0.0, for marks, or names for classes",
                shown(label)
            ));
        }
        Ok(true)
    }

    /// The class of a label; `None` if it says that there is none. Numbers are classes, text is names, and
    /// what could be both is refused unless both are the same.
    fn target(&self, label: &Label) -> std::result::Result<Option<Targets>, String> {
        let whole =
            |value: f64| if value.fract() == 0.0 && value.abs() < 1e15 { Some(value as i64) } else { None };
        let (number, exact) = match label {
            Label::Number(value) => (Some(*value), None),
            Label::Text(text) | Label::Cell(text) => (numeral(text), self.names.get_key_value(text.trim())),
            Label::Mark(_) | Label::List(_) => {
                return Err(format!("label {} is a list: the model takes one class", shown(label)));
            }
        };
        // A name of the same value is as good as one that is spelled like it.
        let alike = || self.names.get_key_value(self.numerals.get(&bits(number?))?);
        let class = match (exact.or_else(alike), number.and_then(whole)) {
            (Some((name, classes)), number) => match (&classes[..], number) {
                ([class], None) => Some(*class),
                ([class], Some(number)) if *class == number => Some(*class),
                // In a file that tells text from numbers, text that is a name is one.
                ([class], Some(_)) if exact.is_some() && matches!(label, Label::Text(_)) => Some(*class),
                ([class], Some(number)) => {
                    return Err(format!(
                        "label {} is the name {name:?} of class {class} in config.json and the number of class {number}: \
                         write names as text in a .jsonl file, where numbers and text differ, or give the classes other names",
                        shown(label)
                    ));
                }
                (several, _) => {
                    return Err(format!(
                        "label {name:?} is the name of the classes {several:?} in config.json: expected one"
                    ));
                }
            },
            (None, number) => number,
        };
        match class {
            Some(class) if UNLABELLED.contains(&class) => Ok(None),
            Some(class) if (0..self.count as i64).contains(&class) => Ok(Some(Targets::Label(class))),
            _ => {
                let names: Vec<&str> = self.names.keys().take(6).map(String::as_str).collect();
                let names = if names.is_empty() {
                    String::new()
                } else {
                    format!(", or a name from config.json such as {}", names.join(", "))
                };
                Err(format!(
                    "label {} is none of the model's classes: expected 0 to {}{names}",
                    shown(label),
                    self.count - 1
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(config: &Value, label: Label) -> std::result::Result<Option<i64>, String> {
        let target = Classes::of(config, 3).expect("classes").target(&label)?;
        Ok(target.map(|t| match t {
            Targets::Label(class) => class,
            other => panic!("{other:?} is no class"),
        }))
    }

    #[test]
    fn numbers_are_classes_and_text_is_names() {
        let config = json!({ "id2label": { "0": "bad", "1": "so-so", "2": "good" } });
        let text = |t: &str| Label::Text(t.to_owned());
        let cell = |t: &str| Label::Cell(t.to_owned());
        for label in [text("good"), cell("good"), cell("2"), cell("2.0"), text("2"), Label::Number(2.0)] {
            assert_eq!(class(&config, label.clone()), Ok(Some(2)), "{label:?}");
        }
        assert_eq!(class(&config, cell("True")), Ok(Some(1)));
        for label in [cell("-1"), cell("-100"), Label::Number(-1.0), text("-1")] {
            assert_eq!(class(&config, label), Ok(None));
        }
        for label in [
            cell("3"),
            Label::Number(0.5),
            text("Good"),
            cell(""),
            Label::Number(f64::NAN),
            Label::Number(-2.0),
        ] {
            assert!(class(&config, label.clone()).is_err(), "{label:?}");
        }
    }

    #[test]
    fn several_labels_are_names_or_classes_or_marks() {
        let config = json!({ "id2label": { "0": "joy", "1": "anger", "2": "fear" } });
        let classes = Classes::of(&config, 3).expect("classes");
        let number = |n: f64| Label::Number(n);
        let list = |labels: &[Label]| Label::List(labels.to_vec());
        let text = |t: &str| Label::Text(t.to_owned());
        let mark = |there: bool| Label::Mark(f64::from(there));
        let fear_and_joy = Ok(Some(Targets::Labels(vec![1.0, 0.0, 1.0])));
        for label in [
            list(&[text("fear"), text("joy")]),
            list(&[number(2.0), number(0.0)]),
            list(&[mark(true), mark(false), mark(true)]),
            list(&[number(1.0), number(0.0), number(1.0)]),
        ] {
            assert_eq!(classes.marks(&label), fear_and_joy, "{label:?}");
        }
        assert_eq!(classes.marks(&list(&[])), Ok(Some(Targets::Labels(vec![0.0; 3]))));
        assert_eq!(classes.marks(&text("anger")), Ok(Some(Targets::Labels(vec![0.0, 1.0, 0.0]))));
        assert_eq!(classes.marks(&number(-1.0)), Ok(None));
        for label in [
            list(&[text("rage")]),
            list(&[mark(true)]),
            list(&[number(3.0)]),
            list(&[number(0.5)]),
            list(&[number(1.0), number(-1.0)]),
        ] {
            assert!(classes.marks(&label).is_err(), "{label:?}");
        }
        let two = Classes::of(&json!({}), 2).expect("classes");
        assert!(two.marks(&list(&[number(0.0), number(1.0)])).is_err(), "classes or marks?");
        assert!(two.marks(&list(&[number(1.0), number(1.0)])).is_ok());
        let marks = Ok(Some(Targets::Labels(vec![1.0, 0.25])));
        assert_eq!(two.marks(&list(&[Label::Mark(1.0), Label::Mark(0.25)])), marks);
        let one = Classes::of(&json!({}), 1).expect("classes");
        assert_eq!(one.marks(&list(&[number(0.0)])), Ok(Some(Targets::Labels(vec![0.0]))));
    }

    #[test]
    fn what_could_be_both_is_refused() {
        let stars = json!({ "label2id": { "1": 0, "2": 1, "3": 2 } });
        assert!(
            class(&stars, Label::Cell("1".to_owned()))
                .is_err_and(|e| e.contains("class 0") && e.contains("class 1"))
        );
        assert_eq!(class(&stars, Label::Text("1".to_owned())), Ok(Some(0)));
        assert!(
            class(&stars, Label::Number(1.0)).is_err()
                && class(&stars, Label::Cell("01".to_owned())).is_err()
        );
        let spelled = json!({ "id2label": { "0": "1.0", "1": "2.0", "2": "False" } });
        assert!(
            class(&spelled, Label::Text("1".to_owned())).is_err()
                && class(&spelled, Label::Cell("FALSE".to_owned())).is_err()
        );
        assert_eq!(class(&spelled, Label::Text("1.0".to_owned())), Ok(Some(0)));
        let numbered = json!({ "label2id": { "0": 0, "1": 1, "2": 2 } });
        assert_eq!(class(&numbered, Label::Cell("1".to_owned())), Ok(Some(1)));
        let twice = json!({ "id2label": { "0": "x", "1": "x" }, "label2id": { "y": 2 } });
        assert!(class(&twice, Label::Text("x".to_owned())).is_err());
        assert!(Classes::of(&json!({ "label2id": { "x": 7 } }), 3).is_err());
    }
}
