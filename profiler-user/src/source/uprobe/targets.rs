//! Which processes the kernel side watches.

use aya::maps::{Array, HashMap, MapData};
use profiler_common::target::{Home, Target};

use super::kernel::{KernelError, map_refused};

/// The maps that say which processes are watched.
pub(super) struct Targets {
    /// The first one; it stays the one whose place this is.
    pub(super) home: Array<MapData, Home>,
    pub(super) others: HashMap<MapData, u32, Target>,
}

impl Targets {
    /// Begins to watch a process, of whose stacks `depth` frames are kept; with `is_witnessed` each new one is sent with
    /// the memory that it was walked in.
    ///
    /// With `follows` the kernel side adds its children.
    pub(super) fn insert(
        &mut self,
        pid: u32,
        depth: u32,
        is_witnessed: bool,
        follows: bool,
    ) -> Result<(), KernelError> {
        let target =
            Target { depth, is_witnessed: is_witnessed.into(), follows: follows.into(), ..Target::default() };
        if self.home().tgid != 0 {
            return self.others.insert(pid, target, 0).map_err(map_refused("TARGETS"));
        }
        // Whose it is comes when the rest is there, for the programs read it meanwhile.
        for tgid in [0, pid] {
            let home = Home { target, tgid, nothing: 0 };
            self.home.set(0, home, 0).map_err(map_refused("HOME"))?;
        }
        Ok(())
    }

    /// How often a process has replaced its program; `None` where it is not watched.
    pub(super) fn image(&self, pid: u32) -> Option<u32> {
        let Home { target, tgid, .. } = self.home();
        if tgid == pid {
            return Some(target.image);
        }
        self.others.get(&pid, 0).ok().map(|target| target.image)
    }

    /// Watches a process no longer; gives how often it has replaced its program, if it was watched.
    pub(super) fn remove(&mut self, pid: u32) -> Option<u32> {
        let image = self.image(pid);
        if self.home().tgid == pid {
            // Failing is not possible where there is such a value.
            let _ = self.home.set(0, Home::default(), 0);
        } else {
            // Failing means that it is not watched.
            let _ = self.others.remove(&pid);
        }
        image
    }

    fn home(&self) -> Home {
        // Failing is not possible where there is such a value.
        self.home.get(&0, 0).unwrap_or_default()
    }
}
