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

/// A value, of a path the last name.
fn said(value: &toml::Value) -> String {
    let Some(text) = value.as_str() else { return value.to_string() };
    let path = Path::new(text);
    let is_path = path.is_absolute() || text.starts_with(['.', '~']) || path.exists();
    let name = path.file_name().filter(|_| is_path).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| text.to_owned())
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
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
