//! Following a process into the children that it makes: each has a recording of its own, by the same means.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Instant, SystemTime},
};

use profiler_common::heap::OVERFLOW_STACK;

use super::{
    attach::{AttachError, Probes},
    capture::CaptureError,
    drain::Drain,
    inherited::Inherited,
    kernel::{Kernel, KernelError},
    left_behind::LeftBehind,
    recording::{Programs, RecordError, Recording, lock},
    targets::Targets,
    totals::Read,
    watched::Forked,
};
use crate::{
    source::memory::Watch,
    target::{Process, container, cpu_time::Activity},
};

/// What the recordings of a process and of its descendants share. Dropping it takes everything out of the kernel.
pub(super) struct Common {
    pub(super) drain: Drain,
    pub(super) kernel: Mutex<Kernel>,
    pub(super) targets: Arc<Mutex<Targets>>,
    /// Where children are followed, the probes that they inherit, until those are taken out.
    pub(super) inherited: Option<Mutex<Option<Inherited>>>,
    /// The threads that take probes out at the end.
    detaching: Mutex<Vec<JoinHandle<()>>>,
    /// What frees children of breakpoints that are not followed.
    pub(super) left_behind: LeftBehind,
    /// Live blocks that are followed.
    pub(super) live_blocks: u32,
    /// Blocks that nobody has any more and that may take room still.
    left_blocks: AtomicU64,
}

/// Blocks that nobody has may take one part in so many of the room: to go through all of it takes 20 ms and more.
const SHARE_OF_THE_GONE: u64 = 16;

impl Common {
    pub(super) fn new(
        kernel: Kernel,
        targets: Arc<Mutex<Targets>>,
        drain: Drain,
        inherited: Option<Mutex<Option<Inherited>>>,
        live_blocks: u32,
    ) -> Self {
        Self {
            drain,
            kernel: Mutex::new(kernel),
            targets,
            inherited,
            detaching: Mutex::default(),
            left_behind: LeftBehind::default(),
            live_blocks,
            left_blocks: AtomicU64::new(0),
        }
    }

    /// Takes probes out, by a thread of its own: it takes seconds, in which the numbers can be looked at.
    pub(super) fn detach<P: Send + 'static>(&self, probes: P) {
        let thread = std::thread::Builder::new().name("heaptap-detach".to_owned());
        if let Ok(thread) = thread.spawn(move || drop(probes)) {
            lock(&self.detaching).push(thread);
        }
    }

    /// Notes blocks that nobody has any more, and forgets them once they take much of the room that there is.
    pub(super) fn leave_blocks(&self, kernel: &Kernel, blocks: u64) -> Result<(), KernelError> {
        let left = self.left_blocks.fetch_add(blocks, Ordering::Relaxed) + blocks;
        if left > u64::from(self.live_blocks) / SHARE_OF_THE_GONE {
            kernel.sweep()?;
            self.left_blocks.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Common {
    fn drop(&mut self) {
        for thread in lock(&self.detaching).drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread that takes the probes out failed");
            }
        }
    }
}

impl Recording {
    /// Whether the children of the process are followed.
    pub fn follows_children(&self) -> bool {
        self.common.inherited.is_some()
    }

    /// Frees children of the process, which are not followed, of the breakpoints that they have from it.
    pub fn free_children(&self) {
        let multi = lock(&self.common.kernel).multi().map(Arc::clone);
        if let (Some(multi), None) = (multi, *lock(&self.ended)) {
            self.common.left_behind.free(&multi, lock(&self.probes).places().clone());
        }
    }

