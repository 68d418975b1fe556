//! A mapped file that is being looked through, for allocators and for how to walk through its code: what was read of it is
//! read once, and what was split off it is looked for once.

use std::{cell::OnceCell, fs::File};

use super::{bounded::BoundedFile, image::Image, maps::Module, separate::Places};

/// A file, with what has been found out about it so far. To be dropped soon: it keeps what was read.
pub(crate) struct Specimen<'module> {
    pub(crate) module: &'module Module,
    pub(crate) content: BoundedFile<'module>,
    separate: OnceCell<Option<File>>,
}

impl<'module> Specimen<'module> {
    /// The file of a module; `None` where that could not be opened.
    pub(crate) fn of(module: &'module Module) -> Option<Self> {
        let content = BoundedFile::new(module.file.as_deref()?);
        Some(Self { module, content, separate: OnceCell::new() })
    }

    /// What was split off the file, if it is among these places, which have to be the same every time.
    pub(crate) fn separate(&self, places: &Places) -> Option<&File> {
        let find = || places.find(self.module, &Image::parse(&self.content).ok()?);
        self.separate.get_or_init(find).as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{symbolize::fixture::Guest, target::given::Given};

    #[test]
    fn what_was_split_off_is_looked_for_once() {
        let guest = Guest::library();
        let debug = guest.make_debug_file("debug");
        guest.strip();
        let places = Places::of(u32::MAX, Given { files: vec![debug.clone()], ..Given::default() });
        let module = guest.module();
        let specimen = Specimen::of(&module).expect("it is open");
        assert!(specimen.separate(&places).is_some());
        std::fs::remove_file(debug).expect("it was there");
        assert!(specimen.separate(&places).is_some());
        assert!(Specimen::of(&module).expect("it is open").separate(&places).is_none());
    }

    #[test]
    fn a_file_that_could_not_be_opened_is_none() {
        let guest = Guest::library();
        let module = Module { file: None, ..guest.module() };
        assert!(Specimen::of(&module).is_none());
    }
}
