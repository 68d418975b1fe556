//! One section of call frame information: which entry describes an address, and what it says there.

use std::{cell::RefCell, ops::Range, sync::OnceLock};

use gimli::{
    BaseAddresses, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice, Error, FrameDescriptionEntry,
    LittleEndian, UnwindContext, UnwindOffset, UnwindSection, X86_64,
};
use profiler_common::unwind::{Row, WalkEnd};

use super::{
    convert::row_of,
    index::{Index, count},
    search_table::SearchTable,
};

pub(super) type Slice<'data> = EndianSlice<'data, LittleEndian>;
/// What many functions have in common.
pub(super) type Cie<'data> = CommonInformationEntry<Slice<'data>>;
/// What describes one function.
type Fde<'data> = FrameDescriptionEntry<Slice<'data>>;

/// Real ones have 20 to 40 bytes. What is common to all functions is gone through for every one of them, which a
/// hostile file must not make expensive.
const CIE_LIMIT_BYTES: u32 = 256;

/// The longest of some hundred large files, librustc_driver's, has 33 KiB. As every row takes a byte at least, this
/// limits their number too.
const FDE_LIMIT_BYTES: usize = 128 << 10;

thread_local! {
    /// The space in which rows are put together: 25 KiB, the same for all files.
    static CONTEXT: RefCell<UnwindContext<usize>> = RefCell::new(UnwindContext::new());
}

/// A section, and how to find functions in it.
#[derive(Debug)]
pub(super) struct Table {
    form: Form,
    bytes: Vec<u8>,
    bases: BaseAddresses,
    search_table: Option<SearchTable>,
    /// Whether the search table has all functions, once that was asked.
    has_all: OnceLock<bool>,
    /// Built when the linker's table is missing, or is seen not to be as it should.
    index: OnceLock<Index>,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    EhFrame { address: u64 },
    DebugFrame,
}

impl Table {
    /// `.eh_frame` that is loaded at an address.
    pub(super) fn eh_frame(address: u64, bytes: Vec<u8>, search_table: Option<SearchTable>) -> Self {
        let bases = BaseAddresses::default().set_eh_frame(address);
        Self::new(Form::EhFrame { address }, bytes, bases, search_table)
    }

    /// `.debug_frame`, which is not loaded.
    pub(super) fn debug_frame(bytes: Vec<u8>) -> Self {
        let bases = BaseAddresses::default();
        Self::new(Form::DebugFrame, bytes, bases, None)
    }

    const fn new(
        form: Form,
        bytes: Vec<u8>,
        bases: BaseAddresses,
        search_table: Option<SearchTable>,
    ) -> Self {
        Self { form, bytes, bases, search_table, has_all: OnceLock::new(), index: OnceLock::new() }
    }

    /// How much memory it takes, in bytes, but for an index of our own, which takes less.
    pub(super) fn size_bytes(&self) -> usize {
        self.bytes.len() + self.search_table.as_ref().map_or(0, SearchTable::size_bytes)
    }

    /// What the section says about an address; `None` where it says nothing.
    pub(super) fn row(&self, svma: u64) -> Option<Row> {
        match self.form {
            Form::EhFrame { .. } => self.row_in(&EhFrame::new(&self.bytes, LittleEndian), svma),
            Form::DebugFrame => {
                let mut section = DebugFrame::new(&self.bytes, LittleEndian);
                section.set_address_size(8);
                self.row_in(&section, svma)
            }
        }
    }

    /// What the description that holds an address begins and ends with.
    pub(super) fn function_at(&self, svma: u64) -> Option<Range<u64>> {
        match self.form {
            Form::EhFrame { .. } => self.range_in(&EhFrame::new(&self.bytes, LittleEndian), svma),
            Form::DebugFrame => {
                let mut section = DebugFrame::new(&self.bytes, LittleEndian);
                section.set_address_size(8);
                self.range_in(&section, svma)
            }
        }
    }

    fn range_in<'data, S: UnwindSection<Slice<'data>>>(
        &'data self,
        section: &S,
        svma: u64,
    ) -> Option<Range<u64>> {
        let fde = self.fde(section, svma)?;
        Some(fde.initial_address()..fde.initial_address().checked_add(fde.len())?)
    }

