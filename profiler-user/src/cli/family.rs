//! `heaptap record --follow-forks`: the children of the process, each with a profile of its own.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    error::CliError,
    record::{Output, say},
    session::Session,
};
use crate::{
    output::{file::OutputFile, unit::ValueFormat},
    profile::{gate, heap::losses, write::encode_gzip},
    source::{
        RawHeap,
        uprobe::{Forked, Notice},
    },
};

/// A child that is followed from now on, and where to hear of it.
pub(super) struct Birth {
    forked: Forked,
    notices: mpsc::UnboundedReceiver<Notice>,
}

impl Birth {
    /// What is known of the child, and where to hear of it.
    pub(super) fn into_parts(self) -> (Forked, mpsc::UnboundedReceiver<Notice>) {
        (self.forked, self.notices)
    }
}

/// Hands each notice to whoever attends to its process.
pub(super) struct Router {
    processes: HashMap<u32, mpsc::UnboundedSender<Notice>>,
    births: mpsc::UnboundedSender<Birth>,
}

impl Router {
    /// One that knows the process `pid`; gives where to hear of that, and of children.
    pub(super) fn new(pid: u32) -> (Self, mpsc::UnboundedReceiver<Notice>, mpsc::UnboundedReceiver<Birth>) {
        let (send, notices) = mpsc::unbounded_channel();
        let (births, born) = mpsc::unbounded_channel();
        (Self { processes: HashMap::from([(pid, send)]), births }, notices, born)
    }

    /// Hands on a notice. A receiver that is gone no longer wants to know.
    pub(super) fn hand_on(&mut self, pid: u32, notice: Notice) {
        if let Notice::Forked(forked) = notice {
            let (send, notices) = mpsc::unbounded_channel();
            // Those who have ended hear no more.
            self.processes.retain(|_, process| !process.is_closed());
            self.processes.insert(forked.pid, send);
            let _ = self.births.send(Birth { forked, notices });
        } else if let Some(process) = self.processes.get(&pid) {
            let _ = process.send(notice);
        }
    }
}

/// Where the profiles go.
struct Place {
    /// The first process's.
    path: PathBuf,
    overwrite: bool,
    is_quiet: bool,
}

/// The children that are recorded.
pub(super) struct Children {
    first: Arc<Session>,
    place: Arc<Place>,
    sessions: Arc<Mutex<HashMap<u32, Arc<Session>>>>,
    births: mpsc::UnboundedReceiver<Birth>,
    attended: JoinSet<Result<(), CliError>>,
    is_over: watch::Sender<bool>,
    /// Whether there was one.
    were_there: bool,
    /// The first failure: the others are to be written all the same.
    failed: Option<CliError>,
}

impl Children {
    /// None as yet, of the `first` process, whose profile goes to `path`.
    pub(super) fn new(
        first: &Arc<Session>,
        births: mpsc::UnboundedReceiver<Birth>,
        path: &Path,
        overwrite: bool,
        is_quiet: bool,
    ) -> Self {
        Self {
            first: Arc::clone(first),
            place: Arc::new(Place { path: path.to_owned(), overwrite, is_quiet }),
            sessions: Arc::default(),
            births,
            attended: JoinSet::new(),
            is_over: watch::Sender::new(false),
            were_there: false,
            failed: None,
        }
    }

    /// Attends to children that come and go. Ends only where the recording of the first process does.
    pub(super) async fn attend(&mut self) {
        loop {
            tokio::select! {
                born = self.births.recv() => match born {
                    Some(birth) => self.begin(birth),
                    None => return,
                },
                Some(ended) = self.attended.join_next() => self.note(ended),
            }
        }
    }

    /// The same until there is none. The first process has ended.
    pub(super) async fn attend_to_the_last(&mut self) {
        loop {
            // What has happened is known now.
            self.first.settle();
            while let Ok(birth) = self.births.try_recv() {
                self.begin(birth);
            }
            match self.attended.join_next().await {
                Some(ended) => self.note(ended),
                None => return,
            }
        }
    }

    /// Whether there are any.
    pub(super) fn are_there(&mut self) -> bool {
        self.first.settle();
        !(self.births.is_empty() && self.attended.is_empty())
    }

    /// Whether there has been one, so that there is something to show.
    pub(super) const fn were_there(&self) -> bool {
        self.were_there
    }

    /// Ends the recordings of all of them, and waits for their profiles.
    ///
    /// # Errors
    ///
    /// Gives the first failure, when all that could be written is.
    pub(super) async fn finish(&mut self) -> Result<(), CliError> {
        for session in lock(&self.sessions).values() {
            if let Err(error) = session.stop() {
                tracing::warn!(%error, "a child's recording ended otherwise than it should");
            }
        }
        // Also for those that are yet to begin, where there is none to be told now.
        self.is_over.send_replace(true);
        self.first.release();
        self.attend_to_the_last().await;
        self.failed.take().map_or(Ok(()), Err)
    }

