//! Following a process through what it does while it is recorded: it maps code, replaces its program, loses its first thread.

use std::{
    num::NonZeroU32,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{
    attach::{AttachError, Probes},
    children::attach_inherited,
    gates::Gates,
    inherited::Inherited,
    intact,
    kernel::Kernel,
    recording::{RecordError, Recording, lock},
    sites::{self, Part, Site},
};
use crate::{
    source::memory::Watch,
    target::{
        Process,
        allocator::{self, Allocator, Findings},
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
    /// Whether calls of those that were probed before were not seen for a while.
    pub was_blind: bool,
    /// Whether there is nothing to probe, and no loader that would bring it.
    pub has_nothing: bool,
}

impl Recording {
    /// Looks for allocators in what was mapped since, and attaches to those; gives their names.
    ///
    /// What they gave before is not known.
    pub fn attach_to_new(&self) -> Result<Vec<String>, RecordError> {
        let space = self.ask(|table| table.space.clone())?;
        if *lock(&self.has_lost_leader) {
            // Where the first thread has ended, the kernel no longer finds the process's memory by it: a file that is mapped anew
            // has no probes.
            let began = Instant::now();
            self.attach_anew(&space)?;
            self.was_blind_for(began.elapsed());
        }
        let again = self.gates_unloaded(&space);
        let new = self.attach_to_new_in(&space, false, &again)?;
        let labels = lock(&self.labels);
        let again = again.iter().filter(|place| !self.is_left_out(**place));
        Ok(again.filter_map(|place| labels.get(*place).cloned()).chain(new).collect())
    }

    /// Attaches to those as well that are to be attached to `again`, by their places.
    pub(super) fn attach_to_new_in(
        &self,
        space: &AddressSpace,
        has_new_loader: bool,
        again: &[usize],
    ) -> Result<Vec<String>, RecordError> {
        let mut findings = lock(&self.findings);
        let known = findings.allocators.len();
        allocator::find(space, &self.places, &mut findings);
        if findings.allocators.len() == known && !has_new_loader && again.is_empty() {
            return Ok(Vec::new());
        }
        let labels = findings.labels(space);
        lock(&self.labels).clone_from(&labels);
        let kernel = lock(&self.common.kernel);
        if lock(&self.ended).is_none() {
            let mut probes = lock(&self.probes);
            let loaders = probes.loaders().to_vec();
            let places: Vec<usize> = again.iter().copied().chain(known..findings.allocators.len()).collect();
            let known_loaders = has_new_loader.then_some(loaders.as_slice());
            probes.extend(self.attach_to_places(&kernel, &findings, &places, known_loaders, space)?);
            let exe = lock(&self.programs).current.exe.clone();
            for allocator in findings.allocators.iter().skip(known).cloned() {
                let exe = exe.clone();
                self.common.drain.tell(self.process.pid(), move |learner, stacks| {
                    stacks.own_code.add(&allocator, &stacks.space, &exe);
                    learner.teach_ahead(allocator.module, allocator.calls, &mut stacks.space);
                });
            }
        }
        let new = labels.into_iter().enumerate().skip(known);
        Ok(new.filter(|(place, _)| !self.is_left_out(*place)).map(|(_, label)| label).collect())
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
        let was_blind = *lock(&self.has_lost_leader) || lock(&self.gates).is_some();
        if *lock(&self.has_lost_leader) {
            // Another thread has taken the place of the one that the probes were attached for.
            self.attach_anew(&space)?;
        }
        // What goes through a gate has no probes besides.
        let gated = self.gates_have_gone();
        let allocators = self.attach_to_new_in(&space, true, &gated)?;
        let has_nothing = {
            let findings = lock(&self.findings);
            loader::find(&space).is_none() && !findings.allocators.iter().any(|found| space.has(found.module))
        };
        if lock(&self.ended).is_none() {
            *lock(&self.watch) = Watch::begin_anew(self.process.pid());
            self.make_room()?;
        }
        Ok(Replaced { program, allocators, has_nothing, was_blind })
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
    /// To be called when the first thread has ended: the kernel took the probes out with it, unless every thread has its own, or they
    /// are for the process as a whole.
    pub fn reattach(&self) -> Result<bool, RecordError> {
        if self.follows_children() {
            return Ok(false);
        }
        if !lock(&self.probes).places().is_empty() {
            *lock(&self.has_lost_leader) = true;
            return Ok(false);
        }
        let space = self.ask(|table| table.space.clone())?;
        self.attach_anew(&space)?;
        Ok(true)
    }

    /// Takes all probes out and puts them in again, in the way that is right for the process as it is now.
    fn attach_anew(&self, space: &AddressSpace) -> Result<(), RecordError> {
        let kernel = lock(&self.common.kernel);
        let mut probes = lock(&self.probes);
        let former = std::mem::take(&mut *probes);
        if former.places().is_empty() {
            // They are out already, and only take long to be forgotten.
            self.common.detach(former);
        } else {
            if !has_leader(self.process.pid()) {
                kernel.load_single()?;
            }
            // A call must not be seen twice.
            drop(former);
        }
        let findings = lock(&self.findings);
        let gates = lock(&self.gates);
        let gated: Vec<usize> = gates.iter().flat_map(Gates::allocators).collect();
        let ungated: Vec<usize> =
            (0..findings.allocators.len()).filter(|place| !gated.contains(place)).collect();
        let wanted = Wanted {
            gates: gates.as_ref().map(Gates::sites).unwrap_or_default(),
            known_loaders: Some(&[]),
            ..Wanted::of(&findings, &ungated, Part::All).and(&findings, &gated, Part::Beside)
        };
        *probes = attach_to(&kernel, None, &self.process, &wanted, space)?;
        *lock(&self.has_lost_leader) = false;
        Ok(())
    }
}

/// How often to look for a thread through which to attach: while they are looked at, some may end and others begin.
const TRIES: u32 = 100;

/// How long to wait for one that is not to be seen.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is to be attached to.
#[derive(Default)]
pub(super) struct Wanted<'found> {
    /// Allocators, with their numbers, and which of their functions.
    pub(super) allocators: Vec<(u8, &'found Allocator, Part)>,
    /// Where programs are to run in gates.
    pub(super) gates: Vec<Site>,
    /// The loader as well, unless it is one of these; `None` for no loader.
    pub(super) known_loaders: Option<&'found [usize]>,
}

impl<'found> Wanted<'found> {
    /// A part of those of the allocators that were found which stand at these places.
    pub(super) fn of(findings: &'found Findings, places: &[usize], part: Part) -> Self {
        Self::default().and(findings, places, part)
    }

    /// The same besides.
    pub(super) fn and(mut self, findings: &'found Findings, places: &[usize], part: Part) -> Self {
        let found = findings.numbered().enumerate().filter(|(place, _)| places.contains(place));
        self.allocators.extend(found.map(|(_, (number, allocator))| (number, allocator, part)));
        self
    }
}

/// Attaches to what is wanted; through `inherited` where children are followed.
pub(super) fn attach_to(
    kernel: &Kernel,
    inherited: Option<&Mutex<Option<Inherited>>>,
    process: &Process,
    wanted: &Wanted<'_>,
    space: &AddressSpace,
) -> Result<Probes, RecordError> {
    let gone = || ProcessError::Gone { pid: process.pid() };
    intact::check(process, &wanted.allocators, space)?;
    let loader = wanted
        .known_loaders
        .and_then(|known| sites::of_loader(space).filter(|(loader, _)| !known.contains(loader)));
    let sites = |has_calls| {
        let mut sites = sites::of_allocators(&wanted.allocators, space, has_calls);
        sites.extend(wanted.gates.iter().cloned());
        sites
    };
    if let Some(multi) = kernel.multi()
        && has_leader(process.pid())
    {
        let mut probes = Probes::default();
        let attached = probes.attach_at_once(multi, &sites(multi.has_sessions()), process.pid());
        if let (Ok(()), Some((loader, site))) = (&attached, &loader) {
            probes.add_loader(*loader);
            warn_without(probes.attach_at_once(multi, std::slice::from_ref(site), process.pid()));
        }
        match attached {
            Ok(()) if process.has_ended() => return Err(gone().into()),
            // Had it ended before, the kernel may have put them nowhere.
            Ok(()) if has_leader(process.pid()) => return Ok(probes),
            Err(error) if !error.thread_is_gone() => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    let sites = sites(false);
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

/// Whether a process's first thread is alive.
fn has_leader(pid: u32) -> bool {
    live_threads(pid).any(|thread| thread == pid)
}

fn warn_without(loader: Result<(), AttachError>) {
    if let Err(error) = loader {
        tracing::warn!(%error, "libraries that are unloaded will not be noticed");
    }
}
