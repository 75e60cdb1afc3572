//! Imports go one way: the modules of a crate form no circle, nor do its folders.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Module → modules that it imports, by their paths (`data::tokens`; the root is empty).
type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_form_no_circles() {
    for name in ["upgrayedd-nn", "upgrayedd-models", "upgrayedd", "upgrayedd-cli"] {
        let graph = graph_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src"));
        assert!(graph.values().any(|to| !to.is_empty()), "{name}: no imports were found");
        let found = circles(&graph);
        assert!(found.is_empty(), "{name}: these import each other in a circle: {found:?}");
        let folders = circles(&by_folder(&graph));
        assert!(folders.is_empty(), "{name}: these folders import each other in a circle: {folders:?}");
    }
}

#[test]
fn a_circle_is_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            graph.entry((*to).to_owned()).or_default();
        }
        graph
    };
    assert_eq!(circles(&graph(&[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")])), [["b", "c"]]);
    let inner = by_folder(&graph(&[("a::x", "b::y"), ("b::z", "a")]));
    assert_eq!(circles(&inner), [["a", "b"]]);
    let found = imports("use super::{a::B, c};\nuse crate::d::{E, f::{self, G}};\n", "x::y");
    assert!(
        ["x::a::B", "x::c", "d::E", "d::f::self", "d::f::G"]
            .iter()
            .all(|path| found.iter().any(|f| f == path)),
        "{found:?}"
    );
}

/// The modules of a source folder and their imports; what only tests import does not count.
fn graph_of(src: &Path) -> Graph {
    let mut sources = BTreeMap::new();
    collect(src, "", &mut sources);
    let resolve = |path: &str| -> Option<String> {
        let mut path = path;
        loop {
            if sources.contains_key(path) && !path.is_empty() {
                return Some(path.to_owned());
            }
            path = path.rsplit_once("::")?.0;
        }
    };
    let edges = |(module, text): (&String, &String)| {
        let found =
            imports(text, module).iter().filter_map(|path| resolve(path)).filter(|to| to != module).collect();
        (module.clone(), found)
    };
    sources.iter().map(edges).collect()
}

fn collect(dir: &Path, prefix: &str, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let module = if prefix.is_empty() { stem.clone() } else { format!("{prefix}::{stem}") };
        if path.is_dir() {
            collect(&path, &module, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
            into.insert(
                if ["mod", "lib", "main"].contains(&stem.as_str()) { prefix.to_owned() } else { module },
                text,
            );
        }
    }
}

/// The paths that a module's text names, from the crate's root on.
fn imports(text: &str, module: &str) -> Vec<String> {
    let parent =
        |module: &str| module.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned());
    let join =
        |base: &str, rest: &str| if base.is_empty() { rest.to_owned() } else { format!("{base}::{rest}") };
    let mut found = Vec::new();
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices("::") {
        // Every path begins behind what cannot be part of one.
        let start = code[..at].rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |i| i + 1);
        let first = &code[start..at];
        if code[..start].ends_with("::") || code[..start].ends_with('$') {
            continue;
        }
        let base = match first {
            "crate" => String::new(),
            "super" => parent(module),
            // A child of the module, as in `pub use child::Name`.
            child if child.chars().next().is_some_and(char::is_lowercase) => join(module, child),
            _ => continue,
        };
        for path in expand(&code[at + 2..]) {
            match path.strip_prefix("super::") {
                Some(rest) if first == "super" => found.push(join(&parent(&base), rest)),
                _ => found.push(join(&base, &path)),
            }
        }
    }
    found
}

/// `a::{b, c::D}` → `a::b`, `a::c::D`.
fn expand(text: &str) -> Vec<String> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (front, rest) = text.split_at(end);
    let Some(inner) = rest.strip_prefix('{') else { return vec![front.trim_end_matches(':').to_owned()] };
    let (mut depth, mut part, mut parts) = (0, String::new(), Vec::new());
    for c in inner.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                part.push(c);
            }
        }
    }
    parts.push(part);
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(expand).map(|part| format!("{front}{part}")).collect()
}

/// The graph between the folders (or files) right under the root.
fn by_folder(graph: &Graph) -> Graph {
    let top = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    let mut folders = Graph::new();
    for (from, to) in graph.iter().filter(|(from, _)| !from.is_empty()) {
        let entry = folders.entry(top(from)).or_default();
        entry.extend(to.iter().map(|to| top(to)).filter(|to| !to.is_empty() && *to != top(from)));
    }
    folders
}

/// Sets of modules that reach each other.
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reachable = |from: &String| {
        let (mut seen, mut queue) = (BTreeSet::new(), vec![from]);
        while let Some(module) = queue.pop() {
            queue.extend(graph.get(module).into_iter().flatten().filter(|to| seen.insert((*to).clone())));
        }
        seen
    };
    let reach: BTreeMap<&String, BTreeSet<String>> =
        graph.keys().map(|module| (module, reachable(module))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for (module, reached) in reach.iter().filter(|(module, reached)| reached.contains(**module)) {
        let circle =
            reached.iter().filter(|other| reach.get(other).is_some_and(|back| back.contains(*module)));
        found.insert(circle.cloned().collect());
    }
    found.into_iter().collect()
}
