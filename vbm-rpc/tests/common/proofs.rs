//! Which tests there are, for tables of the documents that name one behind each cell as `file::test`. The sentences of the
//! conformance suite are those of the file `conformance`.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use std::{collections::BTreeMap, fs, path::Path};

pub(crate) struct Proofs(BTreeMap<String, Vec<String>>);

impl Proofs {
    pub(crate) fn find() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = BTreeMap::new();
        functions(&here.join("tests"), &mut found);
        let mut contract = BTreeMap::new();
        functions(&here.join("src/conformance"), &mut contract);
        let sentences: Vec<String> = contract.into_values().flatten().collect();
        found.entry("conformance".into()).or_default().extend(sentences);
        Self(found)
    }

    /// The tests that a cell of a table names are there, and there is at least one.
    pub(crate) fn check(&self, cell: &str, row: &str) {
        let words = cell.split('`').skip(1).step_by(2);
        let tests: Vec<(&str, &str)> = words.filter_map(|name| name.split_once("::")).collect();
        assert!(
            !tests.is_empty(),
            "no test stands behind this cell: {cell}\nof: {row}"
        );
        for (file, name) in tests {
            let known = self.0.get(file);
            let there = known.is_some_and(|names| names.iter().any(|known| known == name));
            assert!(there, "there is no test {name} in {file}: {row}");
        }
    }
}

/// A document of the project.
pub(crate) fn document(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    fs::read_to_string(docs.join(name)).unwrap()
}

/// The functions of all files below a folder, by the stem of their file.
fn functions(folder: &Path, found: &mut BTreeMap<String, Vec<String>>) {
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        if file.is_dir() {
            functions(&file, found);
        } else if file.extension().is_some_and(|end| end == "rs") {
            let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&file).unwrap();
            let names = text.split("fn ").skip(1).map(|rest| {
                let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                name.take(1).collect::<String>()
            });
            found.entry(stem).or_default().extend(names);
        }
    }
}
