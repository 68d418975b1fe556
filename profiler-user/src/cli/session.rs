//! What `record` and `serve` share: a recording, its end, and profiles of it.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    error::CliError,
    family::{Birth, Router},
    record::say,
};
use crate::{
    causes::with_causes,
    profile::{self, proto},
    source::{
        RawHeap,
        cost::{Cost, Excess},
        uprobe::{Notice, Options, RecordError, Recording, Replaced, Vitals, capture::CaptureError},
    },
    symbolize::{self, Names},
    target::{Process, process::ProcessError},
};

/// A recording, and what was found out about it so far.
pub(super) struct Session {
    recording: Recording,
    names: Mutex<Names>,
    notices: tokio::sync::Mutex<mpsc::UnboundedReceiver<Notice>>,
    symbols: symbolize::Options,
    /// What its messages begin with.
    prefix: String,
}

/// What has become of a process whose first thread has ended.
enum Threads {
    /// The others have ended, too.
    Ended,
    /// Others go on.
    GoOn {
        /// Whether calls of theirs were not seen.
        was_blind: bool,
    },
}

/// How long a process may take to end behind its first thread.
const LAST_GASP: Duration = Duration::from_millis(200);

impl Session {
    /// Attaches to a process and begins to count. What `symbols` has been given is used for all.
    pub(super) fn start(
        process: Process,
        symbols: symbolize::Options,
        options: Options,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Birth>), CliError> {
        let pid = process.pid();
        let options = Options { given: symbols.given.clone(), ..options };
        let names = Mutex::new(Names::new(pid, symbols.clone()));
        let (mut router, notices, births) = Router::new(pid);
        let on_notice = move |pid, notice| router.hand_on(pid, notice);
        let recording = Recording::start(process, options, on_notice).map_err(CliError::record(pid))?;
        let notices = tokio::sync::Mutex::new(notices);
        Ok((Self { recording, names, notices, symbols, prefix: String::new() }, births))
    }

    /// Goes on with a child of the process that `parent` records.
    pub(super) fn child(parent: &Self, birth: Birth) -> Result<Self, CliError> {
        let (forked, notices) = birth.into_parts();
        let pid = forked.pid;
        let recording = parent.recording.child(&forked).map_err(CliError::record(pid))?;
        let symbols = parent.symbols.clone();
        Ok(Self {
            recording,
            names: Mutex::new(Names::new(pid, symbols.clone())),
            notices: tokio::sync::Mutex::new(notices),
            symbols,
            prefix: format!("process {pid}: "),
        })
    }

    fn say(&self, text: &str) {
        say(&format!("{}{text}", self.prefix));
    }

    pub(super) const fn process(&self) -> &Process {
        self.recording.process()
    }

    /// What is probed, in a few words.
    pub(super) fn probed(&self) -> String {
        let probed = self.recording.probed();
        let functions: usize = probed.iter().map(|(_, functions)| functions).sum();
        let mut names: Vec<_> = probed.into_iter().map(|(name, _)| name).collect();
        names.dedup();
        format!("{functions} functions of {}", names.join(" and "))
    }

    /// Says what will be missing from the start, before somebody waits for it.
    pub(super) fn warn_of_the_unprobed(&self) {
        for path in self.recording.unused() {
            say(&format!(
                "{} is of no file that the process has mapped: it has another build id or other code, or no symbols",
                path.display()
            ));
        }
        for path in self.recording.unprobed() {
            say(&format!(
                "{path} has a malloc of its own, which cannot be probed; only what it passes on to others is counted"
            ));
        }
    }

    /// Says what is gated and what is not, where that was asked for.
    pub(super) fn say_how_gated(&self) {
        let removed = self.recording.removed_gates();
        if removed > 0 {
            say(&format!(
                "{} that an earlier heaptap had left taken out first",
                profile::gate::gates(removed)
            ));
        }
        for line in self.recording.gating().iter().flat_map(profile::gate::lines) {
            say(&line);
        }
    }

    /// Says what could not be gated that has come since.
    fn say_what_is_refused(&self) {
        for line in self.recording.newly_refused() {
            self.say(&line);
        }
    }

