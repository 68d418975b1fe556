//! An index of our own over all functions of a table, for tables that come without one.

use gimli::{BaseAddresses, CieOrFde, UnwindSection};

use super::table::{Cie, Slice, cie_at};

/// Where each function begins and where its description lies, in order.
#[derive(Debug, Default)]
pub(super) struct Index {
    starts: Vec<Start>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Start {
    address: u64,
    offset: u32,
}

/// Chromium has 600,000 functions. An index of this many takes 64 MiB. Entries that turn out to be broken count: going
/// through them takes time.
const ENTRIES_LIMIT: usize = 4 << 20;

/// The number of functions that a section describes; `None` where it has more than any real one.
pub(super) fn count<'data, S: UnwindSection<Slice<'data>>>(
    section: &S,
    bases: &BaseAddresses,
) -> Option<usize> {
    let mut entries = section.entries(bases);
    let mut count = 0;
    while let Ok(Some(entry)) = entries.next() {
        count += usize::from(matches!(entry, CieOrFde::Fde(_)));
        if count > ENTRIES_LIMIT {
            return None;
        }
    }
    Some(count)
}

impl Index {
    /// The index of a section; an empty one where it has more functions than any real one.
    pub(super) fn build<'data, S: UnwindSection<Slice<'data>>>(
        section: &S,
        bytes: &[u8],
        bases: &BaseAddresses,
    ) -> Self {
        let mut starts = Vec::new();
        let mut seen = 0_usize;
        // Nearly all functions of a file share one CIE, and most others that of their neighbour.
        let mut known: Option<(S::Offset, Cie<'data>)> = None;
        let mut entries = section.entries(bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else { continue };
            if seen == ENTRIES_LIMIT {
                return Self::default();
            }
            seen += 1;
            let parsed = partial.parse(|section, bases, offset| match &known {
                Some((at, cie)) if *at == offset => Ok(cie.clone()),
                _ => {
                    let cie = cie_at(section, bytes, bases, offset)?;
                    known = Some((offset, cie.clone()));
                    Ok(cie)
                }
            });
            let (Ok(fde), Ok(offset)) = (parsed, u32::try_from(partial.offset())) else { continue };
            if fde.len() > 0 {
                starts.push(Start { address: fde.initial_address(), offset });
            }
        }
        starts.sort_unstable();
        starts.shrink_to_fit();
        Self { starts }
    }

    /// The offset of the description of the last function that does not begin behind an address.
    pub(super) fn lookup(&self, svma: u64) -> Option<usize> {
        let next = self.starts.partition_point(|start| start.address <= svma);
        let start = self.starts.get(next.checked_sub(1)?)?;
        usize::try_from(start.offset).ok()
    }
}

#[cfg(test)]
mod tests {
    use gimli::{EhFrame, LittleEndian};

    use super::*;
    use crate::target::cfi::assemble;

    fn index(bytes: &[u8]) -> Index {
        Index::build(&EhFrame::new(bytes, LittleEndian), bytes, &BaseAddresses::default())
    }

    #[test]
    fn functions_are_found_whatever_their_order_and_empty_ones_are_not() {
        let frames = assemble::EhFrame::new();
        let high = frames.len();
        let frames = frames.function(0x2000, 16, &[]).cie("zR", &[]);
        let low = frames.len();
        let bytes = frames.function(0x1000, 16, &[]).function(0x1800, 0, &[]).finish();
        let index = index(&bytes);
        assert_eq!(index.lookup(0xfff), None);
        assert_eq!(index.lookup(0x1000), Some(low));
        assert_eq!(index.lookup(0x1fff), Some(low));
        assert_eq!(index.lookup(0x2000), Some(high));
    }

    #[test]
    fn a_section_with_more_entries_than_any_real_one_has_an_empty_index() {
        let function = assemble::EhFrame::new().function(0x1000, 16, &[]).finish();
        assert!(index(&function).lookup(0x1000).is_some());
        // The shortest entry: four bytes of CIE pointer, to nowhere.
        let entry = [4_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat();
        let bytes = [function, entry.repeat(ENTRIES_LIMIT)].concat();
        assert_eq!(index(&bytes).lookup(0x1000), None);
    }
}
