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
