//! The linker's table of where to find the description of each function (`.eh_frame_hdr`).

/// The table, as the file has it. What it says is checked by whoever follows it.
#[derive(Debug)]
pub(super) struct SearchTable {
    address: u64,
    eh_frame_address: u64,
    bytes: Vec<u8>,
}

/// Version, and the encodings of the pointer to `.eh_frame`, of the count and of the entries: relative to where it
/// lies, unsigned, and relative to the table's start, 32 bits each. No linker writes others for x86-64.
const VERSION: u8 = 1;
const POINTER_ENCODING: u8 = 0x1b;
const COUNT_ENCODING: u8 = 0x03;
const ENTRY_ENCODING: u8 = 0x3b;

const HEADER_BYTES: usize = 12;

impl SearchTable {
    /// The table that is loaded at an address, unless it is in no known form.
    pub(super) fn parse(address: u64, bytes: Vec<u8>) -> Option<Self> {
        let [VERSION, POINTER_ENCODING, _, _, p0, p1, p2, p3, ..] = *bytes.as_slice() else { return None };
        let pointer = i32::from_le_bytes([p0, p1, p2, p3]);
        let eh_frame_address = address.wrapping_add(4).wrapping_add_signed(pointer.into());
        Some(Self { address, eh_frame_address, bytes })
    }

    /// How much memory it takes, in bytes.
    pub(super) const fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Where `.eh_frame` is said to begin.
    pub(super) const fn eh_frame_address(&self) -> u64 {
        self.eh_frame_address
    }

    /// Number of functions.
    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }

    /// Where the function that holds an address is said to begin and its description to be, as addresses: those of the
    /// last entry that does not begin behind it.
    pub(super) fn lookup(&self, svma: u64) -> Option<(u64, u64)> {
        let entries = self.entries();
        let next = entries.partition_point(|entry| self.halves(entry).0 <= svma);
        let entry = entries.get(next.checked_sub(1)?)?;
        Some(self.halves(entry))
    }

    fn entries(&self) -> &[[u8; 8]] {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER_BYTES>() else { return &[] };
        let [_, _, COUNT_ENCODING, ENTRY_ENCODING, _, _, _, _, c0, c1, c2, c3] = *header else { return &[] };
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        let (entries, _) = rest.as_chunks::<8>();
        entries.get(..usize::try_from(count).unwrap_or(usize::MAX)).unwrap_or(entries)
    }

    fn halves(&self, entry: &[u8; 8]) -> (u64, u64) {
        let [s0, s1, s2, s3, d0, d1, d2, d3] = *entry;
        let address =
            |relative: [u8; 4]| self.address.wrapping_add_signed(i32::from_le_bytes(relative).into());
        (address([s0, s1, s2, s3]), address([d0, d1, d2, d3]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(count: u32, entries: &[[i32; 2]]) -> Vec<u8> {
        let mut bytes = vec![VERSION, POINTER_ENCODING, COUNT_ENCODING, ENTRY_ENCODING];
        bytes.extend(0x100_i32.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(entries.as_flattened().iter().flat_map(|half| half.to_le_bytes()));
        bytes
    }

    #[test]
    fn an_address_leads_to_the_last_function_that_begins_before_it() {
        let table = SearchTable::parse(0x1000, table(2, &[[-0x800, 0x200], [0x800, 0x300]])).unwrap();
        assert_eq!(table.eh_frame_address(), 0x1104);
        assert_eq!(table.lookup(0x7ff), None);
        assert_eq!(table.lookup(0x800), Some((0x800, 0x1200)));
        assert_eq!(table.lookup(0x17ff), Some((0x800, 0x1200)));
        assert_eq!(table.lookup(u64::MAX), Some((0x1800, 0x1300)));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_count_that_is_not_true_leads_nowhere_else() {
        let table = SearchTable::parse(0, table(u32::MAX, &[[0x10, 0x20]])).unwrap();
        assert_eq!(table.lookup(0x10), Some((0x10, 0x20)));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_table_in_another_form_is_no_table() {
        let mut bytes = table(1, &[[0, 0]]);
        bytes[3] = 0x1b;
        let table = SearchTable::parse(0, bytes.clone()).unwrap();
        assert_eq!(table.lookup(0), None);
        bytes[0] = 2;
        assert!(SearchTable::parse(0, bytes).is_none());
        assert!(SearchTable::parse(0, vec![1, 0x1b, 3, 0x3b]).is_none());
    }
}
