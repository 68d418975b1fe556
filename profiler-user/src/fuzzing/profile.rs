//! Profiles from files that say anything.

use std::io;

use prost::Message;

use crate::profile::{
    checked::CheckedProfile,
    diff, prune,
    read::{Limits, decode_profile},
    view::{Granularity, folded::FoldedStacks, top, tree::CallTree},
    write::encode_gzip,
};

const LIMITS: Limits = Limits { file_bytes: 1 << 20, unpacked_bytes: 8 << 20, memory_bytes: 32 << 20 };

/// A pprof profile: read, written and read again, pruned, viewed and subtracted from itself.
pub fn profile(bytes: &[u8]) {
    let Ok(profile) = decode_profile(bytes, LIMITS) else { return };
    let plain = profile.proto().encode_to_vec();
    let packed = encode_gzip(profile.proto()).expect("a profile can be written");
    for written in [plain, packed] {
        let again = decode_profile(&written, LIMITS).expect("what was read can be read again");
        assert_eq!(again.proto(), profile.proto());
    }
    view(&profile);
    let mut pruned = profile.clone();
    if prune::drop_frames(&mut pruned).is_ok() {
        view(&pruned);
    }
}

fn view(profile: &CheckedProfile) {
    let types = profile.sample_types().len();
    for column in [0, types.saturating_sub(1), types] {
        for granularity in [Granularity::Functions, Granularity::Lines] {
            let _table = top::top(profile, column, granularity, top::Cut::default());
            let _tree = CallTree::new(profile, column, granularity);
            let folded = FoldedStacks::new(profile, column, granularity);
            folded.write(&mut io::sink()).expect("nothing is written");
        }
    }
    let _difference = diff::subtract(profile, profile, 0);
}
