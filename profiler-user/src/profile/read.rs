//! Reads a profile from a file or from bytes that nobody vouches for.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use prost::Message as _;

use super::{
    budget::{self, Cost},
    checked::CheckedProfile,
    proto,
    validity::InvalidProfile,
};

/// How much a profile may take before it is refused.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The file as it is, usually compressed.
    pub file_bytes: u64,
    /// The file decompressed: gzip can shrink a thousandfold.
    pub unpacked_bytes: u64,
    /// The profile in memory: two bytes of a file can become an entry of a hundred.
    pub memory_bytes: u64,
}

impl Default for Limits {
    /// Returns limits a hundred times above what large programs' profiles take.
    fn default() -> Self {
        Self { file_bytes: 256 << 20, unpacked_bytes: 1 << 30, memory_bytes: 4 << 30 }
    }
}

/// Why bytes are not a usable profile.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("file is empty")]
    Empty,
    /// More bytes than the limit.
    #[error("{what} is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
    },
    /// The compressed data end early.
    #[error("gzip data end early; the file was not written or copied whole")]
    TruncatedGzip,
    /// The compressed data are damaged.
    #[error("gzip data are damaged")]
    DamagedGzip {
        /// What the decompressor said.
        #[source]
        source: io::Error,
    },
    /// Something else than a profile.
    #[error("not a pprof profile but {looks_like}")]
    NotPprof {
        /// What it seems to be.
        looks_like: &'static str,
    },
    /// Not the messages of a profile.
    #[error("not a pprof profile, or a damaged one")]
    Protobuf {
        /// What the decoder said.
        #[source]
        source: prost::DecodeError,
    },
    /// The messages of a profile that contradict each other.
    #[error("profile is inconsistent")]
    Invalid {
        /// The first contradiction.
        #[source]
        source: InvalidProfile,
    },
}

/// Why a file could not be read as a profile.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// What it holds cannot be used.
    #[error("cannot use `{}` as a profile", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: DecodeError,
    },
}

/// Returns the profile in a file, compressed or not.
///
/// # Errors
///
/// Fails if the file cannot be read, is larger than the limits, or is not a consistent profile.
pub fn read_profile(path: &Path, limits: Limits) -> Result<CheckedProfile, ReadError> {
    let io_error = |source| ReadError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_error)?;
    // One byte more than allowed tells a file at the limit from one above it.
    file.take(limits.file_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io_error)?;
    decode_profile(&bytes, limits).map_err(|source| ReadError::Decode { path: path.to_owned(), source })
}

/// Returns the profile in a file's content, compressed or not.
///
/// # Errors
///
/// Fails if the content is larger than the limits or not a consistent profile.
pub fn decode_profile(bytes: &[u8], limits: Limits) -> Result<CheckedProfile, DecodeError> {
    check_size("file", bytes, limits.file_bytes)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        decode_plain(&unpack(bytes, limits.unpacked_bytes)?, limits)
    } else {
        decode_plain(bytes, limits)
    }
}

fn unpack(bytes: &[u8], limit_bytes: u64) -> Result<Vec<u8>, DecodeError> {
    let mut unpacked = Vec::new();
    match MultiGzDecoder::new(bytes).take(limit_bytes.saturating_add(1)).read_to_end(&mut unpacked) {
        Ok(_) => check_size("decompressed profile", &unpacked, limit_bytes).map(|()| unpacked),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(DecodeError::TruncatedGzip),
        Err(source) => Err(DecodeError::DamagedGzip { source }),
    }
}

fn decode_plain(bytes: &[u8], limits: Limits) -> Result<CheckedProfile, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if let Some(looks_like) = foreign_format(bytes) {
        return Err(DecodeError::NotPprof { looks_like });
    }
    match budget::cost_bytes(bytes) {
        Cost::Groups => return Err(DecodeError::NotPprof { looks_like: "some other protobuf message" }),
        Cost::Bytes(cost) if cost > limits.memory_bytes => {
            return Err(DecodeError::TooLarge {
                what: "profile in memory",
                limit_bytes: limits.memory_bytes,
            });
        }
        Cost::Bytes(_) => {}
    }
    let profile = proto::Profile::decode(bytes).map_err(|source| DecodeError::Protobuf { source })?;
    CheckedProfile::new(profile).map_err(|source| DecodeError::Invalid { source })
}

