//! Profiles from files, through the whole of `heaptap report`: what it prints is what it printed before.
//!
//! `tests/replay/NAME.pb.gz` is a profile, one recorded by heaptap and one by a Go program of its own heap;
//! `NAME.VIEW.txt` is what `report` makes of it. With HEAPTAP_BLESS=1 the views are written instead of compared,
//! for a change that means to change them. Needs no root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use heaptap_tests::heaptap::binary;

/// The views, each with its arguments.
const VIEWS: [(&str, &[&str]); 7] = [
    ("top", &[]),
    ("lines", &["--lines"]),
    ("tree", &["--tree"]),
    ("folded", &["--folded"]),
    ("alloc_space", &["--sample-index", "alloc_space", "--top", "3"]),
    ("alloc_objects", &["--sample-index", "0", "--top", "0", "--lines"]),
    ("base", &["--base"]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("replay")
}

#[track_caller]
fn replay(name: &str) {
    let profile = folder().join(name).with_extension("pb.gz");
    for (view, arguments) in VIEWS {
        let mut command = Command::new(binary());
        command.arg("report").arg(&profile).args(arguments);
        if view == "base" {
            // Minus itself, nothing is left.
            command.arg(&profile);
        }
        let output = command.output().expect("heaptap runs");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(i32::from(view == "base")), "{view} of {name}: {said}");
        let golden = folder().join(format!("{name}.{view}.txt"));
        if env::var_os("HEAPTAP_BLESS").is_some() {
            fs::write(&golden, said).expect("the view is written");
            continue;
        }
        let wanted = fs::read_to_string(&golden)
            .unwrap_or_else(|err| panic!("{}: {err}; make it with HEAPTAP_BLESS=1", golden.display()));
        assert!(said == wanted, "{view} of {name} is\n{said}\nand was\n{wanted}");
    }
}

#[test]
fn a_profile_of_heaptaps_looks_as_it_did() {
    replay("leaky-metrics");
}

#[test]
fn a_profile_of_a_go_program_looks_as_it_did() {
    replay("go-fetcher");
}
