//! Drawing gaps anew before they have all been used: the process has no random numbers of its own for that.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::rand::{GetRandomFlags, getrandom};

use super::Description;
use crate::{
    gate::{
        gaps::{self, GAPS},
        layout::{BUDGET_BYTES, BUDGETS, NEXT_GAP},
    },
    target::words::Words,
};

/// How often it is looked how many were used: seldom while hardly any are.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(320);

/// They are drawn anew when so many were used.
const SOME: u64 = GAPS as u64 / 4;

/// What is used at all is drawn anew after this.
const LATEST: Duration = Duration::from_secs(5);

/// A gate's gaps.
#[derive(Debug)]
pub struct Fed {
    file: Arc<File>,
    words: Option<Words>,
    /// Where the budgets are in the process, and the gaps in the file.
    budgets_at: u64,
    gaps_at: u64,
    interval_bytes: u64,
    /// How many were used when they were last drawn, and when that was.
    used: u64,
    drawn: Instant,
}

impl Fed {
    pub(super) fn new(file: &Arc<File>, pid: u32, description: &Description, interval_bytes: u64) -> Self {
        let layout = description.layout();
        Self {
            file: Arc::clone(file),
            words: Words::of(pid).ok(),
            budgets_at: description.data.start + layout.budgets(),
            gaps_at: description.code.end - description.code.start + layout.gaps(),
            interval_bytes,
            used: 0,
            drawn: Instant::now(),
        }
    }

    /// Draws them anew if enough of them were used; gives how many that were, or `None` where the process has no such gate any more.
    fn feed(&mut self) -> Option<u64> {
        let mut budgets = vec![0; (BUDGETS * BUDGET_BYTES) as usize];
        self.words.as_ref()?.read(self.budgets_at, &mut budgets)?;
        let next = |budget: &[u8]| {
            budget.get(NEXT_GAP as usize..)?.first_chunk().map(|next| u32::from_le_bytes(*next))
        };
        let places = budgets.chunks(BUDGET_BYTES as usize).filter_map(next);
        // Each begins somewhere, which is the same each time.
        let used = places.fold(0_u64, |sum, place| sum.wrapping_add(place.into()));
        let since = used.wrapping_sub(self.used);
        if since >= SOME || (since > 0 && self.drawn.elapsed() >= LATEST) {
            if let Err(error) = write_gaps(&self.file, self.gaps_at, self.interval_bytes) {
                tracing::warn!(%error, "the gate goes on by the gaps that it has");
            }
            (self.used, self.drawn) = (used, Instant::now());
        }
        Some(since)
    }
}

/// Draws gaps anew for as long as it is there.
#[derive(Debug)]
pub struct Feeder {
    /// Dropped to end the thread.
    coming: Option<Sender<Fed>>,
    thread: Option<JoinHandle<()>>,
}

impl Feeder {
    /// Begins, with no gates yet.
    pub fn start() -> io::Result<Self> {
        let (coming, come) = mpsc::channel();
        let thread = std::thread::Builder::new().name("heaptap-gaps".to_owned()).spawn(move || {
            let mut fed: Vec<Fed> = Vec::new();
            let mut pause = SHORTEST;
            loop {
                match come.recv_timeout(if fed.is_empty() { LATEST } else { pause }) {
                    Ok(another) => fed.push(another),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                let mut most = 0;
                fed.retain_mut(|gate| gate.feed().inspect(|used| most = most.max(*used)).is_some());
                pause = if most >= SOME { SHORTEST } else { LONGEST.min(pause * 2) };
            }
        })?;
        Ok(Self { coming: Some(coming), thread: Some(thread) })
    }

    /// Adds a gate.
    pub fn add(&self, fed: Fed) {
        if let Some(coming) = &self.coming {
            // Fails where the thread has failed, which says so itself.
            let _ = coming.send(fed);
        }
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        drop(self.coming.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that draws gaps failed");
        }
    }
}

/// Gaps, by the kernel's random numbers.
pub(super) fn draw(interval_bytes: u64) -> io::Result<Vec<i64>> {
    let mut bytes = vec![0_u8; GAPS * 8];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())?;
    }
    let mut numbers = bytes.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number));
    Ok(gaps::draw(interval_bytes, || numbers.next().unwrap_or_default()))
}

/// Writes gaps into a gate's file.
pub(super) fn write_gaps(file: &File, at: u64, interval_bytes: u64) -> io::Result<()> {
    let gaps: Vec<u8> = draw(interval_bytes)?.into_iter().flat_map(i64::to_le_bytes).collect();
    file.write_all_at(&gaps, at)
}
