//! Attaching the programs to an allocator's functions, and to nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
};
use nix::errno::Errno;

use super::{
    inherited::InheritedError,
    kernel::{Kernel, KernelError},
    letting_go::let_go,
    multi::{Multi, NOTHING},
    sites::Site,
    tracefs::TracefsError,
};
use crate::causes::causes;

/// Why probes could not be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The kernel side is not in order.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Probes that are inherited cannot be defined.
    #[error("cannot follow child processes")]
    Tracefs(#[from] TracefsError),
    /// The kernel refused one that is inherited.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The kernel refused a probe.
    #[error("cannot attach to `{function}` at offset {offset:#x} of {path}")]
    Probe {
        /// The function.
        function: String,
        /// The probe's offset in the file, in bytes.
        offset: u64,
        /// The file.
        path: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel refused the probes of a file.
    #[error("cannot attach to {functions} in {path}")]
    Probes {
        /// The functions.
        functions: String,
        /// The file.
        path: String,
        /// What the kernel said.
        #[source]
        source: Box<KernelError>,
    },
}

impl AttachError {
    /// Whether the thread through which was to be attached is no longer there.
    pub(super) fn thread_is_gone(&self) -> bool {
        if !matches!(self, Self::Probe { .. } | Self::Probes { .. } | Self::Inherited(_)) {
            return false;
        }
        causes(self).any(|error| {
            let error = error.downcast_ref::<io::Error>();
            error.and_then(io::Error::raw_os_error) == Some(Errno::ESRCH as i32)
        })
    }
}

/// What keeps probes in until it is dropped.
pub(super) type Link = Box<dyn Send>;

/// Probes that are in. Dropping them takes them out: those of a file at once, where they have one link, else one after the other,
/// which takes the kernel a tenth of a second each.
#[derive(Default)]
pub(super) struct Probes {
    links: Vec<Link>,
    /// The places of those that are in for the process as a whole, by their files.
    places: BTreeMap<PathBuf, Vec<u64>>,
    /// The loaders that they are in, as modules.
    loaders: Vec<usize>,
}

impl Probes {
    /// Adds others.
    pub(super) fn extend(&mut self, mut others: Self) {
        self.links.append(&mut others.links);
        for (path, mut offsets) in std::mem::take(&mut others.places) {
            self.places.entry(path).or_default().append(&mut offsets);
        }
        self.loaders.append(&mut others.loaders);
    }

    /// Notes that they are in a loader, as a module.
    pub(super) fn add_loader(&mut self, loader: usize) {
        self.loaders.push(loader);
    }

    /// The loaders that they are in, as modules.
    pub(super) fn loaders(&self) -> &[usize] {
        &self.loaders
    }

    /// The places of those that are in for the process as a whole, by their files: whichever of its threads ends, they stay.
    pub(super) const fn places(&self) -> &BTreeMap<PathBuf, Vec<u64>> {
        &self.places
    }

    /// Attaches to these sites for the process `pid`, whose first thread must be alive.
    ///
    /// Nothing counts before the process has its entry in `TARGETS`, so that the order does not matter.
    pub(super) fn attach_at_once(
        &mut self,
        multi: &Multi,
        sites: &[Site],
        pid: u32,
    ) -> Result<(), AttachError> {
        let mut by_link: BTreeMap<(&str, &Path), Vec<&Site>> = BTreeMap::new();
        for site in sites {
            by_link.entry((site.program, &site.held_path)).or_default().push(site);
        }
        for ((_, path), sites) in by_link {
            let Some(Site { program, path: name, .. }) = sites.first() else { continue };
            let places: Vec<(u64, u64)> = sites.iter().map(|site| (site.offset, site.cookie)).collect();
            let link = multi.link(program, path, &places, pid).map_err(|source| {
                let functions: Vec<&str> = sites.iter().map(|site| site.function.as_str()).collect();
                let functions = functions.join(", ");
                AttachError::Probes { functions, path: name.clone(), source: Box::new(source) }
            })?;
            self.links.push(Box::new(link));
            let offsets = self.places.entry(path.to_owned()).or_default();
            offsets.extend(sites.iter().map(|site| site.offset));
        }
        Ok(())
    }

    /// Attaches a program that does nothing to these places, by their files, for heaptap itself.
    pub(super) fn pass_by(
        &mut self,
        multi: &Multi,
        places: &BTreeMap<PathBuf, Vec<u64>>,
    ) -> Result<(), KernelError> {
        for (path, offsets) in places {
            let places: BTreeSet<(u64, u64)> = offsets.iter().map(|offset| (*offset, 0)).collect();
            let places: Vec<(u64, u64)> = places.into_iter().collect();
            let link = multi.link(NOTHING, path, &places, std::process::id())?;
            self.links.push(Box::new(link));
        }
        Ok(())
    }

    /// Attaches to these sites one by one for the process that `thread` belongs to; the kernel takes the probes out when that ends.
    ///
    /// Nothing counts before the process has its entry in `TARGETS`, so that the order does not matter.
    pub(super) fn attach(
        &mut self,
        kernel: &Kernel,
        sites: &[Site],
        thread: NonZeroU32,
    ) -> Result<(), AttachError> {
        let mut programs = kernel.programs();
        for Site { program, cookie, function, path, held_path, offset } in sites {
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(*offset),
                cookie: Some(*cookie),
            };
            let program = programs.uprobe(program)?;
            let link = program
                .attach(point, held_path, UProbeScope::OneProcess(thread))
                .and_then(|link| program.take_link(link))
                .map_err(|source| AttachError::Probe {
                    function: function.clone(),
                    offset: *offset,
                    path: path.clone(),
                    source: Box::new(source),
                })?;
            self.links.push(Box::new(link));
        }
        Ok(())
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let links = std::mem::take(&mut self.links);
        if !links.is_empty() {
            let_go(links);
        }
    }
}
