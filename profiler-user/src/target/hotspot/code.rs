//! The code that lies at an address of a JVM.
//!
//! A code heap is cut into segments, and has a byte for each: 255 where it is free, 0 where a block of code begins, and else how
//! far to go back at least to that (`CodeHeap::find_block_for` in OpenJDK's src/hotspot/share/memory/heap.cpp).

use super::structs::Structs;
use crate::target::words::Words;

/// There are three at most.
const HEAPS_LIMIT: u64 = 8;

/// A step back leads over up to 254 segments; the largest block, the interpreter, takes ten.
const STEPS_LIMIT: usize = 1024;

/// A segment that is part of no block (`CodeHeap::free_sentinel`).
const FREE: u8 = 255;

/// What the interpreter's block is called.
pub(super) const INTERPRETER: &[u8] = b"Interpreter";

/// What compiled methods are called, and the JVM's ways from methods to native code.
pub(super) const METHODS: [&[u8]; 2] = [b"nmethod", b"native nmethod"];

/// A block of code. Another one in its place has another name or size of frames, or is as good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    /// Where its header lies.
    address: u64,
    /// Where its name lies.
    name: u64,
    /// How much its frames take, in words: those saved by the call and by the function's first instruction included. 0 where it
    /// has frames of several shapes.
    pub(super) frame_words: u32,
}

impl Block {
    /// The block at an address.
    pub(super) fn find(address: u64, structs: &Structs, words: &Words) -> Option<Self> {
        let array = words.word(structs.heaps)?;
        let length = words.half(array.checked_add(structs.array_length)?)?;
        let data = words.word(array.checked_add(structs.array_data)?)?;
        (0..u64::from(length).min(HEAPS_LIMIT)).find_map(|index| {
            let heap = words.word(data.checked_add(8 * index)?)?;
            Self::find_in(heap, address, structs, words)
        })
    }

    fn find_in(heap: u64, address: u64, structs: &Structs, words: &Words) -> Option<Self> {
        let memory = heap.checked_add(structs.memory)?;
        let low = words.word(memory.checked_add(structs.low)?)?;
        let high = words.word(memory.checked_add(structs.high)?)?;
        if !(low..high).contains(&address) {
            return None;
        }
        let map = words.word(heap.checked_add(structs.map)?.checked_add(structs.low)?)?;
        let segment_log2 = words.half(heap.checked_add(structs.segment_log2)?)?;
        let mut segment = (address - low).checked_shr(segment_log2)?;
        for _ in 0..STEPS_LIMIT {
            match words.byte(map.checked_add(segment)?)? {
                0 => {
                    let start = low.checked_add(segment.checked_mul(1_u64.checked_shl(segment_log2)?)?)?;
                    return Self::at(start, structs, words);
                }
                FREE => return None,
                back => segment = segment.checked_sub(back.into())?,
            }
        }
        None
    }

    /// The block whose header is at an address.
    fn at(address: u64, structs: &Structs, words: &Words) -> Option<Self> {
        let is_used = words.byte(address.checked_add(structs.is_used)?)? != 0;
        let blob = address.checked_add(structs.block_bytes)?;
        let name = words.word(blob.checked_add(structs.name)?)?;
        let frame_words = words.half(blob.checked_add(structs.frame_words)?)?;
        is_used.then_some(Self { address, name, frame_words })
    }

    /// Whether it is still there.
    pub(super) fn is_there(&self, structs: &Structs, words: &Words) -> bool {
        Self::at(self.address, structs, words) == Some(*self)
    }

    /// What the JVM calls it: the interpreter, a stub, or [`METHODS`] what it has compiled.
    pub(super) fn kind(&self, words: &Words) -> Option<Vec<u8>> {
        words.name(self.name)
    }

    /// Where its `CodeBlob` lies.
    pub(super) fn blob(&self, structs: &Structs) -> Option<u64> {
        self.address.checked_add(structs.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixture::{HIGH, Image, LOW, STRUCTS},
        *,
    };

    fn find(image: &Image, address: u64) -> Option<u32> {
        Block::find(address, &STRUCTS, &image.read()).map(|block| block.frame_words)
    }

    #[test]
    fn a_block_is_found_from_all_of_its_segments() {
        let image = Image::with_heap();
        image.block(2, 3, false, 12);
        image.block(5, 1, false, 4);
        for (segment, frame_words) in
            [(1, None), (2, Some(12)), (3, Some(12)), (4, Some(12)), (5, Some(4)), (6, None)]
        {
            assert_eq!(find(&image, LOW + 128 * segment), frame_words, "{segment}");
            assert_eq!(find(&image, LOW + 128 * segment + 127), frame_words, "{segment}");
        }
        assert_eq!((find(&image, LOW - 1), find(&image, HIGH)), (None, None), "outside");
    }

    #[test]
    fn large_blocks_take_several_steps() {
        let image = Image::with_heap();
        image.block(0, 60, true, 0);
        image.map(50, 20);
        image.map(30, 30);
        assert_eq!(find(&image, LOW + 128 * 50), Some(0));
    }

    #[test]
    fn a_map_that_leads_astray_leads_nowhere() {
        let image = Image::with_heap();
        image.map(5, 6);
        assert_eq!(find(&image, LOW + 128 * 5), None, "before the first segment");
        image.map(10, 1);
        assert_eq!(find(&image, LOW + 128 * 10), None, "to a free one");
        image.words(0x448, &[64]);
        assert_eq!(find(&image, LOW), None, "segments larger than memory");
    }

    #[test]
    fn a_block_is_there_until_another_is() {
        let image = Image::with_heap();
        image.block(2, 3, false, 12);
        let words = image.read();
        let block = Block::find(LOW + 128 * 3, &STRUCTS, &words).unwrap();
        assert!(block.is_there(&STRUCTS, &words));
        image.block(2, 2, false, 11);
        assert!(!block.is_there(&STRUCTS, &words), "with other frames");
        image.block(2, 3, true, 12);
        assert!(!block.is_there(&STRUCTS, &words), "with another name");
        image.block(2, 3, false, 12);
        assert!(block.is_there(&STRUCTS, &words));
        image.words(LOW + 128 * 2 + 8, &[0]);
        assert!(!block.is_there(&STRUCTS, &words), "it is free");
    }

    #[test]
    fn any_memory_will_do() {
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            seed >> 33
        };
        let mut found = 0;
        for _ in 0..300 {
            let image = Image::with_heap();
            image.block(random() % 60, (random() % 4) as u8 + 1, false, random());
            for _ in 0..random() % 8 {
                let wild =
                    [random() % 0x5000, random() << 32, u64::MAX - random() % 16][random() as usize % 3];
                image.words(random() % 0x600, &[wild]);
                image.map(random() % 64, random() as u8);
            }
            let words = image.read();
            for segment in 0..64 {
                found += usize::from(Block::find(LOW + 128 * segment, &STRUCTS, &words).is_some());
            }
        }
        assert!(found > 100, "{found} blocks are too few to show anything");
    }
}
