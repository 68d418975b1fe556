//! Call frame information that says anything.

use std::collections::BTreeSet;

use profiler_common::unwind::{Row, WalkEnd};

use super::{Input, file};
use crate::target::cfi::{CfiError, UnwindInfo, is_signal_return};

/// How many addresses are asked about.
const ADDRESSES_LIMIT: usize = 32;

/// What an image is put together from.
#[derive(Default)]
struct Parts<'bytes> {
    /// For `PT_GNU_EH_FRAME`.
    search_table: Option<&'bytes [u8]>,
    eh_frame: &'bytes [u8],
    /// Whether `.eh_frame` has a section header.
    has_section: bool,
    debug_frame: Option<&'bytes [u8]>,
    is_compressed: bool,
}

/// Unwind rows from the call frame information of an ELF image: a whole one, or one put together around sections.
pub fn eh_frame(bytes: &[u8]) {
    is_signal_return(bytes);
    if bytes.starts_with(b"\x7fELF") {
        ask(bytes, bytes, 0);
        return;
    }
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let lengths = [input.half(), input.half()].map(usize::from);
    let content = input.rest();
    let mut input = Input::new(content);
    let [search_table, eh_frame] = lengths.map(|length| input.bytes(length));
    let parts = Parts {
        search_table: (flags & 1 != 0).then_some(search_table),
        eh_frame,
        has_section: flags & 2 != 0,
        debug_frame: (flags & 4 != 0).then_some(input.rest()),
        is_compressed: flags & 8 != 0,
    };
    ask(&parts.image(), content, CONTENT_OFFSET);
}

/// Asks for rows at addresses that stand in `content`, which lies at an address.
fn ask(image: &[u8], content: &[u8], address: u64) {
    let file = file(image);
    let separate = UnwindInfo::load_separate(&file, &file);
    let (from_image, from_file) = (UnwindInfo::from_image(image.to_vec()), UnwindInfo::load(&file));
    let (Ok(Some(info)), Ok(Some(other))) = (&from_image, &from_file) else {
        assert_eq!(outcome(&from_image), outcome(&from_file), "{from_image:?}, from the file {from_file:?}");
        return;
    };
    let addresses = addresses(content, address);
    let rows: Vec<Row> = addresses.iter().map(|address| info.row(*address)).collect();
    for (&address, &row) in addresses.iter().zip(&rows).rev() {
        check(row);
        assert_eq!(other.row(address), row, "what was asked before tells at {address:#x}");
        assert_eq!(other.svma_of(address), info.svma_of(address));
        if let Ok(Some(separate)) = &separate {
            check(separate.row(address));
        }
    }
}

fn outcome(read: &Result<Option<UnwindInfo>, CfiError>) -> &'static str {
    match read {
        Ok(Some(_)) => "something",
        Ok(None) => "nothing",
        Err(CfiError::Broken(_)) => "broken",
        Err(CfiError::Machine { .. }) => "another machine",
        Err(CfiError::TooLarge { .. }) => "too large",
        Err(CfiError::Read { .. } | CfiError::Outside { .. }) => "outside",
        Err(CfiError::Compressed { .. }) => "cannot be unpacked",
        Err(CfiError::Method { .. }) => "method",
    }
}

/// Addresses that the content is likely to speak of: its numbers, as they are and relative to where they stand, and
/// those beside them.
fn addresses(content: &[u8], address: u64) -> Vec<u64> {
    let (words, _) = content.as_chunks::<4>();
    let mut found = BTreeSet::from([0, u64::MAX - 1, u64::MAX]);
    for (place, word) in (address..).step_by(4).zip(words) {
        if found.len() >= ADDRESSES_LIMIT {
            break;
        }
        let word = i32::from_le_bytes(*word);
        let number = u64::from(word.cast_unsigned());
        let relative = place.wrapping_add_signed(word.into());
        found.extend([number, number.wrapping_add(1), relative, relative.wrapping_sub(1)]);
    }
    found.into_iter().collect()
}

