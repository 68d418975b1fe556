//! The parts of an ELF file that unwinding needs, read into memory.

use std::{
    fs::File,
    io::{self, Read},
};

use flate2::read::ZlibDecoder;
use object::{
    Endianness, ReadRef,
    elf::{EM_X86_64, FileHeader64, PT_GNU_EH_FRAME, ProgramHeader64, SHF_COMPRESSED, SHT_NOBITS},
    read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable},
};
use ruzstd::decoding::StreamingDecoder;

use super::{CfiError, search_table::SearchTable};

use crate::target::{
    bounded::{BoundedFile, PART_LIMIT_BYTES},
    elf::copy_of,
    segments::Segments,
};

/// Real files have a dozen program headers and, split by function, tens of thousands of sections.
const HEADERS_LIMIT: u32 = 1 << 18;

/// What Go's linker puts into every program and shared library, and stripping leaves there (`debug/buildinfo` of Go's standard library).
const GO_BUILD_INFO: &[u8] = b".go.buildinfo";

/// What was found in a file.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) entry: u64,
    pub(super) segments: Segments,
    pub(super) eh_frame: Option<Part>,
    pub(super) search_table: Option<SearchTable>,
    pub(super) debug_frame: Option<Vec<u8>>,
    /// Whether Go's linker made the file.
    pub(super) is_go: bool,
}

/// Bytes that are loaded at an address.
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

/// Reads so many bytes from an offset on; the name is for errors.
type ReadPart<'a> = &'a dyn Fn(&'static str, u64, u64) -> Result<Vec<u8>, CfiError>;

impl Parts {
    pub(super) fn of_file(file: &BoundedFile<'_>) -> Result<Self, CfiError> {
        let read = |part, offset, size_bytes| read_file(file, part, offset, size_bytes);
        collect(file, &read, true)
    }

    /// What `separate` has of the file that it was split off from, which lies where `file` says.
    pub(super) fn of_separate(separate: &File, file: &BoundedFile<'_>) -> Result<Self, CfiError> {
        let bounded = BoundedFile::new(separate);
        let read = |part, offset, size_bytes| read_file(&bounded, part, offset, size_bytes);
        let parts = collect(&bounded, &read, false)?;
        let base = Headers::parse(&bounded)?.segments()?.base();
        let headers = Headers::parse(file)?;
        // `prelink` moves a file to another address after its debug file was split off.
        Ok(Self { segments: headers.segments()?.moved_to(base), ..parts })
    }

    pub(super) fn of_image(image: &[u8]) -> Result<Self, CfiError> {
        let read = |part, offset: u64, size_bytes: u64| {
            let bytes = image
                .read_bytes_at(offset, size_bytes)
                .map_err(|()| CfiError::Outside { part, size_bytes: image.len() })?;
            Ok(bytes.to_vec())
        };
        collect(image, &read, true)
    }
}

fn read_file(
    file: &BoundedFile<'_>,
    part: &'static str,
    offset: u64,
    size_bytes: u64,
) -> Result<Vec<u8>, CfiError> {
    let count = usize::try_from(size_bytes).unwrap_or(usize::MAX);
    copy_of(file, offset, count).map_err(|source| CfiError::Read { part, source })
}

/// `object`'s own view of a file would read its symbols as well: the headers are all that is needed here.
struct Headers<'data, R> {
    data: R,
    header: &'data FileHeader64<Endianness>,
    endian: Endianness,
}

impl<'data, R: ReadRef<'data>> Headers<'data, R> {
    fn parse(data: R) -> Result<Self, CfiError> {
        let header: &FileHeader64<Endianness> = FileHeader64::parse(data).map_err(CfiError::Broken)?;
        let endian = header.endian().map_err(CfiError::Broken)?;
        let machine = header.e_machine(endian);
        if machine != EM_X86_64 {
            return Err(CfiError::Machine { machine: machine.0 });
        }
        Ok(Self { data, header, endian })
    }

    /// Broken section headers are as good as none: programs run without.
    fn sections(&self) -> SectionTable<'data, FileHeader64<Endianness>, R> {
        if are_few(self.header.shnum(self.endian, self.data)) {
            self.header.sections(self.endian, self.data).unwrap_or_default()
        } else {
            SectionTable::default()
        }
    }

    fn programs(&self) -> Result<&'data [ProgramHeader64<Endianness>], CfiError> {
        if are_few(self.header.phnum(self.endian, self.data)) {
            self.header.program_headers(self.endian, self.data).map_err(CfiError::Broken)
        } else {
            Ok(&[])
        }
    }

    fn segments(&self) -> Result<Segments, CfiError> {
        Ok(Segments::of(self.programs()?, self.endian))
    }
}