    /// Whether [`Session::vitals`] may tell something new.
    pub(super) fn may_have_changed(&self) -> bool {
        self.recording.may_have_changed()
    }

    pub(super) fn vitals(&self) -> Result<Vitals, CliError> {
        self.recording.vitals().map_err(CliError::record(self.process().pid()))
    }

    /// Sees to gates that need more room.
    pub(super) fn tend(&self) {
        match self.recording.tend_gates() {
            Ok(0) => {}
            Ok(_) => {
                self.say("more blocks are in the sample than were expected: the gate's table is larger now");
            }
            Err(RecordError::Process(ProcessError::Gone { .. })) => {}
            Err(error) => self.say(&format!(
                "the gate's table stays too small, so that more frees are let through to a probe: {}",
                with_causes(&error)
            )),
        }
    }

    /// What it has cost the process so far; `None` where that is not known, or not yet.
    pub(super) fn cost(&self) -> Option<Cost> {
        self.recording.cost()
    }

    /// Has it cost less. `false` where the only way left is to end it, which is noted for the profile.
    pub(super) fn relieve(&self, excess: Excess) -> bool {
        let Excess { limit_percent, percent } = excess;
        let interval_bytes = self.recording.sample_less().unwrap_or_else(|error| {
            tracing::warn!(%error, "the sampling stays as it is");
            None
        });
        let Some(interval_bytes) = interval_bytes else {
            self.recording.ends_for(excess);
            return false;
        };
        self.say(&format!(
            "it costs {percent:.0} % of a CPU, above --max-overhead {limit_percent}: from now on one allocation is counted for every {interval_bytes} bytes, and the others are estimated"
        ));
        true
    }

    /// Waits until the process has ended; follows it meanwhile, whatever it does.
    pub(super) async fn over(&self) -> Result<(), CliError> {
        let failed = |source| CliError::Runtime { what: "the wait for the process's end", source };
        let Some(pidfd) = self.process().pidfd() else { return Ok(()) };
        // SAFETY: the pidfd stays open for as long as `self` is borrowed, which is longer than this lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let pidfd = pidfd.map_err(|error| failed(error.into()))?;
        let mut notices = self.notices.lock().await;
        let mut put_off = VecDeque::new();
        loop {
            tokio::select! {
                ready = pidfd.readable() => {
                    let mut ready = ready.map_err(failed)?;
                    if self.process().has_ended() {
                        ready.retain_ready();
                        return Ok(());
                    }
                    // It was the moment in which one thread takes another's place.
                    ready.clear_ready();
                }
                Some(notice) = next(&mut put_off, &mut notices) => match notice {
                    Notice::Exec { seen } => {
                        // Of several programs, one after the other, only the last is there to be followed.
                        while let Ok(notice) = notices.try_recv() {
                            put_off.push_back(notice);
                        }
                        put_off.retain(|notice| !matches!(notice, Notice::Exec { .. }));
                        self.follow_exec(seen);
                    }
                    Notice::CodeAdded => self.attach_to_new(),
                    Notice::ChildMade => self.recording.free_children(),
                    // It has been heard of elsewhere.
                    Notice::Forked(_) => {}
                    Notice::LeaderExit { seen } => {
                        let Threads::GoOn { was_blind } = self.follow_threads()? else { return Ok(()) };
                        let blind = seen.elapsed();
                        // When a process ends, its first thread ends as well, if not always as the last.
                        if tokio::time::timeout(LAST_GASP, pidfd.readable()).await.is_err() {
                            let mut said = "the first thread has ended, others go on".to_owned();
                            if was_blind {
                                self.recording.was_blind_for(blind);
                                said += &format!("; calls were not seen for {} ms", blind.as_millis() + 1);
                            }
                            self.say(&said);
                        }
                    }
                },
            }
        }
    }

