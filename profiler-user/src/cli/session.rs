//! What `record` and `serve` share: a recording, its end, and profiles of it.

use std::{
    io,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{error::CliError, record::say};
use crate::{
    profile::{self, proto},
    source::{
        RawHeap,
        uprobe::{
            Capacities, Notice, RecordError, Recording, Vitals,
            capture::{Capture, CaptureError},
        },
    },
    symbolize::{self, Names},
    target::{Process, process::ProcessError},
};

/// A recording, and what was found out about it so far.
pub(super) struct Session {
    recording: Recording,
    names: Mutex<Names>,
    notices: tokio::sync::Mutex<mpsc::UnboundedReceiver<Notice>>,
}

/// How long a process may take to end behind its first thread.
const LAST_GASP: Duration = Duration::from_millis(200);

/// Why a recording is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Somebody asked.
    Signal,
    /// The time is up.
    Deadline,
    /// The process has ended.
    Exited,
    /// The process has replaced its program.
    Exec,
}

impl Session {
    /// Attaches to a process and begins to count.
    pub(super) fn start(
        process: Process,
        capacities: &Capacities,
        symbols: symbolize::Options,
        diagnostics: bool,
        capture: Option<Capture>,
    ) -> Result<Self, CliError> {
        let pid = process.pid();
        let debug_dirs = symbols.debug_dirs.clone();
        let names = Mutex::new(Names::new(pid, symbols));
        let (send, notices) = mpsc::unbounded_channel();
        // A receiver that is gone no longer wants to know.
        let on_notice = move |notice| {
            let _ = send.send(notice);
        };
        let recording = Recording::start(process, capacities, debug_dirs, diagnostics, capture, on_notice)
            .map_err(CliError::record(pid))?;
        Ok(Self { recording, names, notices: tokio::sync::Mutex::new(notices) })
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
        for path in self.recording.unprobed() {
            say(&format!(
                "{path} has a malloc of its own, which cannot be probed; only what it passes on to others is counted"
            ));
        }
    }

    pub(super) fn vitals(&self) -> Result<Vitals, CliError> {
        self.recording.vitals().map_err(CliError::record(self.process().pid()))
    }

    /// Waits until the process has ended or replaced its program.
    pub(super) async fn over(&self) -> Result<End, CliError> {
        let failed = |source| CliError::Runtime { what: "the wait for the process's end", source };
        let pidfd = self.process().as_fd();
        // SAFETY: the pidfd stays open for as long as `self` is borrowed, which is longer than this lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let pidfd = pidfd.map_err(|error| failed(error.into()))?;
        let mut notices = self.notices.lock().await;
        loop {
            tokio::select! {
                ready = pidfd.readable() => {
                    ready.map_err(failed)?.retain_ready();
                    return Ok(End::Exited);
                }
                Some(notice) = notices.recv() => match notice {
                    Notice::Exec => return Ok(End::Exec),
                    Notice::CodeAdded => self.attach_to_new(),
                    Notice::LeaderExit { seen } => {
                        if !self.follow_threads()? {
                            return Ok(End::Exited);
                        }
                        let blind = seen.elapsed();
                        // When a process ends, its first thread ends as well, if not always as the last.
                        if tokio::time::timeout(LAST_GASP, pidfd.readable()).await.is_err() {
                            self.recording.was_blind_for(blind);
                            let blind_ms = blind.as_millis() + 1;
                            say(&format!("the first thread has ended, others go on; calls were not seen for {blind_ms} ms"));
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
                for name in names {
                    say(&format!("{name} was loaded; what it gives is counted from now on"));
                }
            }
            Err(RecordError::Process(ProcessError::Gone { .. })) => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "an allocator that was loaded is not probed");
            }
        }
    }

    /// The kernel takes a process's probes out when its first thread ends: puts them in again, or gives false where
    /// the process has ended as a whole.
    fn follow_threads(&self) -> Result<bool, CliError> {
        match self.recording.reattach() {
            Ok(()) => Ok(true),
            // Every thread is ending, which the kernel shows of the process only when the last one has.
            Err(RecordError::Process(ProcessError::Gone { .. })) => Ok(false),
            Err(_) if self.process().has_ended() => Ok(false),
            Err(error) => Err(CliError::record(self.process().pid())(error)),
        }
    }

    /// Stops counting. The numbers stay.
    pub(super) fn stop(&self) -> Result<(), CaptureError> {
        self.recording.stop()
    }

    /// Why the recording was over in truth, to be asked when it has stopped: a program that replaces another and ends at
    /// once is gone before the notice of it is read.
    pub(super) fn why(&self, end: End) -> End {
        // Whoever still waits for the end has not seen one.
        let Ok(mut notices) = self.notices.try_lock() else { return end };
        let was_replaced =
            std::iter::from_fn(|| notices.try_recv().ok()).any(|notice| notice == Notice::Exec);
        if end == End::Exited && was_replaced { End::Exec } else { end }
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
