//! What every source file keeps to.

use super::{assert_none, files, read};

/// Most lines of a file.
const MAX_LINES: usize = 500;

#[test]
fn every_file_begins_with_what_it_is_for() {
    let found: Vec<String> = files(".rs")
        .into_iter()
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| format!("{}:1: it does not begin with `//! `", file.path))
        .collect();
    assert_none("first line", &found);
}

#[test]
fn no_file_is_long() {
    let mut found = Vec::new();
    for suffix in [".rs", ".cpp", ".h", ".sh"] {
        let long = files(suffix).into_iter().map(|file| (file.text.lines().count(), file.path));
        found
            .extend(long.filter(|(lines, _)| *lines > MAX_LINES).map(|(lines, path)| format!("{path}: {lines} lines")));
    }
    assert_none("at most 500 lines", &found);
}

#[test]
fn no_module_is_called_mod_or_after_nothing() {
    let vague = ["mod.rs", "utils.rs", "util.rs", "common.rs", "helpers.rs", "helper.rs", "misc.rs"];
    let found: Vec<String> = files(".rs")
        .into_iter()
        .filter(|file| vague.iter().any(|name| file.path.ends_with(&format!("/{name}"))))
        .map(|file| file.path)
        .collect();
    assert_none("names of modules", &found);
}

/// An import at the top level of a file.
struct Import<'a> {
    /// Index of its first line.
    line: usize,
    /// First name of its path.
    root: &'a str,
    /// Whether an empty line stands above it, and above its attribute or public neighbours.
    follows_blank: bool,
}

/// The imports at the top level of a file, those of the public and of optional ones left out.
fn imports(text: &str) -> Vec<Import<'_>> {
    let mut found = Vec::new();
    let (mut previous, mut follows_blank) = ("", true);
    for (line, content) in text.lines().enumerate() {
        follows_blank |= previous.is_empty();
        let is_optional = previous.starts_with("#[");
        if let Some(path) = content.strip_prefix("use ")
            && !is_optional
        {
            let root = path.split([':', ';', ' ']).next().unwrap_or_default();
            found.push(Import { line, root, follows_blank });
            follows_blank = false;
        }
        previous = content;
    }
    found
}

/// What is wrong with a file's imports: one `use` for each crate, in three groups (std, other crates, this crate) with a blank line
/// between them. rustfmt sorts within a group; it makes the groups in its unstable versions alone.
fn misplaced_imports(text: &str) -> Vec<String> {
    let rank = |root: &str| match root {
        "std" | "core" | "alloc" => 0,
        "crate" | "self" | "super" => 2,
        own if text.contains(&format!("\nmod {own};")) || text.contains(&format!("\npub mod {own};")) => 3,
        _ => 1,
    };
    let mut breaches = Vec::new();
    let mut earlier: Vec<&str> = Vec::new();
    for Import { line, root, follows_blank } in imports(text) {
        let number = line + 1;
        let last = earlier.last().copied().unwrap_or(root);
        if rank(root) == 3 {
            breaches.push(format!("{number}: write self::{root}"));
        } else if earlier.contains(&root) {
            breaches.push(format!("{number}: {root} is imported from above already; nest the paths"));
        } else if rank(root) < rank(last) {
            breaches.push(format!("{number}: {root} stands above {last}"));
        } else if (rank(root) != rank(last) || earlier.is_empty()) != follows_blank {
            breaches.push(format!("{number}: a blank line stands between groups and nowhere else"));
        }
        earlier.push(root);
    }
    breaches
}

#[test]
fn imports_stand_once_for_each_crate_in_the_order_std_others_own() {
    let misplaced = |file: super::File| {
        misplaced_imports(&file.text).into_iter().map(move |breach| format!("{}:{breach}", file.path))
    };
    let found: Vec<String> = files(".rs").into_iter().flat_map(misplaced).collect();
    assert_none("imports", &found);
}

#[test]
fn a_misplaced_import_is_found_and_a_good_one_is_not() {
    let good = "//! It.\n\nmod a;\n\nuse std::{\n    fs,\n    io,\n};\n\nuse bytes::Bytes;\nuse tokio::net;\n\nuse self::a::B;\nuse crate::c;\n";
    assert_eq!(misplaced_imports(good), [""; 0]);
    for (wrong, number) in [
        (good.replace("use tokio", "use std::a;\nuse tokio"), 11),
        (good.replace("\n\nuse bytes", "\nuse bytes"), 9),
        (good.replace("\nuse tokio", "\n\nuse tokio"), 12),
        (good.replace("use self::a::B;\nuse crate::c;\n", "use crate::c;\n\nuse uuid::U;\n"), 15),
        (good.replace("self::a::B", "a::B"), 13),
    ] {
        let found = misplaced_imports(&wrong);
        // One that is misplaced may misplace the next.
        let first = found.first().map(String::as_str).unwrap_or_default();
        assert!(first.starts_with(&format!("{number}: ")), "{number}: {found:?}");
    }
}

#[test]
fn nothing_is_left_to_do_in_the_code() {
    // Written apart, so that this file does not hold them.
    let marks = [["todo", "!("], ["unimplemented", "!("], ["dbg", "!("]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for file in files(".rs") {
        for (number, line) in file.code() {
            found.extend(
                marks.iter().filter(|mark| line.contains(*mark)).map(|mark| format!("{}:{number}: {mark}", file.path)),
            );
        }
    }
    assert_none("unfinished code", &found);
}

#[test]
fn the_readme_names_the_commands_that_the_makefile_has() {
    let (readme, makefile) = (read("README.md"), read("Makefile"));
    for target in ["demo", "cluster-demo", "cluster-up", "cluster-down", "test"] {
        assert!(makefile.contains(&format!("\n{target}:")), "the Makefile has no target {target}");
        assert!(readme.contains(&format!("make {target}")), "the README does not name `make {target}`");
    }
    let lines = read("ARCHITECTURE.md").lines().count();
    assert!(lines <= 200, "ARCHITECTURE.md has {lines} lines; at most 200");
}
