//! A profile as the bytes that pprof's tools read: protobuf within gzip.

use std::io::{self, Write as _};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use super::proto::Profile;

/// Returns the profile as a `.pb.gz` file's content.
///
/// # Errors
///
/// Fails only if the compressor does, which in memory it has no reason to.
pub fn encode_gzip(profile: &Profile) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&profile.encode_to_vec())?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{fixture, read};

    #[test]
    fn what_is_written_is_read_back() {
        let profile = fixture::server();
        let bytes = encode_gzip(&profile).unwrap();
        let read = read::decode_profile(&bytes, read::Limits::default()).unwrap();
        assert_eq!(*read.proto(), profile);
    }
}
