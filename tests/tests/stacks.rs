//! Stacks that were kept, each with as much of the files that it leads through as it takes to walk it: heaptap's rows, made
//! of these files here, lead through the same frames as they did in the kernel, and so do other unwinders.
//!
//! `tests/replay/stacks/PROGRAM` has them; the test `oracle` makes them with HEAPTAP_BLESS=1. Needs no root.

use std::fs;
use std::path::{Path, PathBuf};

use heaptap_tests::oracle::{self, Captured, Files};

fn folders() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("replay/stacks");
    let entries = fs::read_dir(&folder).unwrap_or_else(|err| panic!("{}: {err}", folder.display()));
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder stays").path()).collect();
    folders.sort();
    folders
}

#[test]
fn kept_stacks_are_walked_as_they_were() {
    let folders = folders();
    assert!(folders.len() >= 20, "a corpus of {folders:?}");
    for folder in folders {
        let captured = Captured::kept_in(&folder);
        let compared = oracle::assert_agree(&captured, &Files::KeptIn(folder.clone()));
        assert!(compared.by_kernel + compared.by_user > 0, "{}: {compared:?}", folder.display());
    }
}
