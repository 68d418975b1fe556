//! Inputs, taken apart.

use std::{fs::File, os::unix::fs::FileExt};

use rustix::fs::{MemfdFlags, memfd_create};

/// The bytes of an input, taken from the front; zeros when there are none left.
pub(crate) struct Input<'bytes>(&'bytes [u8]);

impl<'bytes> Input<'bytes> {
    pub(crate) const fn new(bytes: &'bytes [u8]) -> Self {
        Self(bytes)
    }

    /// The next `count` bytes, fewer at the end.
    pub(crate) fn bytes(&mut self, count: usize) -> &'bytes [u8] {
        let (taken, rest) = self.0.split_at_checked(count).unwrap_or((self.0, &[]));
        self.0 = rest;
        taken
    }

    fn array<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut array = [0; COUNT];
        array.iter_mut().zip(self.bytes(COUNT)).for_each(|(to, from)| *to = *from);
        array
    }

    pub(crate) fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// All that is left.
    pub(crate) fn rest(self) -> &'bytes [u8] {
        self.0
    }
}

/// A file with this content, which is in memory only.
pub(crate) fn file(content: &[u8]) -> File {
    let file = File::from(memfd_create("input", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all_at(content, 0).expect("there is room for an input in memory");
    file
}
