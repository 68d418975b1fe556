//! Mini debug information: a symbol table that the distribution left in a stripped file, packed with xz.
//!
//! `.gnu_debugdata` holds a whole ELF file that has the functions which `.dynsym` leaves out.

use std::io::{self, Read};

use lzma_rust2::XzReader;
use object::{Object, ObjectSection, ReadRef};

use super::image::Image;

/// What is unpacked at most. Chromium's whole symbol table has 50 MiB.
const LIMIT_BYTES: u64 = 64 << 20;

/// What the unpacker may take for its dictionary; xz's largest preset wants 64 MiB.
const DICTIONARY_LIMIT_KIB: u32 = 80 << 10;

const NAME: &str = ".gnu_debugdata";

/// The unpacked ELF file, if there is one.
pub(crate) fn unpack<'data, R: ReadRef<'data>>(image: &Image<'data, R>) -> io::Result<Option<Vec<u8>>> {
    let Some(section) = image.elf.section_by_name(NAME) else { return Ok(None) };
    let too_large = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("`{NAME}` has more than the {LIMIT_BYTES} bytes that are read"),
        )
    };
    if section.size() > LIMIT_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let packed = section.data().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let reader = XzReader::new_mem_limit(packed, false, DICTIONARY_LIMIT_KIB);
    let read = reader.take(LIMIT_BYTES + 1).read_to_end(&mut bytes)?;
    match read as u64 {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count if count > LIMIT_BYTES => Err(too_large()),
        _ => Ok(Some(bytes)),
    }
}
