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
const MAGIC: &[u8; 16] = b"heaptap gate 1\n\0";

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
    /// The jumps into it.
    pub jumps: Vec<Jump>,
    /// Where calls return to in it that are not counted as under way.
    pub returns: Vec<u64>,
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

impl Description {
    /// That of a gate at these places.
    pub fn new(
        code: Range<u64>,
        data: Range<u64>,
        layout: Layout,
        jumps: Vec<Jump>,
        frames: &[Frame],
    ) -> Self {
        let uncounted = frames.iter().filter(|frame| !frame.is_counted);
        let returns = uncounted.map(|frame| frame.return_address).collect();
        Self { code, data, bucket_bits: layout.bucket_bits(), jumps, returns }
    }

    /// What lies where in the data.
    pub fn layout(&self) -> Layout {
        Layout::of_buckets(self.bucket_bits)
    }

    /// How much of the file descriptions of so many functions take, in bytes: whole pages.
    pub fn bytes_for(functions: usize) -> u64 {
        (OTHER_BYTES + FUNCTION_BYTES * functions as u64).next_multiple_of(PAGE_BYTES)
    }

    /// What is written; where a text can be of no such type, nothing, which nobody takes for a gate.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Ok(text) = serde_json::to_vec(self) else { return Vec::new() };
        [MAGIC, (text.len() as u64).to_le_bytes().as_slice(), &text].concat()
    }

    /// Reads what was written; `None` where it is no description of a gate.
    pub fn read(file: &mut impl Read) -> io::Result<Option<Self>> {
        let mut start = [0; MAGIC.len() + 8];
        file.read_exact(&mut start)?;
        let (magic, length) = start.split_at(MAGIC.len());
        let length = length.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        if magic != MAGIC || length > LIMIT_BYTES {
            return Ok(None);
        }
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text)?;
        Ok(serde_json::from_slice::<Self>(&text).ok().filter(Self::is_sound))
    }

    /// Whether it may be that of a gate: jumps that lead into its code, and nothing else, are ever taken out.
    fn is_sound(&self) -> bool {
        let is_range = |range: &Range<u64>| {
            range.start < range.end && range.start.is_multiple_of(PAGE_BYTES) && range.end < 1 << 63
        };
        is_range(&self.code)
            && is_range(&self.data)
            && self.data.end - self.data.start == self.layout().bytes()
            && self
                .jumps
                .iter()
                .all(|jump| jump.jump.first() == Some(&0xe9) && self.code.contains(&jump.target()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(functions: u64) -> Description {
        let layout = Layout::for_blocks(0);
        let (code, data) =
            (0x7f00_0000_0000..0x7f00_0000_4000, 0x7fff_0000_0000..0x7fff_0000_0000 + layout.bytes());
        let jump = |number| {
            Jump::to(0x7f00_1000_0000 + number, [255; JUMP_BYTES], 0x7f00_0000_1000 + number).unwrap()
        };
        let frame =
            |number| Frame { return_address: 0x7f00_0000_1000 + number, cfa_offset: 16, is_counted: false };
        let frames: Vec<Frame> = (0..functions).map(frame).collect();
        Description::new(code, data, layout, (0..functions).map(jump).collect(), &frames)
    }

    #[test]
    fn what_was_written_is_read_again_and_has_room() {
        for functions in [0, 1, 9, 23, 24, 115] {
            let description = description(functions);
            let bytes = description.to_bytes();
            let room = Description::bytes_for(description.jumps.len());
            assert!(bytes.len() as u64 <= room, "{} of {room}", bytes.len());
            assert_eq!(Description::read(&mut bytes.as_slice()).unwrap(), Some(description));
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
    fn what_lies_is_no_description() {
        let read = |bytes: &[u8]| Description::read(&mut &*bytes);
        let good = description(2).to_bytes();
        assert!(read(&[]).is_err());
        assert!(read(&good[..20]).is_err());
        assert_eq!(read(&good[..60]).unwrap(), None, "it is cut off");
        assert_eq!(read(&[0; 64]).unwrap(), None);
        let with = |change: &dyn Fn(&mut Description)| {
            let mut other = description(2);
            change(&mut other);
            read(&other.to_bytes()).unwrap()
        };
        assert!(with(&|_| {}).is_some());
        assert_eq!(with(&|other| other.code.end = other.code.start), None);
        assert_eq!(with(&|other| other.code.end = u64::MAX), None);
        assert_eq!(with(&|other| other.data.end += PAGE_BYTES), None);
        assert_eq!(with(&|other| other.bucket_bits = 64), None);
        assert_eq!(with(&|other| other.jumps[1].jump[0] = 0x90), None);
        assert_eq!(with(&|other| other.jumps[1].address += 1 << 20), None, "it leads elsewhere");
        let mut long = good;
        long[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(read(&long).unwrap(), None);
    }
}
