//! No circle of imports among the modules of a crate, so that each can be read, moved and tested after those that it knows.
//!
//! Modules that share a parent are compared, each with all that lies below it: whatever one of them imports, its file or one below it,
//! the whole module knows. A module and those within it are one thing and may know each other. Paths are read as text, from `use` and
//! from everywhere else; tests may import what they like.

use std::collections::{BTreeMap, BTreeSet};

use super::{File, assert_none, files};

/// Circles that are there, and why they may be: the crate's folder, the module in which they lie, its children.
const KNOWN: &[(&str, &str, &[&str], &str)] = &[(
    "operator",
    "controller",
    &["apply", "error", "status"],
    "the steps and their errors are laid anew by a later change",
)];

/// Names of a module from the crate's root down, which has none.
type ModulePath = Vec<String>;

/// Modules with one parent that know each other.
#[derive(Debug, PartialEq, Eq)]
struct Circle {
    parent: String,
    members: Vec<String>,
    /// An import for each pair, with the module in which it stands.
    imports: Vec<String>,
}

/// The module that a file is, below its crate's `src/`.
fn module_path(path: &str) -> ModulePath {
    let path = path.trim_end_matches(".rs");
    if path == "lib" { ModulePath::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Names and `::`, `{`, `}`, `,` of a program; whatever else stands in it ends a path.
fn tokens(program: &str) -> Vec<&str> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut found = Vec::new();
    let mut rest = program.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if is_name(first) {
            rest.find(|letter| !is_name(letter)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        found.push(token);
        rest = after.trim_start();
    }
    found
}

/// The paths that one tree of names stands for, `a::{b, c::d}` for two, and how many tokens it takes.
fn tree(tokens: &[&str]) -> (Vec<ModulePath>, usize) {
    let mut names = ModulePath::new();
    let mut at = 0;
    loop {
        match tokens.get(at..).unwrap_or_default() {
            ["{", ..] => {
                let mut paths = Vec::new();
                at += 1;
                while let Some(token) = tokens.get(at).filter(|token| **token != "}") {
                    let (below, length) = if *token == "," { (Vec::new(), 1) } else { tree(&tokens[at..]) };
                    paths.extend(below.into_iter().map(|path| [names.clone(), path].concat()));
                    at += length;
                }
                return (paths, at + 1);
            }
            [name, "::", ..] => {
                names.push((*name).to_owned());
                at += 2;
            }
            // Renamed: `a as b` is a path, its new name none.
            [name, "as", _, ..] => {
                names.push((*name).to_owned());
                return (vec![names], at + 3);
            }
            [name, ..] => {
                names.push((*name).to_owned());
                return (vec![names], at + 1);
            }
            [] => return (vec![names], at),
        }
    }
}

/// Every path of this crate that a module's program names, from the crate's root down.
fn named(program: &str, module: &[String]) -> Vec<ModulePath> {
    let tokens = tokens(program);
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let is_start = matches!(*token, "crate" | "self" | "super") && tokens.get(at + 1) == Some(&"::");
        if !is_start || at.checked_sub(1).and_then(|before| tokens.get(before)) == Some(&"::") {
            continue;
        }
        for path in tree(&tokens[at..]).0 {
            let mut names = path.as_slice();
            let mut from = if *token == "crate" { &[][..] } else { module };
            while let Some((first, rest)) =
                names.split_first().filter(|(first, _)| ["crate", "self", "super"].contains(&first.as_str()))
            {
                if first == "super" {
                    from = from.split_last().map_or(&[][..], |(_, parent)| parent);
                }
                names = rest;
            }
            found.push([from, names].concat());
        }
    }
    found
}

/// The circles among modules, each given with its program.
fn circles(modules: &BTreeMap<ModulePath, String>) -> Vec<Circle> {
    // For each parent: which child knows which, and by what import first.
    let mut known: BTreeMap<&[String], BTreeMap<(&str, &str), String>> = BTreeMap::new();
    for (module, program) in modules {
        for path in named(program, module) {
            let lengths = (0..=path.len()).rev();
            let other =
                lengths.filter_map(|length| modules.get_key_value(&path[..length])).map(|(other, _)| other).next();
            let Some(other) = other else { continue };
            let shared = module.iter().zip(other).take_while(|(one, other)| one == other).count();
            // Otherwise one lies within the other.
            if let (Some(from), Some(to)) = (module.get(shared), other.get(shared)) {
                let import = format!("{} imports {}", module.join("::"), path.join("::"));
                known.entry(&module[..shared]).or_default().entry((from, to)).or_insert(import);
            }
        }
    }
    known.iter().flat_map(|(parent, imports)| circles_of(parent, imports)).collect()
}

/// What is known by one of a module's children, directly or through others.
fn reached<'a>(name: &'a str, imports: &'a BTreeMap<(&str, &str), String>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![name];
    while let Some(name) = waiting.pop() {
        let next = imports.keys().filter(|(from, _)| *from == name).map(|(_, to)| *to);
        waiting.extend(next.filter(|to| reached.insert(*to)));
    }
    reached
}

