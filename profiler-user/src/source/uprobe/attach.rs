//! Attaching the programs to an allocator's functions, and to nothing else.

use std::{io, num::NonZeroU32, path::PathBuf};

use aya::programs::{
    ProgramError, UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};
use nix::errno::Errno;
use profiler_common::{call::Shape, counters::Counter};

use super::kernel::{Kernel, KernelError, refused};
use crate::target::{
    allocator::Allocator,
    hooks::{Back, Hook},
    loader,
    maps::{AddressSpace, Module},
};

/// Why probes could not be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The kernel side is not in order.
    #[error(transparent)]
    Kernel(#[from] KernelError),
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
        let Self::Probe { source, .. } = self else { return false };
        let mut causes =
            std::iter::successors(Some(&**source as &dyn std::error::Error), |error| error.source());
        causes.any(|error| {
            let error = error.downcast_ref::<io::Error>();
            error.and_then(io::Error::raw_os_error) == Some(Errno::ESRCH as i32)
        })
    }
}

/// Probes that are in. Dropping them takes them out, which takes the kernel a tenth of a second each.
#[derive(Default)]
pub(super) struct Probes(Vec<UProbeLink>);

impl Probes {
    /// Adds others.
    pub(super) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

/// Attaches to every function of these allocators, each with its number, which were found in `space`, for the process that `thread` belongs to.
///
/// Nothing counts before the process has its entry in `TARGETS`, so that the order does not matter.
pub(super) fn attach<'found>(
    kernel: &Kernel,
    allocators: impl Iterator<Item = (u8, &'found Allocator)>,
    space: &AddressSpace,
    thread: NonZeroU32,
) -> Result<Probes, AttachError> {
    let mut programs = kernel.programs();
    let mut probes = Probes::default();
    let scope = UProbeScope::OneProcess(thread);
    for (number, allocator) in allocators {
        // An allocator was found by reading this file, so that it is held.
        let Some(module) = space.modules().get(allocator.module) else { continue };
        for hook in &allocator.hooks {
            let Some(convention) = hook.shape.convention() else {
                let (name, cookie) = match hook.shape {
                    Shape::Destroy => ("loss_enter", Counter::DestroyedHeaps as u64),
                    Shape::Unsized => ("loss_enter", Counter::UnsizedAllocations as u64),
                    _ => ("free_enter", 0),
                };
                probes.0.push(probe(programs.uprobe(name)?, module, hook, hook.site.offset, cookie, scope)?);
                continue;
            };
            let mut cookie = convention.of_allocator(number);
            match &hook.back {
                Back::Rets(offsets) => {
                    cookie = cookie.by_ret();
                    for &offset in offsets {
                        let program = programs.uprobe("alloc_ret")?;
                        probes.0.push(probe(program, module, hook, offset, 0, scope)?);
                    }
                }
                // Such functions do not throw, so that a hijacked return address is safe here.
                Back::ReturnProbe | Back::Unseen => {
                    let program = programs.uprobe("alloc_return")?;
                    probes.0.push(probe(program, module, hook, hook.site.offset, 0, scope)?);
                }
            }
            let program = programs.uprobe("alloc_enter")?;
            probes.0.push(probe(program, module, hook, hook.site.offset, cookie.cookie(), scope)?);
        }
    }
    Ok(probes)
}

/// Attaches to the ends of threads and to programs being replaced, of every process: the programs pick.
pub(super) fn attach_lifecycle(kernel: &Kernel) -> Result<(), KernelError> {
    let mut programs = kernel.programs();
    for (name, tracepoint) in [("thread_exit", "sched_process_exit"), ("process_exec", "sched_process_exec")]
    {
        programs.tracepoint(name)?.attach(tracepoint).map_err(|source| refused(name, source))?;
    }
    Ok(())
}

/// Attaches to the function that the loader calls around every change of what is mapped, so that what was learned of
/// unmapped code is forgotten in time. Does nothing where there is no such loader.
pub(super) fn attach_loader(
    kernel: &Kernel,
    probes: &mut Probes,
    space: &AddressSpace,
    thread: NonZeroU32,
) -> Result<(), AttachError> {
    let Some(loader) = loader::find(space) else { return Ok(()) };
    let Some(path) = space.modules().get(loader.module).and_then(Module::held_path) else { return Ok(()) };
    let point = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(loader.announcement_offset),
        cookie: Some(loader.state_address),
    };
    let mut programs = kernel.programs();
    let program = programs.uprobe("loader_change")?;
    let link = program
        .attach(point, &path, UProbeScope::OneProcess(thread))
        .and_then(|link| program.take_link(link))
        .map_err(|source| AttachError::Probe {
            function: loader::ANNOUNCEMENT.to_owned(),
            offset: loader.announcement_offset,
            path: path.display().to_string(),
            source: Box::new(source),
        })?;
    probes.0.push(link);
    Ok(())
}

fn probe(
    program: &mut UProbe,
    module: &Module,
    hook: &Hook,
    offset: u64,
    cookie: u64,
    scope: UProbeScope,
) -> Result<UProbeLink, AttachError> {
    let point =
        UProbeAttachPoint { location: UProbeAttachLocation::AbsoluteOffset(offset), cookie: Some(cookie) };
    let path = module.held_path().unwrap_or_else(|| PathBuf::from(&module.path));
    program.attach(point, path, scope).and_then(|link| program.take_link(link)).map_err(|source| {
        AttachError::Probe {
            function: hook.names.join(", "),
            offset,
            path: module.path.clone(),
            source: Box::new(source),
        }
    })
}
