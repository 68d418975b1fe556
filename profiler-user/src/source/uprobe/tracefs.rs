//! The kernel's files for tracing: probes that are defined there can be inherited, which perf's own cannot.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Where tracefs is mounted, if it is.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why probes cannot be defined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TracefsError {
    /// It is not mounted, or the kernel does not have it.
    #[error(
        "there is no /sys/kernel/tracing/uprobe_events, by which probes are defined that children inherit"
    )]
    Missing,
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a definition.
    #[error("the kernel refused the probe `{definition}`")]
    Define {
        /// What was written to uprobe_events.
        definition: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// The names that our probes' groups begin with, before our PID.
const PREFIX: &str = "heaptap_";

fn root() -> Result<PathBuf, TracefsError> {
    let roots = ROOTS.into_iter().map(PathBuf::from);
    roots.into_iter().find(|root| root.join("uprobe_events").exists()).ok_or(TracefsError::Missing)
}

/// The content of one of the files.
pub(super) fn read(name: &str) -> Result<String, TracefsError> {
    let path = root()?.join(name);
    fs::read_to_string(&path).map_err(|source| TracefsError::Read { path, source })
}

/// Probes that are defined under one name. Dropping it removes them, once nobody has them open.
#[derive(Debug)]
pub(super) struct Group {
    root: PathBuf,
    name: String,
    events: Vec<String>,
}

impl Group {
    /// A group without probes. Those are removed that were left by heaptaps which were killed.
    pub(super) fn new() -> Result<Self, TracefsError> {
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let root = root()?;
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}_{number}", std::process::id());
        let group = Self { root, name, events: Vec::new() };
        group.remove_leftovers();
        Ok(group)
    }

    /// Defines a probe in the file that `path` leads to, which has no space in it; gives the number to open it by.
    pub(super) fn define(&mut self, path: &str, offset: u64, is_return: bool) -> Result<u64, TracefsError> {
        let kind = if is_return { 'r' } else { 'p' };
        let event = format!("{kind}{}", self.events.len());
        let definition = format!("{kind}:{}/{event} {path}:{offset:#x}", self.name);
        self.write(&definition).map_err(|source| TracefsError::Define { definition, source })?;
        let path = self.root.join("events").join(&self.name).join(&event).join("id");
        self.events.push(event);
        let text =
            fs::read_to_string(&path).map_err(|source| TracefsError::Read { path: path.clone(), source })?;
        text.trim().parse().map_err(|error| TracefsError::Read { path, source: io::Error::other(error) })
    }

    /// Each definition is taken or refused by itself, in one write.
    fn write(&self, line: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().append(true).open(self.root.join("uprobe_events"))?;
        file.write_all(format!("{line}\n").as_bytes())
    }

    fn remove_leftovers(&self) {
        for group in names_in(&self.root.join("events")) {
            let of = group.strip_prefix(PREFIX).and_then(|rest| rest.split('_').next()?.parse::<u32>().ok());
            if of.is_none_or(is_heaptap) {
                continue;
            }
            for event in names_in(&self.root.join("events").join(&group)) {
                // Its own files are beside the probes.
                if self.root.join("events").join(&group).join(&event).is_dir()
                    && let Err(error) = self.write(&format!("-:{group}/{event}"))
                {
                    tracing::debug!(%error, group, event, "a probe that somebody left stays defined");
                }
            }
        }
    }
}

/// How often to try to remove a probe, and how long to wait in between: the last process that had it may be ending.
const TRIES: u32 = 50;
const TRY_AGAIN: Duration = Duration::from_millis(20);

impl Drop for Group {
    fn drop(&mut self) {
        for event in &self.events {
            let removal = format!("-:{}/{event}", self.name);
            let mut tries = 0;
            while let Err(error) = self.write(&removal) {
                tries += 1;
                if error.kind() != io::ErrorKind::ResourceBusy || tries == TRIES {
                    tracing::warn!(%error, removal, "a probe stays defined, and is in no process");
                    break;
                }
                std::thread::sleep(TRY_AGAIN);
            }
        }
    }
}

fn names_in(folder: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether a heaptap runs under this PID; where that cannot be told, one may.
fn is_heaptap(pid: u32) -> bool {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm"));
    match (name(&pid.to_string()), name("self")) {
        (Ok(there), Ok(own)) => there == own,
        (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    }
}
