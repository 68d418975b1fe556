//! A JVM's memory, made up.

use std::{io::Write as _, os::unix::fs::FileExt as _};

use super::structs::{MethodStructs, Structs};
use crate::target::words::Words;

/// Where the fields are here.
pub(super) const STRUCTS: Structs = Structs {
    heaps: 0x100,
    array_length: 0,
    array_data: 8,
    memory: 8,
    map: 0x28,
    segment_log2: 0x48,
    low: 0x10,
    high: 0x18,
    is_used: 8,
    block_bytes: 0x10,
    name: 0x20,
    frame_words: 0x1c,
    methods: Some(MethodStructs {
        method: 0x28,
        constant: 8,
        constants: 8,
        name_index: 0x22,
        pool_bytes: 0x40,
        holder: 0x18,
        class_name: 0x18,
        symbol_length: 4,
        symbol_text: 6,
    }),
};

/// First address of the heap's code, which takes 64 segments of 128 bytes.
pub(super) const LOW: u64 = 0x4000;

/// First address behind it.
pub(super) const HIGH: u64 = LOW + 64 * 128;

/// Where the heap's map of segments lies.
const MAP: u64 = 0x3000;

/// A JVM's memory: what was not written is 0.
pub(super) struct Image(tempfile::NamedTempFile);

impl Image {
    pub(super) fn empty() -> Self {
        Self(tempfile::NamedTempFile::new().unwrap())
    }

    /// With one code heap, which is free but for what is put there.
    pub(super) fn with_heap() -> Self {
        let image = Self::empty();
        // The heaps, by an array of one.
        image.words(0x100, &[0x200]);
        image.words(0x200, &[1, 0x300]);
        image.words(0x300, &[0x400]);
        image.words(0x408 + 0x10, &[LOW, HIGH]);
        image.words(0x428 + 0x10, &[MAP, MAP + 64]);
        image.words(0x448, &[7]);
        image.bytes(MAP, &[255; 64]);
        image.bytes(0x2000, b"Interpreter\0nmethod\0");
        image
    }

    /// Puts a block into the heap, by its first segment and how many it takes.
    pub(super) fn block(&self, segment: u64, segments: u8, is_interpreter: bool, frame_words: u64) {
        let map: Vec<u8> = (0..segments).collect();
        self.bytes(MAP + segment, &map);
        let start = LOW + 128 * segment;
        self.words(start, &[segments.into(), 1]);
        let name = if is_interpreter { 0x2000 } else { 0x200c };
        self.words(start + 0x10 + 0x18, &[frame_words << 32, name]);
    }

    /// Says which method a block's code is of. There is room for one, behind the heap.
    pub(super) fn method(&self, segment: u64, class: &[u8], name: &[u8]) {
        let [method, constant, pool, holder] = [0x8000, 0x8100, 0x8200, 0x8300];
        let [class_at, name_at] = [0x9000, 0xa000];
        self.words(LOW + 128 * segment + 0x10 + 0x28, &[method]);
        self.words(method + 8, &[constant]);
        self.words(constant + 8, &[pool]);
        self.bytes(constant + 0x22, &[3, 0]);
        self.words(pool + 0x18, &[holder]);
        self.words(pool + 0x40 + 8 * 3, &[name_at]);
        self.words(holder + 0x18, &[class_at]);
        for (at, text) in [(class_at, class), (name_at, name)] {
            self.bytes(at + 4, &u16::try_from(text.len()).unwrap().to_le_bytes());
            self.bytes(at + 6, text);
        }
    }

    pub(super) fn bytes(&self, address: u64, bytes: &[u8]) {
        self.0.as_file().write_all_at(bytes, address).unwrap();
    }

    pub(super) fn words(&self, address: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(address, &bytes);
    }

    /// Says that a segment's block begins so far before it, or more.
    pub(super) fn map(&self, segment: u64, back: u8) {
        self.bytes(MAP + segment, &[back]);
    }

    pub(super) fn read(&self) -> Words {
        self.0.as_file().flush().unwrap();
        Words::in_file(self.0.reopen().unwrap())
    }
}
