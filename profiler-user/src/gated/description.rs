//! What a gate says of itself, at the beginning of its file: what it has changed, for whoever finds it.
//!
//! It may be found where anybody may have written: it is read within bounds, and only believed where the process has what it says.

use std::{
    io::{self, Read},
    ops::Range,
};

use serde::{Deserialize, Serialize};

use crate::{
    gate::{
        code::Frame,
        layout::{Layout, PAGE_BYTES},
    },
    target::cover::JUMP_BYTES,
};

/// What the file begins with.
const MAGIC: &[u8; 16] = b"heaptap gate 3\n\0";

/// `int3`
const BREAKPOINT: u8 = 0xcc;

/// A description is no longer than this.
const LIMIT_BYTES: u64 = 1 << 18;

/// What a function takes of one, at most.
const FUNCTION_BYTES: u64 = 160;

/// What everything else takes.
const OTHER_BYTES: u64 = 512;

/// What a gate has changed in its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Where this and its code are.
    pub code: Range<u64>,
    /// Where its data is.
    pub data: Range<u64>,
    /// The buckets of its table, as a power of two.
    bucket_bits: u32,
    /// Where calls return to whose threads are counted.
    pub(super) returns: Vec<u64>,
    /// The jumps into it.
    pub jumps: Vec<Jump>,
}

/// A jump that was written into a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    /// Where.
    pub address: u64,
    /// What was there.
    pub original: [u8; JUMP_BYTES],
    /// What is there now.
    pub jump: [u8; JUMP_BYTES],
}

impl Jump {
    /// `jmp rel32` from an address to another (Intel SDM, volume 2, JMP: E9 cd); `None` where that is too far.
    pub fn to(address: u64, original: [u8; JUMP_BYTES], target: u64) -> Option<Self> {
        let behind = address.checked_add(JUMP_BYTES as u64)?;
        let distance = i32::try_from(target.wrapping_sub(behind).cast_signed()).ok()?;
        let [a, b, c, d] = distance.to_le_bytes();
        Some(Self { address, original, jump: [0xe9, a, b, c, d] })
    }

    /// From which of its bytes on it is to be taken out, where these are in its place; `None` where it is not there any more.
    ///
    /// The file may have a jump in the same place. Then another tool's breakpoint may be on that, which stays: the kernel goes on by
    /// what the file has, and puts its first byte back, which is this one's as well.
    pub fn is_there(&self, is: &[u8]) -> Option<usize> {
        let ([first, rest @ ..], [file, ..], [there, behind @ ..]) = (self.jump, self.original, is) else {
            return None;
        };
        if rest != *behind {
            return None;
        }
        match *there {
            there if there == first => Some(0),
            BREAKPOINT if file == first => Some(1),
            _ => None,
        }
    }

    /// Whether these bytes are what it has taken the place of, with another tool's breakpoint on them or not.
    pub fn is_out(&self, is: &[u8]) -> bool {
        let ([first, rest @ ..], [there, behind @ ..]) = (self.original, is) else { return false };
        rest == *behind && (*there == first || *there == BREAKPOINT)
    }

    /// Where it leads.
    fn target(&self) -> u64 {
        let [_, a, b, c, d] = self.jump;
        let behind = self.address.wrapping_add(JUMP_BYTES as u64);
        behind.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into())
    }
}

/// What the beginning of a gate's file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Nothing: whoever made the file was killed before it was whole, and no jump leads there.
    Unfinished,
    /// What the gate has changed.
    Whole(Description),
    /// Something else: it is none of ours, or of another version of heaptap.
    Unknown,
}

impl Description {
    /// That of a gate at these places.
    pub fn new(code: Range<u64>, data: Range<u64>, layout: Layout, jumps: Vec<Jump>) -> Self {
        Self { code, data, bucket_bits: layout.bucket_bits(), returns: Vec::new(), jumps }
    }

    /// The same with the places that counted calls return to.
    pub(super) fn with_frames(mut self, frames: &[Frame]) -> Self {
        let counted = frames.iter().filter(|frame| frame.is_counted);
        self.returns = counted.map(|frame| frame.return_address).collect();
        self
    }

    /// What lies where in the data.
    pub fn layout(&self) -> Layout {
        Layout::of_buckets(self.bucket_bits)
    }

    /// How much of the file descriptions of so many functions take, in bytes: whole pages.
    pub fn bytes_for(functions: usize) -> u64 {
        (OTHER_BYTES + FUNCTION_BYTES * functions as u64).next_multiple_of(PAGE_BYTES)
    }

