//! What every Cargo.toml keeps to.

use super::{File, assert_none, files, read};

/// The members' manifests. The fuzz targets are a workspace of their own, and no part of what is served.
fn manifests() -> impl Iterator<Item = File> {
    files("Cargo.toml").into_iter().filter(|file| file.path != "runtime/fuzz/targets/Cargo.toml")
}

/// Name and text of each dependency in a member's manifest.
fn dependencies(text: &str) -> Vec<(usize, &str)> {
    let mut is_dependency = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            is_dependency = line.contains("dependencies");
        } else if is_dependency && line.contains('=') && !line.starts_with('#') {
            found.push((index + 1, line));
        }
    }
    found
}

#[test]
fn versions_stand_in_the_root_alone() {
    let mut found = Vec::new();
    for file in manifests() {
        for (number, line) in dependencies(&file.text) {
            // A crate's own features for its tests: cargo wants a path for that.
            let is_own = line.contains("path = \".\"");
            if !is_own && !line.contains(".workspace = true") && !line.contains("workspace = true") {
                found.push(format!("{}:{number}: {line}", file.path));
            }
        }
    }
    assert_none("a dependency's version stands in the root's Cargo.toml", &found);
}

#[test]
fn every_dependency_is_stripped_of_its_default_features() {
    let root = read("Cargo.toml");
    let found: Vec<&str> = root
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.contains("version = ") && !line.contains("default-features = false"))
        .collect();
    assert!(found.is_empty(), "default features are chosen, not taken: {found:#?}");
}

#[test]
fn every_member_takes_the_workspaces_lints() {
    let found: Vec<String> = manifests()
        // The shim allows what the others forbid, and says so itself.
        .filter(|file| file.path != "runtime/torch-shim/Cargo.toml" && !file.text.contains("[lints]\nworkspace = true"))
        .map(|file| file.path)
        .collect();
    assert_none("lints", &found);
}
