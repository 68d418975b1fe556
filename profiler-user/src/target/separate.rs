//! Where what was split off a file may be.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use object::ReadRef;

use super::{debug_file::Finder, image::Image, maps::Module, root::Root};

/// Where the debug files of a process's modules are looked for.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Directories to search before the system's own.
    pub debug_dirs: Vec<PathBuf>,
    /// The process's root directory, kept for when it has ended.
    root: Option<Arc<Root>>,
}

impl Places {
    /// Those for the process `pid`.
    pub fn of(pid: u32, debug_dirs: Vec<PathBuf>) -> Self {
        Self { debug_dirs, root: Root::of(pid).ok().map(Arc::new) }
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
        let finder = Finder::new(&self.debug_dirs, ours.as_ref(), self.root.as_deref()).promptly();
        finder.find(module, image).map(|debug| debug.file)
    }
}
