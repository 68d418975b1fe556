//! What lies at the addresses of a process at one moment, without what it was before and without opening anything.

use super::{
    mapping::{Mapping, executable},
    maps::{AddressSpace, Content, Inode},
    process::{ProcessError, live_thread},
};

/// What lies at an address, as far as code is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No code.
    Nothing,
    /// Code that no file stands for.
    Unnamed,
    /// A byte of a file.
    File {
        /// Which file.
        inode: Inode,
        /// Offset in it, in bytes.
        offset: u64,
    },
}

/// Where a process has which code.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout(Vec<Stretch>);

/// A stretch of code.
#[derive(Debug, PartialEq, Eq)]
struct Stretch {
    start: u64,
    end: u64,
    offset: u64,
    inode: Option<Inode>,
}

impl Stretch {
    fn at(&self, address: u64) -> Place {
        match self.inode {
            // An offset in a file fits 64 bits, whatever the mapping says of itself.
            Some(inode) => Place::File { inode, offset: self.offset.wrapping_add(address - self.start) },
            None => Place::Unnamed,
        }
    }
}

impl Layout {
    /// Where a process has which code now.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let thread = live_thread(pid).ok_or(ProcessError::Gone { pid })?;
        let stretches = executable(pid, thread)?.into_iter().map(|map| {
            let Mapping { start, end, offset, inode, .. } = map;
            Stretch { start, end, offset, inode }
        });
        Ok(Self(stretches.collect()))
    }

    /// What lies at an address.
    pub fn at(&self, address: u64) -> Place {
        let after = self.0.partition_point(|stretch| stretch.start <= address);
        let stretch = after.checked_sub(1).and_then(|index| self.0.get(index));
        stretch.filter(|stretch| address < stretch.end).map_or(Place::Nothing, |stretch| stretch.at(address))
    }
}

impl AddressSpace {
    /// What lay at an address at the last look.
    pub fn place(&self, address: u64) -> Place {
        let Some(range) = self.find(address).and_then(|index| self.ranges().get(index)) else {
            return Place::Nothing;
        };
        let inode = match range.content {
            Content::Module(module) => self.modules().get(module).and_then(|module| module.inode),
            Content::Unnamed(_) => None,
        };
        Stretch { start: range.start, end: range.end, offset: range.offset, inode }.at(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(start: u64, end: u64, inode: Option<Inode>) -> Stretch {
        Stretch { start, end, offset: 0x500, inode }
    }

    #[test]
    fn places_are_found_by_their_stretch() {
        let file = (8, 1, 42);
        let layout = Layout(vec![stretch(0x1000, 0x2000, Some(file)), stretch(0x2000, 0x3000, None)]);
        assert_eq!(layout.at(0xfff), Place::Nothing);
        assert_eq!(layout.at(0x1010), Place::File { inode: file, offset: 0x510 });
        assert_eq!(layout.at(0x2000), Place::Unnamed);
        assert_eq!(layout.at(0x3000), Place::Nothing);
    }

    #[test]
    fn a_look_at_the_layout_sees_what_a_look_at_the_mappings_sees() {
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let layout = Layout::of(std::process::id()).unwrap();
        let here = a_look_at_the_layout_sees_what_a_look_at_the_mappings_sees as *const () as u64;
        assert!(matches!(layout.at(here), Place::File { .. }));
        for stretch in &layout.0 {
            assert_eq!(layout.at(stretch.start), space.place(stretch.start));
            assert_eq!(layout.at(stretch.end - 1), space.place(stretch.end - 1));
        }
        assert_eq!((layout.at(0), space.place(0)), (Place::Nothing, Place::Nothing));
    }
}