    fn row_in<'data, S: UnwindSection<Slice<'data>>>(&'data self, section: &S, svma: u64) -> Option<Row> {
        let fde = self.fde(section, svma);
        if fde.as_ref().is_some_and(Fde::is_signal_trampoline)
            || self.signal_begins_behind(section, &fde, svma)
        {
            return Some(Row::SIGNAL);
        }
        let fde = fde?;
        if fde.entry_len() > FDE_LIMIT_BYTES || fde.cie().return_address_register() != X86_64::RA {
            return Some(Row::stop(WalkEnd::Unsupported));
        }
        Some(CONTEXT.with_borrow_mut(|context| {
            match fde.unwind_info_for_address(section, &self.bases, context, svma) {
                Ok(row) => row_of(section, row),
                Err(_) => Row::stop(WalkEnd::Unsupported),
            }
        }))
    }

    /// Whether a signal trampoline begins behind the byte at an address.
    ///
    /// The kernel, not a call, made the return address of a handler: that is the trampoline's first instruction, and
    /// the byte before it may belong to anything. glibc describes its trampoline from one byte earlier on for that.
    fn signal_begins_behind<'data, S: UnwindSection<Slice<'data>>>(
        &'data self,
        section: &S,
        fde: &Option<Fde<'data>>,
        svma: u64,
    ) -> bool {
        let Some(next) = svma.checked_add(1) else { return false };
        if fde.as_ref().is_some_and(|fde| fde.contains(next)) {
            return false;
        }
        let behind = self.fde(section, next);
        behind.is_some_and(|fde| fde.is_signal_trampoline() && fde.initial_address() == next)
    }

    fn fde<'data, S: UnwindSection<Slice<'data>>>(&'data self, section: &S, svma: u64) -> Option<Fde<'data>> {
        let parse = |offset: usize| {
            let cie =
                |section: &S, bases: &BaseAddresses, offset| cie_at(section, &self.bytes, bases, offset);
            section.fde_from_offset(&self.bases, offset.into(), cie).ok()
        };
        let holds = |fde: &Fde<'_>| fde.contains(svma);
        if let (Form::EhFrame { address }, Some(search_table)) = (self.form, &self.search_table) {
            let is_as_said = match search_table.lookup(svma) {
                Some((start, described)) => {
                    let offset =
                        described.checked_sub(address).and_then(|offset| usize::try_from(offset).ok());
                    let fde = offset.and_then(parse);
                    if fde.as_ref().is_some_and(holds) {
                        return fde;
                    }
                    fde.is_some_and(|fde| fde.initial_address() == start)
                }
                None => true,
            };
            // An index takes long to build, and code that nothing is said about is no reason: V8 brings a lot of it.
            if is_as_said
                && *self.has_all.get_or_init(|| count(section, &self.bases) == Some(search_table.len()))
            {
                return None;
            }
        }
        let index = self.index.get_or_init(|| Index::build(section, &self.bytes, &self.bases));
        index.lookup(svma).and_then(parse).filter(holds)
    }
}

/// The CIE at an offset, if it is not too long.
pub(super) fn cie_at<'data, S: UnwindSection<Slice<'data>>>(
    section: &S,
    bytes: &[u8],
    bases: &BaseAddresses,
    offset: S::Offset,
) -> Result<Cie<'data>, Error> {
    let at = UnwindOffset::into(offset);
    let outside = Error::OffsetOutOfBounds(u64::try_from(at).unwrap_or(u64::MAX));
    let length = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|word| u32::from_le_bytes(*word));
    if length.is_none_or(|length| length > CIE_LIMIT_BYTES) {
        return Err(outside);
    }
    section.cie_from_offset(bases, offset)
}

#[cfg(test)]
mod tests {
    use profiler_common::unwind::{FpRule, Kind};

    use super::super::assemble::{self, ADVANCE, DEF_CFA_OFFSET};
    use super::*;

    const ADDRESS: u64 = 0x9000;

    fn sp(cfa_offset: i32) -> Option<Row> {
        Some(Row::new(Kind::Sp, FpRule::Unchanged, 0, cfa_offset))
    }

    /// A search table whose only entry says that the function at `start` is described at `fde`.
    fn search_table(start: i32, fde: usize) -> SearchTable {
        let relative = i32::try_from(ADDRESS).unwrap() + i32::try_from(fde).unwrap();
        let words = [0, 1, start, relative].map(i32::to_le_bytes);
        SearchTable::parse(0, [[1, 0x1b, 3, 0x3b].as_slice(), words.as_flattened()].concat()).unwrap()
    }