fn are_few(count: object::Result<u32>) -> bool {
    count.is_ok_and(|count| count <= HEADERS_LIMIT)
}

fn collect<'data>(
    data: impl ReadRef<'data>,
    read: ReadPart<'_>,
    with_segments: bool,
) -> Result<Parts, CfiError> {
    let headers = Headers::parse(data)?;
    let endian = headers.endian;
    let (sections, programs) = (headers.sections(), headers.programs()?);
    let section = |name| Section::find(&sections, endian, name);
    let mut parts = Parts { entry: headers.header.e_entry(endian), ..Parts::default() };
    parts.is_go = sections.section_by_name(endian, GO_BUILD_INFO).is_some();
    if let Some(found) = section(".eh_frame") {
        parts.eh_frame = Some(Part { address: found.address, bytes: found.read(read)? });
    }
    if with_segments {
        parts.segments = headers.segments()?;
        parts.search_table = programs
            .iter()
            .find(|program| program.p_type(endian) == PT_GNU_EH_FRAME)
            .and_then(|program| search_table(program, endian, read));
        if parts.eh_frame.is_none() {
            parts.eh_frame = eh_frame_of_segment(&parts, read);
        }
    }
    // Go's knows nothing of changes between stacks, nor where rbp is saved; frame pointers lead through both.
    if let Some(found) = section(".debug_frame").filter(|_| !parts.is_go) {
        match found.read(read) {
            Ok(bytes) => parts.debug_frame = Some(bytes),
            Err(error) if parts.eh_frame.is_none() => return Err(error),
            Err(_) => {}
        }
    }
    Ok(parts)
}

/// A search table that cannot be used costs time, not rows: there is an index of our own.
fn search_table<H: ProgramHeader<Endian = Endianness, Word = u64>>(
    program: &H,
    endian: Endianness,
    read: ReadPart<'_>,
) -> Option<SearchTable> {
    let size_bytes = Some(program.p_filesz(endian)).filter(|size| *size <= PART_LIMIT_BYTES)?;
    let bytes = read("PT_GNU_EH_FRAME", program.p_offset(endian), size_bytes).ok()?;
    SearchTable::parse(program.p_vaddr(endian), bytes)
}

/// `.eh_frame` without a section header: from where the search table says to the end of the segment. Whatever follows
/// it there is behind a terminator.
fn eh_frame_of_segment(parts: &Parts, read: ReadPart<'_>) -> Option<Part> {
    let address = parts.search_table.as_ref()?.eh_frame_address();
    let (offset, rest) = parts.segments.rest_from(address)?;
    let bytes = read("PT_LOAD", offset, rest.min(PART_LIMIT_BYTES)).ok()?;
    Some(Part { address, bytes })
}

struct Section {
    name: &'static str,
    address: u64,
    offset: u64,
    size_bytes: u64,
    compressed: bool,
}