    /// Writes it. What it begins with comes last, for that says that all is there.
    pub fn write(&self, mut write_at: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::from)?;
        let behind = [(text.len() as u64).to_le_bytes().as_slice(), &text].concat();
        if (MAGIC.len() + behind.len()) as u64 > Self::bytes_for(self.jumps.len()) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        write_at(&behind, MAGIC.len() as u64)?;
        write_at(MAGIC, 0)
    }

    /// Reads what was written.
    pub fn read(file: &mut impl Read) -> io::Result<Reading> {
        let mut start = Vec::new();
        file.by_ref().take(MAGIC.len() as u64 + 8).read_to_end(&mut start)?;
        let (magic, length) = start.split_at_checked(MAGIC.len()).unwrap_or((&start, &[]));
        if magic.iter().all(|byte| *byte == 0) {
            return Ok(Reading::Unfinished);
        }
        let length = length.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
        if magic != MAGIC || length > LIMIT_BYTES {
            return Ok(Reading::Unknown);
        }
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text)?;
        let description = serde_json::from_slice::<Self>(&text).ok().filter(Self::is_sound);
        Ok(description.map_or(Reading::Unknown, Reading::Whole))
    }

    /// Whether it may be that of a gate: jumps that lead into its code, and nothing else, are ever taken out.
    fn is_sound(&self) -> bool {
        let is_range = |range: &Range<u64>| {
            range.start < range.end && range.start.is_multiple_of(PAGE_BYTES) && range.end < 1 << 63
        };
        is_range(&self.code)
            && is_range(&self.data)
            && self.data.end - self.data.start == self.layout().bytes()
            && self.jumps.iter().all(|jump| {
                jump.jump.first() == Some(&0xe9)
                    && jump.address < 1 << 63
                    && self.code.contains(&jump.target())
                    && !self.code.contains(&jump.address)
            })
            && !overlap(&self.jumps)
    }
}

