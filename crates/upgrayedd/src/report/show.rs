//! Numbers and names as people read them.

use std::path::Path;

/// 1234567 → "1 234 567".
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// "9 heads and 120 channels"; "nothing".
pub fn counted(counts: &[(String, usize)]) -> String {
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    let one = |(kind, count): &(String, usize)| {
        let kind = if *count == 1 { kind.trim_end_matches('s') } else { kind };
        format!("{} {kind}", grouped(*count as u64))
    };
    counts.iter().map(one).collect::<Vec<_>>().join(" and ")
}

/// A text in which paths are cut to the names of files: where they lie on somebody's machine is nobody else's business.
pub(super) fn without_folders(text: &str, known: &[&Path]) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut text = text.to_owned();
    for path in known {
        let whole = path.to_string_lossy();
        if let (true, Some(name)) = (whole.contains(['/', '\\']), name(path)) {
            text = text.replace(whole.as_ref(), &name);
        }
    }
    text.split_inclusive(char::is_whitespace).map(cut).collect()
}

/// A word with the path in it, if there is one, cut to its last name.
fn cut(word: &str) -> String {
    let begins = |at: &usize| {
        let (before, rest) = word.split_at(*at);
        let path =
            rest.starts_with("./") || rest.starts_with("../") || rest.starts_with('~') && rest.contains('/');
        // Not the middle of one, and not what stands behind "https:".
        let root = rest.starts_with('/') && !rest.starts_with("//");
        let drive = rest.get(1..3).is_some_and(|two| two == ":\\");
        (path || root || drive)
            && before.chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '/' && c != '.')
    };
    let Some(start) = word.char_indices().map(|(at, _)| at).find(begins) else { return word.to_owned() };
    let path = word[start..].trim_end_matches(|c: char| "/)]\"'`.,;:".contains(c) || c.is_whitespace());
    match path.rfind(['/', '\\']) {
        Some(slash) => format!("{}{}", &word[..start], &word[start + slash + 1..]),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_names() {
        let known = Path::new("/home/me/my models/llama");
        let text =
            "/home/me/my models/llama/config.json: skipped (see \"/etc/x/y.toml\": 1/2 of ./a/b/) and/or";
        assert_eq!(
            without_folders(text, &[known]),
            "llama/config.json: skipped (see \"y.toml\": 1/2 of b/) and/or"
        );
        assert_eq!(
            (grouped(7), grouped(1234), grouped(1_234_567)),
            ("7".into(), "1 234".into(), "1 234 567".into())
        );
    }
}
