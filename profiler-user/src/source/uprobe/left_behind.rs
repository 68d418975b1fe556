//! Breakpoints in children that are not followed.
//!
//! A process that forks gives its child a copy of its memory, and of the breakpoints in it, at which the child is stopped for nothing.
//! Where probes are attached one by one the kernel takes them out at the first stop; where they are attached to many places at once it
//! does not look for whom they are. It does look when somebody else's probe leaves the same place (`register_for_each_vma` in
//! kernel/events/uprobes.c, v6.18), so that one is put there, for heaptap itself, and taken away again.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{attach::Probes, multi::Multi, recording::lock};

/// Places, by their files.
type Places = BTreeMap<PathBuf, Vec<u64>>;

/// The least time from one round to the next: it takes some 50 ms of the kernel's time, and a process may fork often.
const REST: Duration = Duration::from_millis(500);

/// Frees children of breakpoints, by a thread of its own that begins with the first of them.
#[derive(Default)]
pub(super) struct LeftBehind {
    thread: Mutex<Option<(Sender<Places>, JoinHandle<()>)>>,
}

impl LeftBehind {
    /// A child has been made of a process that has breakpoints at these places.
    pub(super) fn free(&self, multi: &Arc<Multi>, places: Places) {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let (send, work) = channel();
            let multi = Arc::clone(multi);
            let builder = std::thread::Builder::new().name("heaptap-forks".to_owned());
            match builder.spawn(move || run(&multi, &work)) {
                Ok(handle) => *thread = Some((send, handle)),
                Err(error) => tracing::warn!(%error, "children keep breakpoints until the recording ends"),
            }
        }
        if let Some((send, _)) = &*thread {
            // Failing means that it has failed, which is said when it is joined.
            let _ = send.send(places);
        }
    }
}

impl Drop for LeftBehind {
    fn drop(&mut self) {
        if let Some((send, thread)) = lock(&self.thread).take() {
            drop(send);
            if thread.join().is_err() {
                tracing::error!("the thread that frees children of breakpoints failed");
            }
        }
    }
}

fn run(multi: &Multi, work: &Receiver<Places>) {
    let mut next = work.recv().ok();
    while let Some(mut places) = next {
        // One round is for all children that there are.
        while let Ok(later) = work.try_recv() {
            places = later;
        }
        let mut passing = Probes::default();
        if let Err(error) = passing.pass_by(multi, &places) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "children keep breakpoints until the recording ends");
        }
        drop(passing);
        next = work.recv().ok();
        if next.is_some() {
            std::thread::sleep(REST);
        }
    }
}
