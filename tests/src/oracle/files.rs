//! The files that stacks lead through: as they are on this machine, or what was kept of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use gimli::{BaseAddresses, CieOrFde, EhFrame, EndianSlice, LittleEndian, UnwindSection};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object as _, ObjectSection as _};
use profiler_user::source::uprobe::capture::CapturedRange;

/// Where files are.
#[derive(Clone, Debug)]
pub enum Files {
    /// Under their own names.
    Here,
    /// In a folder of kept stacks, each with no more than it takes to walk these.
    KeptIn(PathBuf),
}

/// The parts of a file that an unwinder needs.
pub(super) struct Parts {
    pub(super) eh_frame: Option<(u64, Vec<u8>)>,
    pub(super) eh_frame_hdr: Option<(u64, Vec<u8>)>,
    /// File offset, address, size in the file, whether it is code.
    segments: Vec<(u64, u64, u64, bool)>,
    /// Everything that a program header of its kind says, for those that are kept.
    program_headers: Vec<u8>,
    entry: u64,
}

const PROGRAM_HEADER_BYTES: u16 = 56;
const SECTION_HEADER_BYTES: u16 = 64;
const HEADER_BYTES: u64 = 64;

impl Files {
    /// The content of a file.
    #[track_caller]
    fn bytes(&self, name: &str) -> Vec<u8> {
        match self {
            Self::Here => fs::read(name).unwrap_or_else(|err| panic!("{name}: {err}")),
            Self::KeptIn(folder) => {
                let path = folder.join(kept_name(name));
                let mut bytes = Vec::new();
                let file = File::open(&path);
                let read = file.and_then(|file| GzDecoder::new(file).read_to_end(&mut bytes));
                read.unwrap_or_else(|err| panic!("{}: {err}", path.display()));
                bytes
            }
        }
    }

    /// The file, to be read as heaptap reads it.
    #[track_caller]
    pub(super) fn open(&self, name: &str) -> File {
        match self {
            Self::Here => File::open(name).unwrap_or_else(|err| panic!("{name}: {err}")),
            Self::KeptIn(_) => {
                let file = tempfile::tempfile().expect("a file without a name");
                file.write_all_at(&self.bytes(name), 0).expect("there is room");
                file
            }
        }
    }

    /// A path of the file; `folder` is for one that has none.
    #[track_caller]
    pub(super) fn named(&self, name: &str, folder: &Path) -> PathBuf {
        match self {
            Self::Here => PathBuf::from(name),
            Self::KeptIn(_) => {
                let path = folder.join(kept_name(name));
                fs::write(&path, self.bytes(name)).expect("there is room");
                path
            }
        }
    }

    /// The parts of a file that an unwinder needs.
    #[track_caller]
    pub(super) fn parts(&self, name: &str) -> Parts {
        let bytes = self.bytes(name);
        let elf: ElfFile64<'_, Endianness> = ElfFile64::parse(&*bytes).expect("a mapped program is ELF");
        let section = |name: &str| {
            let section = elf.section_by_name(name)?;
            Some((section.address(), section.data().expect("a section is in the file").to_vec()))
        };
        let mut parts = Parts {
            eh_frame: section(".eh_frame"),
            eh_frame_hdr: section(".eh_frame_hdr"),
            segments: Vec::new(),
            program_headers: Vec::new(),
            entry: elf.elf_header().e_entry(Endianness::Little),
        };
        for header in elf.elf_program_headers() {
            let endian = Endianness::Little;
            if header.p_type(endian) != object::elf::PT_LOAD {
                continue;
            }
            parts.segments.push((
                header.p_offset(endian),
                header.p_vaddr(endian),
                header.p_filesz(endian),
                header.p_flags(endian).contains(object::elf::PF_X),
            ));
            parts.program_headers.extend_from_slice(object::bytes_of(header));
        }
        parts
    }

    /// Writes of each file what it takes to walk on from the bytes at `wanted`, which are names and offsets, to `folder`.
    #[track_caller]
    pub(super) fn prune(&self, wanted: &BTreeSet<(String, u64)>, folder: &Path) {
        let mut by_name: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (name, offset) in wanted {
            by_name.entry(name).or_default().push(*offset);
        }
        for (name, offsets) in by_name.into_iter().filter(|(name, _)| name.starts_with('/')) {
            let parts = self.parts(name);
            let addresses: Vec<u64> = offsets.iter().filter_map(|offset| parts.address_of(*offset)).collect();
            let out = File::create(folder.join(kept_name(name))).expect("the folder is there");
            let mut out = GzEncoder::new(out, Compression::best());
            out.write_all(&parts.pruned(&addresses)).expect("there is room");
            out.finish().expect("there is room");
        }
    }
}

fn kept_name(name: &str) -> String {
    format!("{}.elf.gz", Path::new(name).file_name().expect("a file has a name").to_string_lossy())
}

impl Parts {
    /// The address, as the file states it, of the byte at an offset.
    pub(super) fn address_of(&self, file_offset: u64) -> Option<u64> {
        let inside = |(offset, address, size, _): &(u64, u64, u64, bool)| {
            let inside = file_offset.checked_sub(*offset)?;
            (inside < *size).then(|| address + inside)
        };
        let code = self.segments.iter().filter(|segment| segment.3).find_map(inside);
        code.or_else(|| self.segments.iter().find_map(inside))
    }

