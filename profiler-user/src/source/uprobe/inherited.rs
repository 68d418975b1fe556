//! Probes that child processes inherit, from their first instruction on.
//!
//! A program hangs on the probe's definition in tracefs, which all that have the probe share: it runs once at each hit,
//! however often the probe was opened for the process, and also where what is open is only inherited. The kernel hands a thread's
//! perf events on to what the thread makes, so that each thread needs its own.

use std::{
    collections::HashMap,
    fs, io,
    mem::size_of,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use aya_obj::generated::{perf_event_attr, perf_event_sample_format as format, perf_sw_ids, perf_type_id};
use nix::errno::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{attach::AttachError, bpf_call, kernel::Kernel, letting_go::let_go, sites::Site, tracefs::Group};
use crate::target::process::live_threads;

/// Why a probe that is inherited could not be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritedError {
    /// The file that it belongs in cannot be looked at.
    #[error("cannot look at {path}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Every thread has each probe open, and so many files may not be.
    #[error("cannot open `{function}` for thread {thread}: {open} files are open, and the limit is {limit}")]
    TooMany {
        /// The function.
        function: String,
        /// The thread.
        thread: u32,
        /// How many probes are open.
        open: usize,
        /// How many files may be.
        limit: u64,
    },
    /// The kernel refused it.
    #[error("cannot {what} `{function}` for thread {thread}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// The function.
        function: String,
        /// The thread.
        thread: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What tells probes apart: the file, the place in it, the program and what it is told. Files are told apart by device and inode.
type Key = ((u64, u64), u64, &'static str, u64);

/// A probe that is defined, and has its program.
struct Defined {
    id: u64,
    function: String,
    _link: OwnedFd,
}

/// The probes that a process and its descendants share. Dropping it takes them out of all of them.
///
/// The order matters: a probe can be removed when nobody has it open.
pub(super) struct Inherited {
    defined: HashMap<Key, Defined>,
    /// What is open for each process; closing it takes it from its descendants as well.
    open: HashMap<u32, Vec<OwnedFd>>,
    /// Whether the kernel is kept from handing one thread's events to another.
    keeps_apart: bool,
    group: Group,
}

/// A process may have thousands of threads, and each probe takes a file for each of them.
const FILES: u64 = 1 << 20;

impl Inherited {
    /// None as yet.
    pub(super) fn new() -> Result<Self, AttachError> {
        raise_file_limit();
        Ok(Self { defined: HashMap::new(), open: HashMap::new(), keeps_apart: true, group: Group::new()? })
    }

    /// Whether a process has to have probes of its own, beside those that it inherits.
    ///
    /// When one process follows another on a processor, and both have inherited the same events, the kernel leaves those where
    /// they are and says that they are the other's (`perf_event_context_sched_out` in kernel/events/core.c); the first
    /// to end then takes the breakpoints of the other with it. It does not do so with events that are to be read with their
    /// samples, which can be inherited since 6.13.
    pub(super) const fn needs_own(&self) -> bool {
        !self.keeps_apart
    }

    /// Opens the probes at these sites for all threads of a process; those that the threads make have them as well.
    ///
    /// Nothing counts before the process has its entry in `TARGETS`, so that the order does not matter.
    pub(super) fn attach(&mut self, kernel: &Kernel, sites: &[Site], pid: u32) -> Result<(), AttachError> {
        let sites: Vec<(Key, &Site)> =
            sites.iter().map(|site| Ok((key(site)?, site))).collect::<Result<_, InheritedError>>()?;
        let mut seen = Vec::new();
        loop {
            // One that began meanwhile has what its maker had then.
            let new: Vec<u32> = live_threads(pid).filter(|thread| !seen.contains(thread)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for thread in new {
                for (key, site) in &sites {
                    let opened = self.open(kernel, *key, site, thread);
                    if !self.keep(pid, opened)? {
                        break;
                    }
                }
                self.guard(pid, thread);
                seen.push(thread);
            }
        }
    }

    /// Opens all probes that there are for a process that has inherited them.
    pub(super) fn attach_own(&mut self, pid: u32) -> Result<(), AttachError> {
        let ids: Vec<(u64, String)> =
            self.defined.values().map(|defined| (defined.id, defined.function.clone())).collect();
        for thread in live_threads(pid) {
            for (id, function) in &ids {
                let opened = self.open_event(*id, thread, function);
                if !self.keep(pid, opened.map_err(AttachError::from))? {
                    break;
                }
            }
            self.guard(pid, thread);
        }
        Ok(())
    }

    /// Keeps what was opened for a thread of a process; false where the thread is no longer there.
    fn keep(&mut self, pid: u32, opened: Result<OwnedFd, AttachError>) -> Result<bool, AttachError> {
        match opened {
            Ok(event) => self.open.entry(pid).or_default().push(event),
            Err(error) if error.thread_is_gone() => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Where the kernel is not kept from handing one thread's events to another, it does not do so between processes that have not
    /// inherited all: so every thread has an event that its children do not inherit, though the threads that it makes do.
    fn guard(&mut self, pid: u32, thread: u32) {
        if !self.needs_own() {
            return;
        }
        let mut attributes = nothing_counted();
        attributes.type_ = perf_type_id::PERF_TYPE_SOFTWARE as u32;
        attributes.config = perf_sw_ids::PERF_COUNT_SW_DUMMY as u64;
        attributes.set_inherit(1);
        attributes.set_inherit_thread(1);
        match open_for(thread, &attributes) {
            Ok(event) => self.open.entry(pid).or_default().push(event),
            Err(error) => tracing::debug!(%error, thread, "its children may lose their probes for a moment"),
        }
    }

    /// Closes what a process has of its own, which has ended, where its descendants have their own as well.
    pub(super) fn close(&mut self, pid: u32) {
        if self.needs_own() {
            self.open.remove(&pid);
        }
    }

    fn open(&mut self, kernel: &Kernel, key: Key, site: &Site, thread: u32) -> Result<OwnedFd, AttachError> {
        let id = match self.defined.get(&key) {
            Some(defined) => defined.id,
            None => {
                let defined = self.define(kernel, site, thread)?;
                let id = defined.id;
                self.defined.insert(key, defined);
                id
            }
        };
        Ok(self.open_event(id, thread, &site.function)?)
    }

    /// Defines a probe and has its program run there.
    ///
    /// What the program is hung up by is opened for this alone and is not inherited: an inherited event takes the program with it
    /// when it goes (`perf_event_alloc` and `perf_event_detach_bpf_prog`, v6.18).
    fn define(&mut self, kernel: &Kernel, site: &Site, thread: u32) -> Result<Defined, AttachError> {
        let Site { program, cookie, function, held_path, offset, .. } = site;
        let id = self.group.define(&held_path.to_string_lossy(), *offset, site.is_return())?;
        let holder = open_event(id, thread, Heirs::None);
        let holder = holder.map_err(|source| self.refused(function, thread, source))?;
        let mut programs = kernel.programs();
        let descriptor = programs.uprobe(program)?.fd();
        let descriptor = descriptor.map_err(|source| super::kernel::refused(program, source))?;
        let link = bpf_call::link_event(descriptor.as_fd(), holder.as_fd(), *cookie);
        let link = link.map_err(|source| refused("run a program at", function, thread, source))?;
        Ok(Defined { id, function: function.clone(), _link: link })
    }

    fn open_event(&mut self, id: u64, thread: u32, function: &str) -> Result<OwnedFd, InheritedError> {
        let opened = match open_event(id, thread, self.heirs()) {
            Err(error) if self.keeps_apart && error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                self.keeps_apart = false;
                open_event(id, thread, self.heirs())
            }
            opened => opened,
        };
        opened.map_err(|source| self.refused(function, thread, source))
    }

    const fn heirs(&self) -> Heirs {
        if self.keeps_apart { Heirs::KeptApart } else { Heirs::All }
    }

    fn refused(&self, function: &str, thread: u32, source: io::Error) -> InheritedError {
        match source.raw_os_error() {
            Some(errno) if errno == Errno::EMFILE as i32 => InheritedError::TooMany {
                function: function.to_owned(),
                thread,
                open: self.open.values().map(Vec::len).sum(),
                limit: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            },
            _ => refused("open", function, thread, source),
        }
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        // The definitions can be removed behind this, when nobody has the probes open any more.
        let (defined, open) = (std::mem::take(&mut self.defined), std::mem::take(&mut self.open));
        if !defined.is_empty() {
            let_go((open, defined));
        }
    }
}

fn key(site: &Site) -> Result<Key, InheritedError> {
    let file = fs::metadata(&site.held_path)
        .map_err(|source| InheritedError::File { path: site.path.clone(), source })?;
    Ok(((file.dev(), file.ino()), site.offset, site.program, site.cookie))
}

fn refused(what: &'static str, function: &str, thread: u32, source: io::Error) -> InheritedError {
    InheritedError::Refused { what, function: function.to_owned(), thread, source }
}

/// Raises the limit of open files as far as is allowed.
fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = |maximum: Option<u64>| Rlimit { current: maximum, maximum };
    let more = maximum.map(|maximum| maximum.max(FILES));
    if current != more && setrlimit(Resource::Nofile, wanted(more)).is_err() {
        // Without the privilege to raise what is allowed.
        let _ = setrlimit(Resource::Nofile, wanted(maximum));
    }
}

/// `PERF_FLAG_FD_CLOEXEC` of include/uapi/linux/perf_event.h.
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Who is to inherit an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heirs {
    /// Nobody.
    None,
    /// What the thread makes.
    All,
    /// The same, and the kernel never hands the one's events to the other.
    KeptApart,
}

/// An event that counts nothing, so that it is never put on a processor: a program runs all the same (`__uprobe_perf_func` in
/// kernel/trace/trace_uprobe.c).
fn nothing_counted() -> perf_event_attr {
    // SAFETY: a struct of numbers, for which zeros are valid.
    let mut attributes: perf_event_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<perf_event_attr>() as u32;
    attributes.set_disabled(1);
    attributes
}

/// Opens the probe with this number for a thread.
fn open_event(id: u64, thread: u32, heirs: Heirs) -> io::Result<OwnedFd> {
    let mut attributes = nothing_counted();
    attributes.type_ = perf_type_id::PERF_TYPE_TRACEPOINT as u32;
    attributes.config = id;
    attributes.set_inherit(u64::from(heirs != Heirs::None));
    if heirs == Heirs::KeptApart {
        attributes.sample_type = format::PERF_SAMPLE_READ as u64 | format::PERF_SAMPLE_TID as u64;
    }
    open_for(thread, &attributes)
}

fn open_for(thread: u32, attributes: &perf_event_attr) -> io::Result<OwnedFd> {
    let (any_cpu, no_group, close_on_exec) = (-1, -1, PERF_FLAG_FD_CLOEXEC);
    // SAFETY: the kernel reads as much of the struct as its size says.
    let event = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attributes),
            thread,
            any_cpu,
            no_group,
            close_on_exec,
        )
    };
    bpf_call::descriptor(event)
}