/// Whether any two of them lie on each other: which of them is taken out first would then matter.
fn overlap(jumps: &[Jump]) -> bool {
    let mut addresses: Vec<u64> = jumps.iter().map(|jump| jump.address).collect();
    addresses.sort_unstable();
    addresses.windows(2).any(|pair| matches!(pair, [one, next] if next - one < JUMP_BYTES as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    fn description(functions: u64) -> Description {
        let layout = Layout::for_blocks(0);
        let (code, data) =
            (0x7f00_0000_0000..0x7f00_0000_4000, 0x7fff_0000_0000..0x7fff_0000_0000 + layout.bytes());
        let jump = |number| {
            Jump::to(0x7f00_1000_0000 + 16 * number, [255; JUMP_BYTES], 0x7f00_0000_1000 + number).unwrap()
        };
        let frame = |number| Frame { return_address: code.end - number, cfa_offset: 16, is_counted: true };
        let frames: Vec<Frame> = (0..functions).map(frame).collect();
        Description::new(code.clone(), data, layout, (0..functions).map(jump).collect()).with_frames(&frames)
    }

    /// The file, all of it.
    fn bytes_of(description: &Description) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(Description::bytes_for(description.jumps.len())).unwrap()];
        let write = |part: &[u8], at: u64| {
            let at = usize::try_from(at).unwrap();
            bytes[at..at + part.len()].copy_from_slice(part);
            Ok(())
        };
        description.write(write).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Reading {
        Description::read(&mut &*bytes).unwrap()
    }

    #[test]
    fn what_was_written_is_read_again_and_has_room() {
        for functions in [0, 1, 9, 23, 24, 115] {
            let description = description(functions);
            let bytes = bytes_of(&description);
            assert_eq!(bytes.len() as u64, Description::bytes_for(description.jumps.len()));
            assert_eq!(read(&bytes), Reading::Whole(description));
        }
    }

    #[test]
    fn jumps_lead_where_they_should_and_no_further_than_they_can() {
        let jump = Jump::to(0x5000, [1, 2, 3, 4, 5], 0x4000).unwrap();
        assert_eq!((jump.jump[0], jump.target()), (0xe9, 0x4000));
        assert_eq!(Jump::to(0, [0; JUMP_BYTES], 1 << 31).map(|jump| jump.target()), Some(1 << 31));
        assert_eq!(Jump::to(0, [0; JUMP_BYTES], (1 << 31) + 5), None);
        assert_eq!(Jump::to(u64::MAX, [0; JUMP_BYTES], 0), None);
    }

    #[test]
    fn a_breakpoint_on_a_jump_that_was_one_before_stays() {
        let jump = Jump::to(0x5000, [0xe9, 1, 2, 3, 4], 0x4000).unwrap();
        let [_, rest @ ..] = jump.jump;
        assert_eq!(jump.is_there(&jump.jump), Some(0));
        assert_eq!(jump.is_there(&[&[0xcc], rest.as_slice()].concat()), Some(1));
        assert_eq!(jump.is_there(&jump.original), None);
        assert_eq!(jump.is_there(&jump.jump[..4]), None);
        assert!(jump.is_out(&[0xcc, 1, 2, 3, 4]) && jump.is_out(&jump.original) && !jump.is_out(&jump.jump));
        let other = Jump { original: [0x55, 1, 2, 3, 4], ..jump };
        assert_eq!(
            other.is_there(&[&[0xcc], rest.as_slice()].concat()),
            None,
            "the kernel would put back a push"
        );
    }

    #[test]
    fn who_is_killed_while_it_is_written_leaves_nothing() {
        let mut parts = Vec::new();
        let write = |part: &[u8], at| {
            parts.push((part.to_vec(), at));
            Ok(())
        };
        description(9).write(write).unwrap();
        let (last, at) = parts.pop().unwrap();
        assert_eq!((last.as_slice(), at), (&MAGIC[..], 0));
        let mut bytes = vec![0; 4096];
        for (part, at) in parts {
            let at = usize::try_from(at).unwrap();
            for length in [part.len() / 2, part.len()] {
                bytes[at..at + length].copy_from_slice(&part[..length]);
                assert_eq!(read(&bytes), Reading::Unfinished);
            }
        }
        assert_eq!(read(&[]), Reading::Unfinished, "it has no length yet");
        assert_eq!(read(&[0; 64]), Reading::Unfinished);
    }

    #[test]
    fn what_lies_is_no_description() {
        let good = bytes_of(&description(2));
        assert_eq!(read(&good[..20]), Reading::Unknown);
        assert_eq!(read(&good[..60]), Reading::Unknown, "it is cut off");
        let mut other = good.clone();
        other[13] = b'1';
        assert_eq!(read(&other), Reading::Unknown, "it is of another version");
        let with = |change: &dyn Fn(&mut Description)| {
            let mut other = description(2);
            change(&mut other);
            matches!(read(&bytes_of(&other)), Reading::Whole(_))
        };
        assert!(with(&|_| {}));
        assert!(!with(&|other| other.code.end = other.code.start));
        assert!(!with(&|other| other.code.end = u64::MAX));
        assert!(!with(&|other| other.data.end += PAGE_BYTES));
        assert!(!with(&|other| other.bucket_bits = 64));
        assert!(!with(&|other| other.jumps[1].jump[0] = 0x90));
        assert!(!with(&|other| other.jumps[1].address += 1 << 20), "it leads elsewhere");
        assert!(!with(&|other| other.jumps[1].address = u64::MAX));
        assert!(!with(&|other| other.jumps[1] = other.jumps[0]), "they lie on each other");
        let within = |other: &mut Description| {
            let at = other.code.start + 64;
            other.jumps[1] = Jump::to(at, [0; JUMP_BYTES], at + 128).unwrap();
        };
        assert!(!with(&within), "it lies in the gate");
        let mut long = good;
        long[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(read(&long), Reading::Unknown);
    }

    #[test]
    fn whatever_is_there_is_read_within_bounds() {
        let mut numbers = Numbers::new();
        let good = bytes_of(&description(3));
        let text = good.iter().rposition(|byte| *byte != 0).unwrap();
        let mut whole = 0;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + numbers.below(4) {
                let at = usize::try_from(numbers.below(text as u64)).unwrap();
                bytes[at] = numbers.next().to_le_bytes()[0];
            }
            if let Reading::Whole(description) = read(&bytes) {
                whole += 1;
                assert!(description.is_sound() && description.jumps.len() <= 3);
            }
        }
        // Digits may be other digits.
        assert!(whole > 0);
        // Lengths and texts that are nothing but long.
        for filler in [b'[', b'{', b' ', b'1', b'"'] {
            let length = LIMIT_BYTES.to_le_bytes();
            let endless = MAGIC.iter().chain(&length).copied().chain(std::iter::repeat_n(filler, 1 << 20));
            let mut endless = io::Cursor::new(endless.collect::<Vec<u8>>());
            assert_eq!(Description::read(&mut endless).unwrap(), Reading::Unknown);
            assert_eq!(endless.position(), LIMIT_BYTES + 24);
        }
    }
}