    /// How much higher the file lies than it says, where a range of its code does.
    pub(super) fn bias(&self, range: &CapturedRange) -> Option<u64> {
        let end = range.offset + (range.end - range.start);
        // The range begins with the page that the segment begins in.
        let code = self
            .segments
            .iter()
            .find(|&&(offset, _, size, is_code)| is_code && offset < end && range.offset < offset + size)?;
        let start = code.1.wrapping_sub(code.0).wrapping_add(range.offset);
        Some(range.start.wrapping_sub(start))
    }

    /// An ELF file with the same segments, all of them empty, and with that part of `.eh_frame` which speaks of `addresses`.
    fn pruned(&self, addresses: &[u64]) -> Vec<u8> {
        let names = b"\0.eh_frame\0.shstrtab\0.text\0";
        let (address, eh_frame) = match &self.eh_frame {
            Some((address, bytes)) => (*address, keep_entries(*address, bytes, addresses)),
            None => (0, Vec::new()),
        };
        let segments = u16::try_from(self.segments.len()).expect("few segments");
        let frames_at = HEADER_BYTES + u64::from(segments * PROGRAM_HEADER_BYTES);
        let names_at = frames_at + eh_frame.len() as u64;
        let sections_at = (names_at + names.len() as u64).next_multiple_of(8);
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let half = |elf: &mut Vec<u8>, numbers: &[u16]| {
            numbers.iter().for_each(|number| elf.extend(number.to_le_bytes()));
        };
        let word = |elf: &mut Vec<u8>, numbers: &[u32]| {
            numbers.iter().for_each(|number| elf.extend(number.to_le_bytes()));
        };
        let long = |elf: &mut Vec<u8>, numbers: &[u64]| {
            numbers.iter().for_each(|number| elf.extend(number.to_le_bytes()));
        };
        // ET_DYN, EM_X86_64, EV_CURRENT; the tables' places and sizes.
        half(&mut elf, &[3, 62]);
        word(&mut elf, &[1]);
        long(&mut elf, &[self.entry, HEADER_BYTES, sections_at]);
        word(&mut elf, &[0]);
        half(&mut elf, &[64, PROGRAM_HEADER_BYTES, segments, SECTION_HEADER_BYTES, 4, 2]);
        elf.extend(&self.program_headers);
        elf.extend(&eh_frame);
        elf.extend(names);
        elf.resize(usize::try_from(sections_at).expect("it fits memory"), 0);
        let code = self.segments.iter().find(|segment| segment.3).expect("a program has code");
        // SHT_PROGBITS with SHF_ALLOC, SHT_STRTAB, and SHT_NOBITS with SHF_ALLOC and SHF_EXECINSTR, which gdb wants to see.
        for (name, kind, flags, address, offset, size) in [
            (0, 0, 0, 0, 0, 0),
            (1, 1, 2, address, frames_at, eh_frame.len() as u64),
            (11, 3, 0, 0, names_at, names.len() as u64),
            (21, 8, 6, code.1, sections_at, code.2),
        ] {
            word(&mut elf, &[name, kind]);
            long(&mut elf, &[flags, address, offset, size]);
            word(&mut elf, &[0, 0]);
            long(&mut elf, &[8, 0]);
        }
        elf
    }
}

/// `.eh_frame` with those entries that speak of `addresses` or of the byte behind one of them, at their old places; what lies
/// between them is one entry that says nothing.
fn keep_entries(address: u64, bytes: &[u8], addresses: &[u64]) -> Vec<u8> {
    let section = EhFrame::from(EndianSlice::new(bytes, LittleEndian));
    let bases = BaseAddresses::default().set_eh_frame(address);
    let mut kept: BTreeMap<usize, usize> = BTreeMap::new();
    let mut entries = section.entries(&bases);
    // An entry's length is before it, in four bytes.
    let mut keep = |offset: usize, length: usize| kept.insert(offset, offset + 4 + length);
    while let Some(entry) = entries.next().expect("a library's own information is in order") {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).expect("an entry can be read");
        if addresses.iter().any(|address| fde.contains(*address) || fde.contains(address + 1)) {
            keep(fde.offset(), fde.entry_len());
            keep(fde.cie().offset(), fde.cie().entry_len());
        }
    }
    let mut pruned = Vec::new();
    for (from, to) in kept {
        fill(&mut pruned, from);
        pruned.extend(&bytes[from..to]);
    }
    // The terminator.
    pruned.extend([0; 4]);
    pruned
}

/// Fills up with a CIE that nothing refers to.
fn fill(section: &mut Vec<u8>, end: usize) {
    let gap = end - section.len();
    if gap == 0 {
        return;
    }
    // Version 1, no augmentation, alignments 1 and -8, the return address in column 16; then nops.
    let cie = [1, 0, 1, 0x78, 16];
    let length = u32::try_from(gap - 4).expect("a section is small");
    section.extend(length.to_le_bytes());
    section.extend([0; 4]);
    section.extend(cie);
    assert!(section.len() <= end, "an entry has at least 16 bytes");
    section.resize(end, 0);
}
