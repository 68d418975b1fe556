//! Following a process through what it does while it is recorded: it maps code, replaces its program, loses its first thread.

use std::{num::NonZeroU32, sync::Mutex, time::Duration};

use super::{
    attach::{AttachError, Probes},
    children::attach_inherited,
    inherited::Inherited,
    kernel::Kernel,
    recording::{RecordError, Recording, lock},
    sites,
};
use crate::{
    source::memory::Watch,
    target::{
        Process,
        allocator::{self, Findings},
        loader,
        maps::AddressSpace,
        process::{ProcessError, Program, live_threads},
    },
};

/// What became of a process that has replaced its program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// What it runs now.
    pub program: Program,
    /// The names of the allocators that were not probed before. What they gave before they were is not known.
    pub allocators: Vec<String>,
    /// Whether there is nothing to probe, and no loader that would bring it.
    pub has_nothing: bool,
}

impl Recording {
    /// Looks for allocators in what was mapped since, and attaches to those; gives their names.
    ///
    /// What they gave before is not known.
    pub fn attach_to_new(&self) -> Result<Vec<String>, RecordError> {
        let space = self.ask(|table| table.space.clone())?;
        self.attach_to_new_in(&space, false)
    }

    pub(super) fn attach_to_new_in(
        &self,
        space: &AddressSpace,
        has_new_loader: bool,
    ) -> Result<Vec<String>, RecordError> {
        let mut findings = lock(&self.findings);
        let known = findings.allocators.len();
        allocator::find(space, &self.places, &mut findings);
        if findings.allocators.len() == known && !has_new_loader {
            return Ok(Vec::new());
        }
        let labels = findings.labels(space);
        let new = labels.get(known..).unwrap_or_default().to_vec();
        *lock(&self.labels) = labels;
        let kernel = lock(&self.common.kernel);
        if lock(&self.ended).is_none() {
            let mut probes = lock(&self.probes);
            let added = attach_to(
                &kernel,
                self.common.inherited.as_ref(),
                &self.process,
                &findings,
                known,
                has_new_loader.then(|| probes.loaders()),
                space,
            )?;
            probes.extend(added);
            let exe = lock(&self.programs).current.exe.clone();
            for allocator in findings.allocators.iter().skip(known).cloned() {
                let exe = exe.clone();
                self.common.drain.tell(self.process.pid(), move |learner, stacks| {
                    stacks.own_code.add(&allocator, &stacks.space, &exe);
                    learner.teach_ahead(allocator.module, allocator.calls, &mut stacks.space);
                });
            }
        }
        Ok(new)
    }

    /// Goes on with the program that the process has replaced its own by: the probes in the files that both have are in
    /// place already, and counting has not stopped.
    pub fn follow_exec(&self) -> Result<Replaced, RecordError> {
        let program = self.process.program_now()?;
        {
            let mut programs = lock(&self.programs);
            let former = std::mem::replace(&mut programs.current, program.clone());
            programs.former.push(former);
        }
        let space = self.ask(|table| table.space.clone())?;
        let allocators = self.attach_to_new_in(&space, true)?;
        let has_nothing = {
            let findings = lock(&self.findings);
            loader::find(&space).is_none() && !findings.allocators.iter().any(|found| space.has(found.module))
        };
        if lock(&self.ended).is_none() {
            *lock(&self.watch) = Watch::begin_anew(self.process.pid());
            self.make_room()?;
        }
        Ok(Replaced { program, allocators, has_nothing })
    }

    /// Forgets blocks of replaced programs, once they take much of the room that there is.
    fn make_room(&self) -> Result<(), RecordError> {
        let kernel = lock(&self.common.kernel);
        let gone = self.totals(&kernel)?.gone_objects;
        let before = std::mem::replace(&mut *lock(&self.gone), gone);
        self.common.leave_blocks(&kernel, gone.saturating_sub(before))?;
        Ok(())
    }

    /// Attaches once more, through a thread that goes on; gives whether that was needed.
    ///
    /// To be called when the first thread has ended: the kernel took the probes out with it, unless every thread has its own.
    pub fn reattach(&self) -> Result<bool, RecordError> {
        if self.follows_children() {
            return Ok(false);
        }
        let kernel = lock(&self.common.kernel);
        let space = self.ask(|table| table.space.clone())?;
        *lock(&self.probes) =
            attach_to(&kernel, None, &self.process, &lock(&self.findings), 0, Some(&[]), &space)?;
        Ok(true)
    }
}

/// How often to look for a thread through which to attach: while they are looked at, some may end and others begin.
const TRIES: u32 = 100;

/// How long to wait for one that is not to be seen.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Attaches to all but the first `known` allocators, and where the `known_loaders` are given, to the loader unless it is one of
/// them; through `inherited` where children are followed.
pub(super) fn attach_to(
    kernel: &Kernel,
    inherited: Option<&Mutex<Option<Inherited>>>,
    process: &Process,
    findings: &Findings,
    known: usize,
    known_loaders: Option<&[usize]>,
    space: &AddressSpace,
) -> Result<Probes, RecordError> {
    let gone = || ProcessError::Gone { pid: process.pid() };
    let sites = sites::of_allocators(findings.numbered().skip(known), space);
    let loader =
        known_loaders.and_then(|known| sites::of_loader(space).filter(|(loader, _)| !known.contains(loader)));
    if let Some(inherited) = inherited {
        let mut probes = Probes::default();
        attach_inherited(inherited, kernel, &sites, process.pid())?;
        if let Some((loader, site)) = loader {
            probes.add_loader(loader);
            warn_without(attach_inherited(inherited, kernel, &[site], process.pid()));
        }
        return if process.has_ended() { Err(gone().into()) } else { Ok(probes) };
    }
    for _ in 0..TRIES {
        // Its number may be another process's by now.
        if process.has_ended() {
            return Err(gone().into());
        }
        let threads: Vec<_> = live_threads(process.pid()).filter_map(NonZeroU32::new).collect();
        if threads.is_empty() {
            // While one takes the first one's number, to replace the program, none is to be seen.
            std::thread::sleep(LOOK_AGAIN);
        }
        for thread in threads {
            let mut probes = Probes::default();
            match probes.attach(kernel, &sites, thread) {
                Ok(()) if process.has_ended() => return Err(gone().into()),
                Ok(()) => {
                    if let Some((loader, site)) = loader {
                        probes.add_loader(loader);
                        warn_without(probes.attach(kernel, &[site], thread));
                    }
                    return Ok(probes);
                }
                Err(_) if process.has_ended() => return Err(gone().into()),
                // One that is ending takes no probe any more, and is not shown as ended at once.
                Err(error) if error.thread_is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    // What there is of it is ending.
    Err(gone().into())
}

fn warn_without(loader: Result<(), AttachError>) {
    if let Err(error) = loader {
        tracing::warn!(%error, "libraries that are unloaded will not be noticed");
    }
}
