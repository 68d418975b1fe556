//! Profiles for tests.

use super::{
    builder::ProfileBuilder,
    checked::CheckedProfile,
    diff,
    entry::{Label, Line, Mapping},
    proto, prune, read,
    sample_type::{DEFAULT_SAMPLE_TYPE, HEAP_SAMPLE_TYPES, HeapCount, SampleType},
    view::{Granularity, folded::FoldedStacks, top, tree::CallTree},
};

/// Returns a server's heap profile: an inlined function, a library without names, labels, comments.
pub(crate) fn server() -> proto::Profile {
    let mut builder = ProfileBuilder::new(&HEAP_SAMPLE_TYPES);
    builder.default_sample_type(DEFAULT_SAMPLE_TYPE);
    builder.drop_frames("malloc|operator new", "");
    builder.comment("loss: 3 stacks were cut short");
    let libc = builder.mapping(&Mapping {
        start: 0x7f00_0000_0000,
        limit: 0x7f00_0010_0000,
        file: "/usr/lib/libc.so.6",
        ..Mapping::default()
    });
    let main = builder.mapping(&Mapping {
        start: 0x40_0000,
        limit: 0x50_0000,
        file_offset_bytes: 0x1000,
        file: "/usr/bin/server",
        build_id: "abcd",
        looked_for_inlined: true,
    });
    builder.main_mapping(main);
    let line = |function, line| Line { function, filename: "server.c", line, ..Line::default() };
    let start = builder.location(0x40_0010, Some(main), &[line("main", 10)]);
    let handle = builder.location(0x40_0020, Some(main), &[line("grow", 31), line("handle", 20)]);
    let unnamed = builder.location(0x40_0030, Some(main), &[]);
    let malloc =
        builder.location(0x7f00_0000_0040, Some(libc), &[Line { function: "malloc", ..Line::default() }]);
    let label = Label::Number { key: "bytes", value: 64, unit: "bytes" };
    let mut add = |stack: &[_], alloc_objects, freed_objects| {
        let (alloc_bytes, freed_bytes) = (alloc_objects * 64, freed_objects * 64);
        let count = HeapCount { alloc_objects, alloc_bytes, freed_objects, freed_bytes };
        builder.sample(stack, &count.values(), &[label]).unwrap();
    };
    add(&[malloc, handle, start], 100, 40);
    add(&[malloc, unnamed, start], 10, 10);
    add(&[malloc, start], 8, 0);
    builder.finish()
}

/// Returns a profile of bytes in use from stacks such as `main;parse:12`, root first.
///
/// Each function lies in a file of its own, at an address of its own.
pub(crate) fn stacks(stacks: &[(&str, i64)]) -> CheckedProfile {
    let mut builder = ProfileBuilder::new(&[SampleType { name: "inuse_space", unit: "bytes" }]);
    for &(stack, value) in stacks {
        let stack: Vec<_> = stack.rsplit(';').map(|frame| location(&mut builder, frame)).collect();
        builder.sample(&stack, &[value], &[]).unwrap();
    }
    CheckedProfile::new(builder.finish()).unwrap()
}

/// Adds the location of a frame such as `parse:12`, or `push<parse:12` where `push` was inlined.
fn location(builder: &mut ProfileBuilder, frame: &str) -> super::builder::LocationId {
    let files: Vec<_> =
        frame.split('<').map(|part| part.split(':').next().unwrap().to_owned() + ".c").collect();
    let lines: Vec<_> = frame
        .split('<')
        .zip(&files)
        .map(|(part, filename)| {
            let (function, line) = part.split_once(':').unwrap_or((part, "0"));
            Line { function, filename, line: line.parse().unwrap(), ..Line::default() }
        })
        .collect();
    let address = frame.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    builder.location(address, None, &lines)
}

/// Does with the bytes all that is done with a profile, if they are one.
pub(crate) fn look_at(bytes: &[u8]) {
    let Ok(mut profile) = read::decode_profile(bytes, read::Limits::default()) else { return };
    let other = profile.clone();
    let _outcome = prune::drop_frames(&mut profile);
    for granularity in [Granularity::Functions, Granularity::Lines] {
        let _table = top::top(&profile, 0, granularity, top::Cut::default());
        let _tree = CallTree::new(&profile, 0, granularity);
        let folded = FoldedStacks::new(&profile, 0, granularity);
        folded.write(&mut Vec::new()).unwrap();
    }
    let _difference = diff::subtract(&profile, &other, 0);
}