    #[test]
    fn rows_change_within_a_function_and_end_with_it() {
        let program = [ADVANCE | 4, DEF_CFA_OFFSET, 16, ADVANCE | 4, DEF_CFA_OFFSET, 8];
        let bytes =
            assemble::EhFrame::new().function(0x2000, 16, &[]).function(0x1000, 16, &program).finish();
        let table = Table::eh_frame(ADDRESS, bytes, None);
        assert_eq!(table.row(0xfff), None);
        assert_eq!(table.row(0x1003), sp(8));
        assert_eq!(table.row(0x1004), sp(16));
        assert_eq!(table.row(0x1007), sp(16));
        assert_eq!(table.row(0x100f), sp(8));
        assert_eq!(table.row(0x1010), None);
        assert_eq!(table.row(0x2000), sp(8));
        assert_eq!(table.row(u64::MAX), None);
    }

    #[test]
    fn a_search_table_is_followed_only_to_where_the_address_is() {
        let frames = assemble::EhFrame::new();
        let first = frames.len();
        let frames = frames.function(0x1000, 16, &[DEF_CFA_OFFSET, 16]);
        let second = frames.len();
        let bytes = frames.function(0x2000, 16, &[DEF_CFA_OFFSET, 32]).finish();
        for fde in [first, second, second + 1, 0, 1 << 20] {
            let table = Table::eh_frame(ADDRESS, bytes.clone(), Some(search_table(0x1000, fde)));
            assert_eq!(table.row(0x1001), sp(16), "{fde}");
            assert_eq!(table.index.get().is_none(), fde == first, "an index only where it is needed: {fde}");
            assert_eq!(table.row(0x2001), sp(32), "{fde}");
        }
    }

    #[test]
    fn what_a_search_table_of_all_functions_leaves_out_is_not_looked_for() {
        let frames = assemble::EhFrame::new();
        let only = frames.len();
        let bytes = frames.function(0x1000, 16, &[]).finish();
        for (start, needs_index) in [(0x1000, false), (0x1001, true)] {
            let table = Table::eh_frame(ADDRESS, bytes.clone(), Some(search_table(start, only)));
            assert_eq!(table.row(0x1010), None);
            assert_eq!(table.row(0x1008), sp(8));
            assert_eq!(table.index.get().is_some(), needs_index, "{start:x}");
        }
    }

    #[test]
    fn a_handler_returns_to_a_trampoline_that_is_found_by_the_byte_before() {
        let frames = |start| {
            let bytes =
                assemble::EhFrame::new().function(0x1000, 16, &[]).cie("zRS", &[]).function(start, 9, &[]);
            Table::eh_frame(ADDRESS, bytes.finish(), None)
        };
        // Right behind another function, and behind a gap.
        assert_eq!(frames(0x1010).row(0x100f), Some(Row::SIGNAL));
        assert_eq!(frames(0x1010).row(0x100e), sp(8));
        assert_eq!(frames(0x1020).row(0x101f), Some(Row::SIGNAL));
        assert_eq!(frames(0x1020).row(0x1020), Some(Row::SIGNAL));
        assert_eq!(frames(0x1020).row(0x101e), None);
    }

    #[test]
    fn a_debug_frame_tells_the_same() {
        // What differs is how an entry says that it is a CIE, and where its CIE is.
        let mut bytes = assemble::EhFrame::new().function(0x1000, 16, &[DEF_CFA_OFFSET, 16]).finish();
        let fde = 4 + usize::from(bytes[0]);
        bytes[4..8].fill(0xff);
        bytes[fde + 4..fde + 8].fill(0);
        let table = Table::debug_frame(bytes);
        assert_eq!(table.row(0x1001), sp(16));
        assert_eq!(table.row(0x1010), None);
    }

    #[test]
    fn a_return_address_in_another_column_is_not_supported() {
        let mut bytes = assemble::EhFrame::new().function(0x1000, 16, &[]).finish();
        bytes[14] = 15;
        assert_eq!(Table::eh_frame(ADDRESS, bytes, None).row(0x1000), Some(Row::stop(WalkEnd::Unsupported)));
    }
}