    fn begin(&mut self, birth: Birth) {
        self.were_there = true;
        let parent = lock(&self.sessions).get(&birth.forked.parent).cloned();
        let parent = parent.unwrap_or_else(|| Arc::clone(&self.first));
        let (sessions, place) = (Arc::clone(&self.sessions), Arc::clone(&self.place));
        let is_over = self.is_over.subscribe();
        self.attended.spawn(attend_to(parent, birth, sessions, place, is_over));
    }

    fn note(&mut self, ended: Result<Result<(), CliError>, tokio::task::JoinError>) {
        let error = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(error) => {
                CliError::Runtime { what: "the recording of a child", source: std::io::Error::other(error) }
            }
        };
        let shown: &dyn std::error::Error = &error;
        tracing::error!(error = shown, "a child's profile is missing");
        self.failed.get_or_insert(error);
    }
}

/// Records a child until it ends or the recording does, and writes its profile.
async fn attend_to(
    parent: Arc<Session>,
    birth: Birth,
    sessions: Arc<Mutex<HashMap<u32, Arc<Session>>>>,
    place: Arc<Place>,
    mut is_over: watch::Receiver<bool>,
) -> Result<(), CliError> {
    let Forked { pid, parent: parent_pid, is_empty, .. } = birth.forked;
    let session = aside(move || Session::child(&parent, birth)).await?;
    let session = Arc::new(session);
    lock(&sessions).insert(pid, Arc::clone(&session));
    if !place.is_quiet {
        let comm = session.process().comm();
        let how = if is_empty { ", which it was started by" } else { "" };
        say(&format!("following process {pid} ({comm}), a child of process {parent_pid}{how}"));
    }
    let attended = tokio::select! {
        ended = session.over() => ended,
        _ = is_over.wait_for(|is_over| *is_over) => Ok(()),
    };
    lock(&sessions).remove(&pid);
    aside(move || write(&session, &place)).await?;
    attended
}

/// Does something that takes its time.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    let failed = |error| CliError::Runtime { what: "a thread", source: std::io::Error::other(error) };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

fn write(session: &Session, place: &Place) -> Result<(), CliError> {
    session.stop()?;
    let (heap, profile) = session.profile()?;
    let bytes = encode_gzip(&profile).map_err(CliError::Encode)?;
    let path = path_of(&place.path, heap.pid);
    let file = OutputFile::create(&path, place.overwrite)?;
    let path = Output { file, path }.commit(&bytes)?;
    for loss in losses(&heap) {
        say(&format!("process {}: {loss}", heap.pid));
    }
    if !place.is_quiet {
        say(&summary(&heap, &path));
        for line in heap.gate.iter().flat_map(|gate| gate::closing_lines(gate, &heap.counters)) {
            say(&format!("process {}: {}", heap.pid, line.trim_start()));
        }
    }
    session.discard()
}

fn summary(heap: &RawHeap, path: &Path) -> String {
    let own = heap.entries.iter().filter(|entry| !entry.is_inherited);
    let allocated = own.map(|entry| entry.totals.alloc_bytes).fold(0, u64::saturating_add);
    let inherited = heap.inheritance.map_or(0, |inheritance| inheritance.bytes);
    format!(
        "wrote {}: process {} ({}) had {} from its parent, allocated {}, and has {} in use",
        path.display(),
        heap.pid,
        heap.comm,
        show(inherited),
        show(allocated),
        show(heap.inuse_bytes())
    )
}

fn show(bytes: u64) -> String {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    ValueFormat::of_value(bytes, "bytes").show(bytes)
}

/// The path of a child's profile: that of the first process's with the child's PID before its ending.
fn path_of(first: &Path, pid: u32) -> PathBuf {
    const ENDING: &str = ".pb.gz";
    let name = first.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = match name.strip_suffix(ENDING) {
        Some(stem) => format!("{stem}.{pid}{ENDING}"),
        None => format!("{name}.{pid}"),
    };
    first.with_file_name(name)
}

/// Whatever is guarded here is whole between two calls, whatever happened to the thread that made the last one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_profile_has_its_pid_before_the_ending() {
        let of = |path: &str| path_of(Path::new(path), 12);
        assert_eq!(of("heap.pb.gz"), PathBuf::from("heap.12.pb.gz"));
        assert_eq!(of("a.b/heap.redis.7.pb.gz"), PathBuf::from("a.b/heap.redis.7.12.pb.gz"));
        assert_eq!(of("/tmp/profile"), PathBuf::from("/tmp/profile.12"));
    }
}