/// The circles among the children of one module, from who knows whom of them.
fn circles_of(parent: &[String], imports: &BTreeMap<(&str, &str), String>) -> Vec<Circle> {
    let names: BTreeSet<&str> = imports.keys().map(|(from, _)| *from).collect();
    let all: BTreeMap<&str, BTreeSet<&str>> = names.iter().map(|name| (*name, reached(name, imports))).collect();
    let mut found: Vec<Circle> = Vec::new();
    for (name, reached) in &all {
        let is_back = |other: &&str| all.get(other).is_some_and(|back| back.contains(name));
        let members: Vec<&str> = reached.iter().copied().filter(|other| is_back(other)).collect();
        // A circle is found from each of its members.
        if members.first() == Some(name) {
            let within = imports.iter().filter(|((from, to), _)| members.contains(from) && members.contains(to));
            let imports = within.map(|(_, import)| import.clone()).collect();
            let members = members.iter().map(|member| (*member).to_owned()).collect();
            found.push(Circle { parent: parent.join("::"), members, imports });
        }
    }
    found
}

/// The modules of a crate's library; its folder ends with a slash.
fn modules(sources: &[File], folder: &str) -> BTreeMap<ModulePath, String> {
    let is_library = |path: &str| path != "main.rs" && !path.starts_with("bin/");
    let below = |file: &File| {
        let path = file.path.strip_prefix(folder)?.strip_prefix("src/")?;
        let program = || file.program().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
        (is_library(path) && !file.is_test()).then(|| (module_path(path), program()))
    };
    sources.iter().filter_map(below).collect()
}

#[test]
fn no_modules_import_each_other() {
    let sources = files(".rs");
    let mut breaches = Vec::new();
    let mut gone = KNOWN.to_vec();
    for manifest in files("Cargo.toml") {
        let folder = manifest.path.trim_end_matches("Cargo.toml");
        for Circle { parent, members, imports } in circles(&modules(&sources, folder)) {
            let is_known = |(in_folder, in_module, between, _): &(&str, &str, &[&str], &str)| {
                folder.trim_end_matches('/') == *in_folder && parent == *in_module && members == *between
            };
            match gone.iter().position(is_known) {
                Some(at) => drop(gone.remove(at)),
                None => breaches.push(format!("{folder}src: {}: {}", members.join(", "), imports.join("; "))),
            }
        }
    }
    breaches.extend(gone.iter().map(|(folder, _, between, _)| {
        format!("{folder}: {} import each other no more: take them from the list", between.join(", "))
    }));
    assert_none("circles of imports", &breaches);
}

/// Parent and members of each circle among modules, which are given by path and text.
fn found(sources: &[(&str, &str)]) -> Vec<(String, String)> {
    let file = |(path, text): &(&str, &str)| File { path: format!("a/src/{path}"), text: (*text).to_owned() };
    let sources: Vec<File> = sources.iter().map(file).collect();
    circles(&modules(&sources, "a/")).into_iter().map(|circle| (circle.parent, circle.members.join(" "))).collect()
}

#[test]
fn a_circle_is_found_however_it_is_written_and_however_long_it_is() {
    let pair = [(String::new(), "b c".to_owned())];
    for (b, c) in [
        ("use crate::c;", "use crate::b;"),
        ("use super::{\n    c::{self, D},\n    e,\n};", "use crate::{b::B as C, e::*};"),
        ("fn f() -> crate::c::D {}", "fn g() { super::b::f(); }"),
        ("pub use crate::c::D;", "pub(crate) use crate::b::B;"),
    ] {
        assert_eq!(found(&[("lib.rs", "mod b;"), ("b.rs", b), ("c.rs", c), ("e.rs", "")]), pair, "{b} {c}");
    }
    let three =
        [("b.rs", "use crate::c;"), ("c.rs", "use crate::d::D;"), ("d.rs", "use super::b;"), ("e.rs", "use super::b;")];
    assert_eq!(found(&three), [(String::new(), "b c d".to_owned())]);
}

#[test]
fn what_lies_below_a_module_counts_as_its_own_and_circles_below_it_are_found_there() {
    let below = [("b.rs", ""), ("b/x.rs", "use crate::c;"), ("c.rs", "use crate::b::B;"), ("b/y.rs", "")];
    assert_eq!(found(&below), [(String::new(), "b c".to_owned())]);
    let inside = [("b.rs", ""), ("b/x.rs", "use super::y::Y;"), ("b/y.rs", "use crate::b::{self, x::X};")];
    assert_eq!(found(&inside), [("b".to_owned(), "x y".to_owned())]);
}

#[test]
fn a_module_with_its_own_children_a_mention_and_a_test_are_no_circle() {
    let none: [(String, String); 0] = [];
    assert_eq!(
        found(&[
            ("lib.rs", "use self::b::B;\nstruct A;"),
            ("b.rs", "use crate::A;\nuse self::x::X;"),
            ("b/x.rs", "use super::B;")
        ]),
        none
    );
    for c in [
        "// crate::b",
        "/// [`crate::b`]\nlet a = \"crate::b\";",
        "#[cfg(test)]\nmod tests {\n    use crate::b;\n}",
        "#[cfg(test)]\nuse crate::b;",
        "use other::b;",
        "pub(crate) struct B;",
    ] {
        assert_eq!(found(&[("b.rs", "use crate::c;"), ("c.rs", c)]), none, "{c}");
    }
    assert_eq!(found(&[("b.rs", "use crate::c;"), ("c.rs", ""), ("c/tests.rs", "use crate::b;")]), none);
}
