//! What a stack is made of once locations are taken apart: a function, or the place where a name lacks.

use std::{cmp::Ordering, fmt};

use super::{checked::CheckedProfile, printable::Printable, proto};

/// What a frame is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameName {
    /// A function by the index of its name.
    Function(i64),
    /// A place in a file that no name is known for.
    Module {
        /// The index of the file's path.
        file: i64,
        /// The offset in the file: `address − memory_start + file_offset`.
        offset_bytes: u64,
    },
    /// An address outside of all known files.
    Address(u64),
}

/// A function call in a stack, inlined or not.
///
/// Two frames of one profile are equal exactly if their texts are: string indexes are the first ones of
/// equal strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame {
    /// What is called.
    pub name: FrameName,
    /// The index of the source file's name; 0 if not known.
    pub file: i64,
    /// The line in `file`; 0 if not known.
    pub line: i64,
}

impl CheckedProfile {
    /// Returns the frames of a location, the innermost first; never none.
    pub fn frames(&self, location: &proto::Location) -> impl DoubleEndedIterator<Item = Frame> {
        let unnamed = self.unnamed(location);
        let lines = location.line.iter().map(move |line| self.frame(line, unnamed));
        let nothing = location.line.is_empty().then_some(Frame { name: unnamed, file: 0, line: 0 });
        lines.chain(nothing)
    }

    /// Returns how a frame is shown: `name`, and `file:line` if the frame has them.
    pub fn show(&self, frame: Frame) -> impl fmt::Display {
        FrameText { profile: self, frame }
    }

    /// Compares frames by their texts, functions before what has no name.
    pub fn compare(&self, a: Frame, b: Frame) -> Ordering {
        self.compare_names(a.name, b.name)
            .then_with(|| self.rank(a.file).cmp(&self.rank(b.file)))
            .then_with(|| a.line.cmp(&b.line))
    }

    fn compare_names(&self, a: FrameName, b: FrameName) -> Ordering {
        use FrameName::{Address, Function, Module};
        match (a, b) {
            (Function(a), Function(b)) => self.rank(a).cmp(&self.rank(b)),
            (Module { file: a, offset_bytes: x }, Module { file: b, offset_bytes: y }) => {
                self.rank(a).cmp(&self.rank(b)).then(x.cmp(&y))
            }
            (Address(a), Address(b)) => a.cmp(&b),
            (Function(_), _) | (Module { .. }, Address(_)) => Ordering::Less,
            (_, Function(_)) | (Address(_), Module { .. }) => Ordering::Greater,
        }
    }

    fn frame(&self, line: &proto::Line, unnamed: FrameName) -> Frame {
        let proto::Function { id: _, name, system_name, filename, start_line: _ } =
            self.function(line.function_id).copied().unwrap_or_default();
        let names = [name, system_name].map(|index| self.first_index(index));
        let name = names.into_iter().find(|&index| index != 0).map_or(unnamed, FrameName::Function);
        Frame { name, file: self.first_index(filename), line: line.line }
    }

    fn unnamed(&self, location: &proto::Location) -> FrameName {
        let address = location.address;
        let mapping = self.mapping(location.mapping_id);
        match mapping.map(|mapping| (mapping, self.first_index(mapping.filename))) {
            Some((mapping, file)) if file != 0 => {
                // A hostile mapping may lie anywhere, also above its addresses.
                let offset_bytes =
                    address.wrapping_sub(mapping.memory_start).wrapping_add(mapping.file_offset);
                FrameName::Module { file, offset_bytes }
            }
            _ => FrameName::Address(address),
        }
    }
}

struct FrameText<'p> {
    profile: &'p CheckedProfile,
    frame: Frame,
}

impl fmt::Display for FrameText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { profile, frame: Frame { name, file, line } } = *self;
        match name {
            FrameName::Function(name) => write!(f, "{}", Printable(profile.string(name)))?,
            FrameName::Module { file, offset_bytes } => {
                write!(f, "{}+{offset_bytes:#x}", Printable(base_name(profile.string(file))))?;
            }
            FrameName::Address(address) => write!(f, "{address:#x}")?,
        }
        match (file, line) {
            (0, 0) => Ok(()),
            (_, 0) => write!(f, " {}", Printable(profile.string(file))),
            (_, _) => write!(f, " {}:{line}", Printable(profile.string(file))),
        }
    }
}

/// Returns a path's last part.
pub(crate) fn base_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    fn shown(location: usize) -> Vec<String> {
        let profile = CheckedProfile::new(fixture::server()).unwrap();
        let location = &profile.proto().location[location];
        profile.frames(location).map(|frame| profile.show(frame).to_string()).collect()
    }

    #[test]
    fn inlined_functions_are_frames_of_their_own() {
        assert_eq!(shown(1), ["grow server.c:31", "handle server.c:20"]);
    }

    #[test]
    fn a_frame_without_a_name_is_a_place_in_its_file() {
        assert_eq!(shown(2), ["server+0x1030"]);
    }

    #[test]
    fn a_frame_without_a_file_is_an_address() {
        let mut profile = fixture::server();
        profile.location[2].mapping_id = 0;
        let profile = CheckedProfile::new(profile).unwrap();
        let frame = profile.frames(&profile.proto().location[2]).next().unwrap();
        assert_eq!(profile.show(frame).to_string(), "0x400030");
    }
}
