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
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_start_matches(['"', '\'', '(', '[', '`']);
        let is_path = word.starts_with('/')
            || word.starts_with("./")
            || word.starts_with("../")
            || word.starts_with('~');
        match word.trim_end_matches(|c: char| "/)]\"'`.,;:".contains(c) || c.is_whitespace()).rfind('/') {
            Some(slash) if is_path => {
                out.push_str(&piece[..piece.len() - word.len()]);
                out.push_str(&word[slash + 1..]);
            }
            _ => out.push_str(piece),
        }
    }
    out
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