    /// Attaches to allocators in what was mapped since.
    fn attach_to_new(&self) {
        match self.recording.attach_to_new() {
            Ok(names) => {
                self.say_what_is_refused();
                for name in names {
                    self.say(&format!("{name} was loaded; what it gives is counted from now on"));
                }
            }
            Err(RecordError::Process(ProcessError::Gone { .. })) => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "an allocator that was loaded is not probed");
            }
        }
    }

    /// Goes on with the program that the process runs now.
    fn follow_exec(&self, seen: Instant) {
        match self.recording.follow_exec() {
            Ok(Replaced { program, allocators, has_nothing, was_blind }) => {
                self.say_what_is_refused();
                self.say(&format!(
                    "the process has replaced its program (exec) by {}; what the old one had is gone with it",
                    program.exe.display()
                ));
                if !allocators.is_empty() {
                    let blind = seen.elapsed();
                    self.recording.was_blind_for(blind);
                    let (names, blind_ms) = (allocators.join(" and "), blind.as_millis() + 1);
                    self.say(&format!(
                        "{names} is counted from now on; its calls were not seen for {blind_ms} ms"
                    ));
                } else if was_blind {
                    let blind = seen.elapsed();
                    self.recording.was_blind_for(blind);
                    let blind_ms = blind.as_millis() + 1;
                    self.say(&format!("its calls were not seen for {blind_ms} ms"));
                } else if has_nothing {
                    self.say("the new program has no allocator that heaptap knows: nothing of it is counted");
                }
            }
            Err(RecordError::Process(ProcessError::Gone { .. })) => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the new program's own allocators are not probed");
            }
        }
    }

    /// The kernel takes a process's probes out when its first thread ends: puts them in again, unless
    /// the process has ended as a whole.
    fn follow_threads(&self) -> Result<Threads, CliError> {
        match self.recording.reattach() {
            Ok(was_blind) => Ok(Threads::GoOn { was_blind }),
            // Every thread is ending, which the kernel shows of the process only when the last one has.
            Err(RecordError::Process(ProcessError::Gone { .. })) => Ok(Threads::Ended),
            Err(_) if self.process().has_ended() => Ok(Threads::Ended),
            Err(error) => Err(CliError::record(self.process().pid())(error)),
        }
    }

    /// Stops counting. The numbers stay.
    pub(super) fn stop(&self) -> Result<(), CaptureError> {
        self.recording.stop()
    }

    /// Waits until everything has been noted that has happened.
    pub(super) fn settle(&self) {
        self.recording.settle();
    }

    /// Begins to take the probes out of all processes, where children are followed.
    pub(super) fn release(&self) {
        self.recording.release();
    }

    /// Ends what `stop` leaves where children are followed.
    pub(super) fn finish(&self) -> Result<(), CaptureError> {
        self.recording.finish()
    }

    /// Makes room for others: the process has ended, and its profile was written.
    pub(super) fn discard(&self) -> Result<(), CliError> {
        self.recording.discard().map_err(CliError::record(self.process().pid()))
    }

    /// What was counted so far, as a profile. Takes its time: files are read for names.
    pub(super) fn profile(&self) -> Result<(RawHeap, proto::Profile), CliError> {
        let heap = self.recording.snapshot().map_err(CliError::record(self.process().pid()))?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.resolve(&heap);
        let profile = profile::heap::profile(&heap, &names)?;
        Ok((heap, profile))
    }
}

/// The next notice: one that was put off, or one to come.
async fn next(
    put_off: &mut VecDeque<Notice>,
    notices: &mut mpsc::UnboundedReceiver<Notice>,
) -> Option<Notice> {
    match put_off.pop_front() {
        Some(notice) => Some(notice),
        None => notices.recv().await,
    }
}

/// The signals that ask a command to finish.
pub(super) struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    /// From here on these signals no longer end heaptap by themselves.
    pub(super) fn listen() -> Result<Self, CliError> {
        let failed = |source: io::Error| CliError::Runtime { what: "signal handling", source };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Waits for the next of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// From here on these signals end heaptap by themselves again.
    pub(super) fn let_next_one_kill(self) {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the default action runs no code of ours.
            if let Err(error) = unsafe { sigaction(signal, &default) } {
                tracing::warn!(%error, "a second {signal} will not stop heaptap");
            }
        }
    }
}

/// The runtime for signals, timers and sockets.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| CliError::Runtime { what: "the event loop", source })
}
