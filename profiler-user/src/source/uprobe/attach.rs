//! Attaching the programs to an allocator's functions, and to nothing else.

use std::{io, num::NonZeroU32};

use aya::programs::{
    ProgramError,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};
use nix::errno::Errno;

use super::{
    inherited::InheritedError,
    kernel::{Kernel, KernelError},
    sites::Site,
    tracefs::TracefsError,
};

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
}

impl AttachError {
    /// Whether the thread through which was to be attached is no longer there.
    pub(super) fn thread_is_gone(&self) -> bool {
        if !matches!(self, Self::Probe { .. } | Self::Inherited(_)) {
            return false;
        }
        let mut causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        causes.any(|error| {
            let error = error.downcast_ref::<io::Error>();
            error.and_then(io::Error::raw_os_error) == Some(Errno::ESRCH as i32)
        })
    }
}

/// Probes that are in. Dropping them takes them out, which takes the kernel a tenth of a second each.
#[derive(Default)]
pub(super) struct Probes {
    links: Vec<UProbeLink>,
    /// The loaders that they are in, as modules.
    loaders: Vec<usize>,
}

impl Probes {
    /// Adds others.
    pub(super) fn extend(&mut self, others: Self) {
        self.links.extend(others.links);
        self.loaders.extend(others.loaders);
    }

    /// Notes that they are in a loader, as a module.
    pub(super) fn add_loader(&mut self, loader: usize) {
        self.loaders.push(loader);
    }

    /// The loaders that they are in, as modules.
    pub(super) fn loaders(&self) -> &[usize] {
        &self.loaders
    }

    /// Attaches to these sites for the process that `thread` belongs to.
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
            self.links.push(link);
        }
        Ok(())
    }
}
