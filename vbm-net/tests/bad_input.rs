//! Each row of `docs/net/bad-input.md` has tests, and they exist: in this crate, in the nouns that it stands on, in the API above it.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Where tests are, from this crate's folder.
const FOLDERS: [&str; 5] = [
    "src",
    "tests",
    "../vbm-core/src",
    "../vbm-sdk/src",
    "../vbm-sdk/tests",
];

/// The functions of all files below a folder, by the stem of their file.
fn functions(folder: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        if file.is_dir() {
            functions(&file, found);
        } else if file.extension().is_some_and(|end| end == "rs") {
            let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&file).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| {
                let name = rest
                    .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .next()?;
                Some(name.to_owned())
            });
            found.entry(stem).or_default().extend(names);
        }
    }
}

#[test]
fn every_row_of_bad_input_has_tests_and_they_exist() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeMap::new();
    for folder in FOLDERS {
        functions(&here.join(folder), &mut known);
    }
    let text = fs::read_to_string(here.join("../docs/net/bad-input.md")).unwrap();
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what |"))
        .collect();
    assert!(rows.len() > 30, "the tables are there");
    let mut missing = Vec::new();
    for row in &rows {
        let cell = row.trim_end_matches('|').rsplit(" | ").next().unwrap();
        let words = cell.split('`').skip(1).step_by(2);
        let tests: Vec<(&str, &str)> = words.filter_map(|name| name.split_once("::")).collect();
        assert!(!tests.is_empty(), "no test stands behind this row: {row}");
        missing.extend(
            tests
                .into_iter()
                .filter(|(file, name)| !known.get(*file).is_some_and(|names| names.contains(*name))),
        );
    }
    assert_eq!(missing, [], "tests that rows name, and that do not exist");
}