impl Section {
    /// The section, where the file has it and something is in it; separate debug files keep only its header.
    fn find<'data>(
        sections: &SectionTable<'data, FileHeader64<Endianness>, impl ReadRef<'data>>,
        endian: Endianness,
        name: &'static str,
    ) -> Option<Self> {
        let (_, section) = sections.section_by_name(endian, name.as_bytes())?;
        let size_bytes = section.sh_size(endian);
        (section.sh_type(endian) != SHT_NOBITS && size_bytes > 0).then(|| Self {
            name,
            address: section.sh_addr(endian),
            offset: section.sh_offset(endian),
            size_bytes,
            compressed: section.sh_flags(endian).contains(SHF_COMPRESSED),
        })
    }

    fn read(&self, read: ReadPart<'_>) -> Result<Vec<u8>, CfiError> {
        self.check_size(self.size_bytes)?;
        let bytes = read(self.name, self.offset, self.size_bytes)?;
        if self.compressed { self.decompress(&bytes) } else { Ok(bytes) }
    }

    fn check_size(&self, size_bytes: u64) -> Result<(), CfiError> {
        if size_bytes > PART_LIMIT_BYTES {
            return Err(CfiError::TooLarge { part: self.name, size_bytes, limit_bytes: PART_LIMIT_BYTES });
        }
        Ok(())
    }

    /// `Elf64_Chdr` and what it stands before: method (32 bits), padding, size (64 bits), alignment (64 bits).
    fn decompress(&self, bytes: &[u8]) -> Result<Vec<u8>, CfiError> {
        const ZLIB: u32 = 1;
        const ZSTD: u32 = 2;
        let short = CfiError::Outside { part: self.name, size_bytes: bytes.len() };
        let Some((header, packed)) = bytes.split_first_chunk::<24>() else { return Err(short) };
        let [m0, m1, m2, m3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7, ..] = *header;
        let method = u32::from_le_bytes([m0, m1, m2, m3]);
        let size_bytes = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        self.check_size(size_bytes)?;
        let mut unpacked = Vec::new();
        let read = match method {
            ZLIB => ZlibDecoder::new(packed).take(size_bytes).read_to_end(&mut unpacked),
            ZSTD => StreamingDecoder::new(packed)
                .map_err(io::Error::other)
                .and_then(|decoder| decoder.take(size_bytes).read_to_end(&mut unpacked)),
            method => return Err(CfiError::Method { part: self.name, method }),
        };
        read.map_err(|source| CfiError::Compressed { part: self.name, source })?;
        Ok(unpacked)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;
    use crate::{allocations::largest, target::cfi::assemble::elf_with_section};

    /// A section that says which method it is compressed by and what it unpacks to.
    fn section(method: u64, size_bytes: u64, packed: Vec<u8>) -> Vec<u8> {
        let header = [method.to_le_bytes(), size_bytes.to_le_bytes(), 8_u64.to_le_bytes()];
        [header.as_flattened(), packed.as_slice()].concat()
    }

    fn by_zlib(bytes: &[u8], size_bytes: u64) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        section(1, size_bytes, encoder.finish().unwrap())
    }

    fn by_zstd(bytes: &[u8], size_bytes: u64) -> Vec<u8> {
        section(2, size_bytes, compress_to_vec(bytes, CompressionLevel::Fastest))
    }

    fn debug_frame(section: &[u8], flags: u64) -> Result<Vec<u8>, CfiError> {
        let image = elf_with_section(".debug_frame", flags, section);
        Parts::of_image(&image).map(|parts| parts.debug_frame.expect("the section"))
    }

    #[test]
    fn a_debug_frame_is_read_as_it_is_or_unpacked() {
        assert_eq!(debug_frame(b"frames", 0).unwrap(), b"frames");
        for compressed in [by_zlib, by_zstd] {
            assert_eq!(debug_frame(&compressed(b"frames", 6), 1 << 11).unwrap(), b"frames");
        }
    }

    #[test]
    fn what_unpacks_to_more_than_it_says_is_cut_and_what_says_too_much_is_refused() {
        for compressed in [by_zlib, by_zstd] {
            assert_eq!(debug_frame(&compressed(&[7; 1 << 20], 16), 1 << 11).unwrap(), [7; 16]);
            let error = debug_frame(&compressed(b"frames", 1 << 40), 1 << 11).unwrap_err();
            assert!(matches!(error, CfiError::TooLarge { size_bytes: 0x100_0000_0000, .. }), "{error}");
            let mut broken = compressed(b"frames", 6);
            broken.truncate(30);
            let error = debug_frame(&broken, 1 << 11).unwrap_err();
            assert!(matches!(error, CfiError::Compressed { .. }), "{error}");
        }
        let error = debug_frame(&section(9, 6, Vec::new()), 1 << 11).unwrap_err();
        assert!(matches!(error, CfiError::Method { method: 9, .. }), "{error}");
        assert!(matches!(debug_frame(&[1; 3], 1 << 11), Err(CfiError::Outside { .. })));
    }

    #[test]
    fn what_wants_a_window_of_two_tebibytes_to_be_unpacked_is_refused() {
        // Magic number, no options, window descriptor (RFC 8878, section 3.1.1), and an empty last block.
        let packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 31 << 3, 1, 0, 0];
        let section = section(2, 6, packed);
        let (error, largest_bytes) = largest(|| debug_frame(&section, 1 << 11).unwrap_err());
        assert!(matches!(error, CfiError::Compressed { .. }), "{error}");
        assert!(largest_bytes < 1 << 20, "{largest_bytes}");
    }

    #[test]
    fn a_file_without_either_section_has_no_parts() {
        let parts = Parts::of_image(&elf_with_section(".text", 0, b"code")).unwrap();
        assert!(parts.eh_frame.is_none() && parts.debug_frame.is_none());
    }

    #[test]
    fn code_for_another_machine_is_refused() {
        let mut image = elf_with_section(".debug_frame", 0, b"frames");
        image[18] = 183;
        assert!(matches!(Parts::of_image(&image), Err(CfiError::Machine { machine: 183 })));
    }
}