    /// The recording of a child of the process, which has counted from the child's first instruction on. The child may have
    /// ended.
    ///
    /// `self` may as well be the recording of another relative, where the parent's is gone.
    pub fn child(&self, forked: &Forked) -> Result<Self, RecordError> {
        let Forked { pid, parent, is_empty, .. } = *forked;
        let program = lock(&self.programs).current.clone();
        let process = Process::open(pid).unwrap_or_else(|error| {
            tracing::debug!(pid, %error, "the child cannot be looked at");
            Process::ended(pid, program.clone())
        });
        let current = if process.has_ended() { program } else { process.program().clone() };
        let child = Self {
            programs: Mutex::new(Programs { former: Vec::new(), current }),
            labels: Mutex::new(lock(&self.labels).clone()),
            findings: Mutex::new(lock(&self.findings).clone()),
            places: self.places.clone(),
            probes: Mutex::new(Probes::default()),
            has_lost_leader: Mutex::default(),
            started: SystemTime::now(),
            began: Instant::now(),
            ended: Mutex::default(),
            last_image: Mutex::default(),
            blind: Mutex::default(),
            container: container::of(pid),
            watch: Mutex::new(Watch::begin(pid)),
            gone: Mutex::default(),
            parent: Some(parent),
            stays_exact: self.stays_exact,
            activity: Mutex::new(Activity::of(pid)),
            // The first process's is of all.
            meter: None,
            gates: Mutex::new(lock(&self.gates).as_ref().map(|gates| gates.of_child(pid))),
            removed_gates: 0,
            common: Arc::clone(&self.common),
            process,
        };
        match child.begin(is_empty) {
            Ok(()) => {}
            Err(_) if child.process.has_ended() => {}
            Err(error) => return Err(error),
        }
        Ok(child)
    }

    /// Has the child probed where it may not be yet.
    fn begin(&self, is_empty: bool) -> Result<(), RecordError> {
        if self.process.has_ended() {
            return Ok(());
        }
        if let Some(inherited) = &self.common.inherited
            && let Some(inherited) = &mut *lock(inherited)
            && inherited.needs_own()
        {
            inherited.attach_own(self.process.pid())?;
        }
        // Its parent may have loaded something just before; a program of its own may have an allocator that nobody knows.
        let space = self.ask(|table| table.space.clone())?;
        self.attach_to_new_in(&space, is_empty, &[])?;
        Ok(())
    }

    /// Forgets what was counted, to make room for others: of a child that has ended, and whose heap was read.
    pub fn discard(&self) -> Result<(), RecordError> {
        let pid = self.process.pid();
        let mut kernel = lock(&self.common.kernel);
        let Read { entries, gone_objects } = self.totals(&kernel)?;
        let inuse = |totals: u64, freed: u64| totals.saturating_sub(freed);
        let left = entries
            .iter()
            .map(|(_, totals)| inuse(totals.alloc_objects, totals.freed_objects))
            .fold(gone_objects, u64::saturating_add);
        self.common.leave_blocks(&kernel, left)?;
        for (key, _) in entries {
            let map = if key.stack == OVERFLOW_STACK { &mut kernel.overflows } else { &mut kernel.totals };
            // Failing means that there is none.
            let _ = map.remove(&key);
        }
        // The same.
        let _ = kernel.counters.remove(&pid);
        drop(kernel);
        self.common.drain.forget(pid);
        if let Some(inherited) = &self.common.inherited
            && let Some(inherited) = &mut *lock(inherited)
        {
            inherited.close(pid);
        }
        Ok(())
    }

    /// Waits until everything has been noted that has happened.
    pub fn settle(&self) {
        // Failing means that there will be no more notices.
        let _ = self.ask(|_| ());
    }

    /// Begins to take the probes out of all processes, where children are followed.
    pub fn release(&self) {
        if let Some(meter) = &self.meter {
            meter.stop();
        }
        if let Some(inherited) = &self.common.inherited
            && let Some(inherited) = lock(inherited).take()
        {
            self.common.detach(inherited);
        }
    }

    /// Reads the ring buffer to its end, which `stop` has left undone where children are followed. The numbers stay readable.
    ///
    /// # Errors
    ///
    /// As [`Recording::stop`].
    pub fn finish(&self) -> Result<(), CaptureError> {
        self.common.drain.finish()
    }
}

/// Opens the probes for a process and its children to come.
pub(super) fn attach_inherited(
    inherited: &Mutex<Option<Inherited>>,
    kernel: &Kernel,
    sites: &[super::sites::Site],
    pid: u32,
) -> Result<(), AttachError> {
    match &mut *lock(inherited) {
        Some(inherited) => inherited.attach(kernel, sites, pid),
        // They are being taken out.
        None => Ok(()),
    }
}
