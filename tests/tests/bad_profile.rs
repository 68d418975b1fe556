//! Profile files that are no profiles, or were made to do harm.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use heaptap_tests::heaptap::{self, Outcome};
use heaptap_tests::profile::proto;
use prost::Message;

/// Runs `heaptap report` on a file with these bytes.
fn report(bytes: &[u8]) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bad.pb.gz");
    fs::write(&path, bytes).expect("the folder is ours");
    heaptap::run([Path::new("report"), &path])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// A sample of the only location.
fn sample(value: Vec<i64>) -> proto::Sample {
    proto::Sample { location_id: vec![1], value, label: Vec::new() }
}

/// A small valid profile to spoil.
fn valid() -> proto::Profile {
    let strings =
        ["", "alloc_objects", "count", "alloc_space", "bytes", "inuse_objects", "inuse_space", "main"];
    let kinds = [(1, 2), (3, 4), (5, 2), (6, 4)];
    proto::Profile {
        sample_type: kinds.map(|(r#type, unit)| proto::ValueType { r#type, unit }).to_vec(),
        sample: vec![sample(vec![1, 10, 1, 10])],
        mapping: Vec::new(),
        location: vec![proto::Location { id: 1, line: vec![proto::Line { function_id: 1, line: 3 }] }],
        function: vec![proto::Function { id: 1, name: 7 }],
        string_table: strings.map(str::to_owned).to_vec(),
        comment: Vec::new(),
        default_sample_type: 6,
    }
}

#[test]
fn a_valid_profile_is_reported_compressed_or_not() {
    let bytes = valid().encode_to_vec();
    for outcome in [report(&bytes), report(&gzip(&bytes))] {
        outcome.assert_success();
        assert!(outcome.stdout.contains("main"), "{outcome:#?}");
    }
}

#[test]
fn profile_files_that_are_missing_truncated_or_something_else() {
    heaptap::run(["report", "/nonexistent/heap.pb.gz"]).assert_refused("/nonexistent/heap.pb.gz");
    heaptap::run(["report", "/proc"]).assert_refused("/proc");
    let whole = gzip(&valid().encode_to_vec());
    for length in [0, 1, 5, 12, whole.len() / 2, whole.len() - 1] {
        report(&whole[..length]).assert_refused("bad.pb.gz");
    }
    report(b"this is not a profile but a sentence").assert_refused("bad.pb.gz");
    report(&gzip(b"nor is this")).assert_refused("bad.pb.gz");
    report(&[0xff; 4096]).assert_refused("bad.pb.gz");
}

#[test]
fn hostile_profiles() {
    let spoil = |spoil: fn(&mut proto::Profile)| {
        let mut profile = valid();
        spoil(&mut profile);
        gzip(&profile.encode_to_vec())
    };
    let hostile = [
        spoil(|profile| profile.function[0].name = 1_000_000),
        spoil(|profile| profile.function[0].name = -1),
        spoil(|profile| profile.sample[0].location_id = vec![u64::MAX]),
        spoil(|profile| profile.location[0].line[0].function_id = 99),
        spoil(|profile| profile.sample[0].value = vec![1]),
        spoil(|profile| profile.sample_type[0].r#type = i64::MIN),
        spoil(|profile| profile.string_table.clear()),
        // A string that says that it is 2⁶³ bytes long.
        gzip(&[0x32, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, b'x']),
    ];
    for (index, bytes) in hostile.iter().enumerate() {
        let outcome = report(bytes);
        outcome.assert_no_panic();
        assert_eq!(outcome.code, Some(2), "hostile profile {index}: {outcome:#?}");
        outcome.assert_refused("bad.pb.gz");
    }
}

#[test]
fn hostile_numbers_do_not_overflow() {
    let mut profile = valid();
    let sample = sample(vec![i64::MAX; 4]);
    profile.sample = vec![sample.clone(), sample];
    let outcome = report(&gzip(&profile.encode_to_vec()));
    outcome.assert_no_panic();
    assert!(matches!(outcome.code, Some(0 | 2)), "{outcome:#?}");
}
