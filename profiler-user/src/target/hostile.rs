//! A real ELF file, cut short or made to claim what is not so, for the tests of everything that reads one.

use std::{fs::File, os::unix::fs::FileExt};

use object::{
    Endianness,
    elf::FileHeader64,
    read::elf::{ElfFile64, FileHeader, SectionHeader},
};

/// Claims of sizes that only a hole has room for are made of a file that has one of this size.
const HOLE_BYTES: u64 = 1 << 42;

/// What numbers are made to be: nothing, odd, more than is read of anything, and more than there is.
const CLAIMS: [u64; 5] = [0, 1, 1 << 31, 1 << 40, u64::MAX];

const FILE_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;

fn parse(image: &[u8]) -> ElfFile64<'_, Endianness> {
    ElfFile64::parse(image).expect("the file is whole")
}

/// The lengths at which cutting the file cuts something else: at the ends of each part and header, a byte to either side,
/// and in the middle.
pub(crate) fn cuts(image: &[u8]) -> Vec<usize> {
    let elf = parse(image);
    let header: &FileHeader64<Endianness> = elf.elf_header();
    let endian = elf.endian();
    let place = |number: u64| usize::try_from(number).expect("the file is in memory");
    let mut parts = vec![(0, FILE_HEADER_BYTES)];
    let programs = place(header.e_phoff(endian));
    parts.extend(
        (0..elf.elf_program_headers().len())
            .map(|at| (programs + at * PROGRAM_HEADER_BYTES, PROGRAM_HEADER_BYTES)),
    );
    let sections = place(header.e_shoff(endian));
    for (at, section) in elf.elf_section_table().iter().enumerate() {
        parts.push((sections + at * SECTION_HEADER_BYTES, SECTION_HEADER_BYTES));
        let (offset, size_bytes) = section.file_range(endian).unwrap_or_default();
        parts.push((place(offset), place(size_bytes)));
    }
    let mut cuts: Vec<usize> = parts
        .into_iter()
        .flat_map(|(start, size)| {
            [start, start + 1, start + size / 2, (start + size).saturating_sub(1), start + size]
        })
        .filter(|cut| *cut < image.len())
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Has `read` look at the file once for each number in its headers and each claim that this could make. The file has a
/// hole behind it that everything has room in.
pub(crate) fn claims(image: &[u8], mut read: impl FnMut(&str, &File)) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(image, 0).unwrap();
    file.set_len(HOLE_BYTES).unwrap();
    let elf = parse(image);
    let (endian, header) = (elf.endian(), elf.elf_header());
    // e_entry, e_phoff and e_shoff, then e_phentsize, e_phnum, e_shentsize, e_shnum and e_shstrndx.
    let mut numbers: Vec<(u64, usize)> =
        vec![(24, 8), (32, 8), (40, 8), (54, 2), (56, 2), (58, 2), (60, 2), (62, 2)];
    for at in 0..elf.elf_program_headers().len() as u64 {
        // p_type, p_offset, p_vaddr, p_filesz.
        let start = header.e_phoff(endian) + at * PROGRAM_HEADER_BYTES as u64;
        numbers.extend([(start, 4), (start + 8, 8), (start + 16, 8), (start + 32, 8)]);
    }
    for at in 0..elf.elf_section_table().len() as u64 {
        // sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_entsize.
        let start = header.e_shoff(endian) + at * SECTION_HEADER_BYTES as u64;
        let fields = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (56, 8)];
        numbers.extend(fields.map(|(inside, size)| (start + inside, size)));
    }
    for (offset, size) in numbers {
        let mut was = vec![0; size];
        file.read_exact_at(&mut was, offset).unwrap();
        for claim in CLAIMS {
            file.write_all_at(&claim.to_le_bytes()[..size], offset).unwrap();
            read(&format!("{claim:#x} in the {size} bytes at {offset:#x}"), &file);
        }
        file.write_all_at(&was, offset).unwrap();
    }
}
