//! What a user asked, as a command line for others to read.

use std::path::Path;

use super::optimize::OptimizeConfig;

impl OptimizeConfig {
    /// The command that asks for this run: every option that is not at its default. Paths are cut to the names of
    /// files, since where they lie on somebody's machine is nobody else's business.
    pub fn command(&self) -> String {
        let table = |config: &Self| toml::Table::try_from(config).unwrap_or_default();
        let (asked, usual) = (table(self), table(&Self::default()));
        let mut words = vec!["upgrayedd optimize".to_owned()];
        let differs = |key: &'static str| {
            let value = asked.get(key)?;
            (usual.get(key) != Some(value)).then_some((key, value))
        };
        for (key, value) in Self::names().into_iter().filter_map(differs) {
            let flag = format!("--{}", key.replace('_', "-"));
            let mut add = |value: &str| words.push(format!("{flag} {}", quoted(value)));
            let said = |value: &toml::Value| {
                value.as_str().map_or_else(|| value.to_string(), |text| shown_name(key, text))
            };
            match value {
                toml::Value::Array(values) => values.iter().for_each(|value| add(&said(value))),
                toml::Value::Table(values) => {
                    values.iter().for_each(|(name, value)| add(&format!("{name}={}", said(value))));
                }
                value => add(&said(value)),
            }
        }
        words.join(" ")
    }
}

/// Options that name files, and those that name models: folders, or ids on the Hub.
const FILES: [&str; 3] = ["data", "eval_data", "timings"];
const MODELS: [&str; 2] = ["model", "teacher"];

/// What an option says, a path as its last name.
pub(crate) fn shown_name(option: &str, text: &str) -> String {
    let path = Path::new(text);
    let is_id = || {
        let plain = |part: &str| !part.is_empty() && !part.starts_with(['.', '~']);
        text.split('/').count() == 2 && text.split('/').all(plain) && !text.contains('\\') && !path.exists()
    };
    let is_path = FILES.contains(&option) || MODELS.contains(&option) && !is_id();
    let name = text.rsplit(['/', '\\']).find(|part| !part.is_empty()).filter(|_| is_path);
    name.unwrap_or(text).to_owned()
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=.,:/@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_what_differs_and_no_paths() {
        let config = OptimizeConfig::from_toml(
            "model = \"/home/someone/models/llama\"\ndata = [\"./texts/a b.txt\", \"c.txt\"]\npruning_ratio = 0.2\nrefit = false\n\
             strategy = \"entropy\"\nstrategy_option = { attention_samples = 8 }\nunits = \"heads,channels\"",
        );
        assert_eq!(
            config.expect("options").command(),
            "upgrayedd optimize --model llama --data 'a b.txt' --data c.txt --strategy entropy --strategy-option attention_samples=8 \
             --pruning-ratio 0.2 --units heads,channels --refit false"
        );
        assert_eq!(OptimizeConfig::default().command(), "upgrayedd optimize");
        let ids = [
            ("a/b", "a/b"),
            ("a/b@main", "a/b@main"),
            ("x/y/z", "z"),
            ("builtin", "builtin"),
            ("../z/", "z"),
        ];
        assert!(ids.iter().all(|(name, shown)| shown_name("model", name) == *shown));
        assert_eq!(shown_name("data", r"C:\texts\a.txt"), "a.txt");
        assert_eq!(shown_name("prompt", "./a/b or /c"), "./a/b or /c");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
