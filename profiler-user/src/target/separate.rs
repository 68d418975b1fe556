//! Where what was split off a file may be.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use object::ReadRef;

use super::{
    debug_file::Finder,
    elf::is_elf,
    given::{self, Given},
    image::{Cache, Image},
    maps::{AddressSpace, Module},
    root::Root,
};

/// Where the debug files of a process's modules are looked for.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// What to look at before the system's own directories.
    given: Given,
    /// The process's root directory, kept for when it has ended.
    root: Option<Arc<Root>>,
}

impl Places {
    /// Those for the process `pid`.
    pub fn of(pid: u32, given: Given) -> Self {
        Self { given, root: Root::of(pid).ok().map(Arc::new) }
    }

    /// Those of a process that has another root.
    #[cfg(test)]
    pub(super) fn in_root(&mut self, root: Option<Root>) {
        self.root = root.map(Arc::new);
    }

    /// The debug file of `module`, whose content is `image`, if it is soon found to belong to it.
    pub(crate) fn find<'data, R: ReadRef<'data>>(
        &self,
        module: &Module,
        image: &Image<'data, R>,
    ) -> Option<File> {
        let ours = Root::at(Path::new("/")).ok();
        let finder = Finder::new(&self.given, ours.as_ref(), self.root.as_deref()).promptly();
        finder.find(module, image).map(|debug| debug.file)
    }

    /// The files that were given and belong to nothing that is mapped.
    pub fn unused(&self, space: &AddressSpace) -> Vec<PathBuf> {
        let belongs_to = |file: &File, module: &Module| {
            let Some(mapped) = module.file.as_deref().filter(|file| is_elf(file)) else { return false };
            Image::parse(&Cache::new(mapped)).is_ok_and(|image| given::belongs(file, &image))
        };
        let is_used = |path: &PathBuf| {
            given::open(path)
                .is_some_and(|file| space.modules().iter().any(|module| belongs_to(&file, module)))
        };
        self.given.files.iter().filter(|path| !is_used(path)).cloned().collect()
    }
}