fn check_size(what: &'static str, bytes: &[u8], limit_bytes: u64) -> Result<(), DecodeError> {
    let size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size_bytes > limit_bytes { Err(DecodeError::TooLarge { what, limit_bytes }) } else { Ok(()) }
}

/// Returns what the bytes are if they start like something that people take for a profile.
///
/// A profile's first byte is the key of one of its fields, which none of these can be, except for text
/// that starts with a line break.
fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 9] = [
        (b"\x7fELF", "an ELF file (a program, a library or a core dump)"),
        (b"PERFILE2", "data of `perf record`"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed data; decompress it first"),
        (b"\x1f\x8b", "gzip-compressed data within gzip; decompress it once"),
        (b"{", "JSON"),
        (b"[", "JSON"),
        (b"<", "XML or HTML"),
        (b"heap profile:", "a heap profile in gperftools' text format; `pprof -proto` converts it"),
    ];
    let magic = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic));
    magic.map(|(_, name)| *name).or_else(|| {
        let start = bytes.get(..bytes.len().min(64))?;
        start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()).then_some("text")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{fixture, write::encode_gzip};

    fn error(bytes: &[u8]) -> String {
        decode_profile(bytes, Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_profile_is_read_like_a_compressed_one() {
        let profile = fixture::server();
        let read = decode_profile(&profile.encode_to_vec(), Limits::default()).unwrap();
        assert_eq!(*read.proto(), profile);
    }

    #[test]
    fn what_is_not_a_profile_is_called_by_its_name() {
        assert_eq!(error(b""), "file is empty");
        assert_eq!(error(b"{\"flamebearer\": 1}"), "not a pprof profile but JSON");
        assert_eq!(
            error(b"\x7fELF\x02\x01"),
            "not a pprof profile but an ELF file (a program, a library or a core dump)"
        );
        assert_eq!(error(b"hello\nworld\n"), "not a pprof profile but text");
        assert_eq!(error(&[0xff; 40]), "not a pprof profile, or a damaged one");
    }

    #[test]
    fn a_file_cut_short_is_told_from_a_damaged_one() {
        let mut bytes = encode_gzip(&fixture::server()).unwrap();
        assert!(error(&bytes[..bytes.len() - 9]).starts_with("gzip data end early"));
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        assert!(error(&bytes).starts_with("gzip data"), "{}", error(&bytes));
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        io::Write::write_all(&mut bomb, &vec![0; 4 << 20]).unwrap();
        let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
        let error = decode_profile(&bomb.finish().unwrap(), limits).unwrap_err();
        assert_eq!(error.to_string(), "decompressed profile is larger than the limit of 1048576 bytes");
    }

    #[test]
    fn a_file_of_empty_entries_is_not_decoded() {
        let limits = Limits { memory_bytes: 1 << 16, ..Limits::default() };
        let error = decode_profile(&[0x12, 0].repeat(2000), limits).unwrap_err();
        assert_eq!(error.to_string(), "profile in memory is larger than the limit of 65536 bytes");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_profile(Path::new("/nonexistent/heap.pb.gz"), Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/nonexistent/heap.pb.gz`");
    }

    /// Whatever the bytes, the answer is a profile or an error, and a profile can be looked at.
    #[test]
    fn damaged_profiles_are_refused_or_usable() {
        let bytes = fixture::server().encode_to_vec();
        for length in 0..bytes.len() {
            fixture::look_at(&bytes[..length]);
        }
        // A linear congruential generator: the same "random" faults in every run.
        let mut state = 1_u64;
        for _ in 0..500 {
            let mut damaged = bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::try_from(state >> 33).unwrap() % damaged.len();
                damaged[at] ^= 1 << ((state >> 20) & 7);
            }
            fixture::look_at(&damaged);
        }
        let compressed = encode_gzip(&fixture::server()).unwrap();
        for length in 0..compressed.len() {
            assert!(decode_profile(&compressed[..length], Limits::default()).is_err(), "{length} bytes");
        }
    }
}