/// A row is one that [`Row::new`] makes of its parts, and a stop says why.
fn check(row: Row) {
    let raw = row.to_raw();
    let [kind, fp_rule, small_low, small_high, ..] = raw.to_le_bytes();
    let small = u16::from_le_bytes([small_low, small_high]);
    let is_well_formed = match kind {
        2 | 3 | 6 | 7 => fp_rule <= 2 && (fp_rule != 0 || small == 0),
        4 => raw >> 32 == 0 && fp_rule == 0 && small <= 16,
        5 => row == Row::SIGNAL,
        8 => row == Row::END,
        9 => row == Row::stop(WalkEnd::Unsupported) || row == Row::stop(WalkEnd::NoUnwindInfo),
        _ => false,
    };
    assert!(is_well_formed, "{row:?}");
}

/// What lies before the content: the file's header, two program headers, four section headers, their names.
const CONTENT_OFFSET: u64 = 512;
const PROGRAMS_OFFSET: u64 = 64;
const SECTIONS_OFFSET: u64 = PROGRAMS_OFFSET + 2 * 56;
const NAMES_OFFSET: u64 = SECTIONS_OFFSET + 4 * 64;
const NAMES: &[u8] = b"\0.eh_frame\0.debug_frame\0.shstrtab\0";

impl Parts<'_> {
    /// An ELF image for x86-64 that is loaded whole at address 0 (ELF gABI, chapters 4 and 5).
    fn image(&self) -> Vec<u8> {
        let search_table = self.search_table.unwrap_or_default();
        let debug_frame = self.debug_frame.unwrap_or_default();
        let [table_bytes, frame_bytes, debug_bytes] =
            [search_table, self.eh_frame, debug_frame].map(|part| part.len() as u64);
        let eh_frame_offset = CONTENT_OFFSET + table_bytes;
        let debug_offset = eh_frame_offset + frame_bytes;
        let end = debug_offset + debug_bytes;
        let mut image = Image(b"\x7fELF\x02\x01\x01".to_vec());
        image.pad(16);
        image.halves(&[3, 62, 1, 0]);
        image.longs(&[CONTENT_OFFSET, PROGRAMS_OFFSET, SECTIONS_OFFSET]);
        image.halves(&[0, 0, 64, 56, 2, 64, 4, 3]);
        image.program(1, 0, end);
        image.program(if self.search_table.is_some() { 0x6474_e550 } else { 0 }, CONTENT_OFFSET, table_bytes);
        image.pad(SECTIONS_OFFSET + 64);
        // SHT_NOBITS is what is left of a section that was split off.
        image.section(1, if self.has_section { 1 } else { 8 }, 0, eh_frame_offset, frame_bytes);
        let flags = if self.is_compressed { 1 << 11 } else { 0 };
        image.section(11, if self.debug_frame.is_some() { 1 } else { 8 }, flags, debug_offset, debug_bytes);
        image.section(24, 3, 0, NAMES_OFFSET, NAMES.len() as u64);
        image.0.extend(NAMES);
        image.pad(CONTENT_OFFSET);
        image.0.extend([search_table, self.eh_frame, debug_frame].concat());
        image.0
    }
}

struct Image(Vec<u8>);

impl Image {
    fn pad(&mut self, offset: u64) {
        self.0.resize(usize::try_from(offset).unwrap_or_default(), 0);
    }

    fn halves(&mut self, halves: &[u16]) {
        self.0.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    }

    fn longs(&mut self, longs: &[u64]) {
        self.0.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
    }

    fn program(&mut self, kind: u32, offset: u64, size_bytes: u64) {
        self.0.extend(kind.to_le_bytes());
        // Readable and executable.
        self.0.extend(5_u32.to_le_bytes());
        self.longs(&[offset, offset, offset, size_bytes, size_bytes, 1]);
    }

    fn section(&mut self, name: u32, kind: u32, flags: u64, offset: u64, size_bytes: u64) {
        self.0.extend(name.to_le_bytes());
        self.0.extend(kind.to_le_bytes());
        self.longs(&[flags, offset, offset, size_bytes, 0, 1, 0]);
    }
}
