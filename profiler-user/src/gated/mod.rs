//! Gates in processes: put in, fed, found again, taken out.
//!
//! A gate is a file in memory that the process has mapped twice, privately: its code, which nobody writes any more, and its data, of
//! which the process has its own copy as soon as it writes. The file's first page says what the gate has changed, so that
//! whoever comes upon it can undo that.

mod error;

mod description;

mod files;

mod memory;

mod sharing;

mod prepared;

mod entering;

mod succeeding;

mod leaving;

mod left;

mod feeding;

pub use description::{Description, Jump, Reading};
pub use error::GateError;
pub use feeding::Feeder;
pub use leaving::{Departure, Stay};
pub use left::{Left, find};
pub use prepared::{Plan, Prepared};
pub use succeeding::Known;

use std::{fs::File, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    gate::layout::Layout,
    target::{
        cover::JUMP_BYTES,
        stopped::{StopError, Stopped},
        words::Words,
    },
};

/// How long threads are waited for that are to stand still. One that computes does so as soon as it has a processor.
const STOP_LIMIT: Duration = Duration::from_millis(100);

/// How often it is tried, and the pause in between, in which all of them go on. What is not put in is counted otherwise, and what is not
/// taken out stays: that is worth more patience.
const STOP_TRIES: u32 = 5;
const STOP_TRIES_TO_LEAVE: u32 = 20;
const STOP_PAUSE: Duration = Duration::from_millis(20);

/// Stops all threads of a process.
fn stop(pid: u32, most_tries: u32) -> Result<Stopped, StopError> {
    stop_by(pid, most_tries, Stopped::all)
}

fn stop_by(
    pid: u32,
    most_tries: u32,
    stop: fn(u32, Duration) -> Result<Stopped, StopError>,
) -> Result<Stopped, StopError> {
    let mut tries = 1;
    loop {
        match stop(pid, STOP_LIMIT) {
            Err(StopError::NotInTime { .. } | StopError::TooMany { .. }) if tries < most_tries => {
                std::thread::sleep(STOP_PAUSE);
                tries += 1;
            }
            stopped => return stopped,
        }
    }
}

/// A gate that is in.
#[derive(Debug)]
pub struct Gate {
    pid: u32,
    /// Its memory, locked for as long as somebody is there who counts by it.
    file: Arc<File>,
    /// The process's, for as long as it runs this program.
    words: Words,
    description: Description,
}

/// What a gate has counted itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Threads that are inside a call of the sample.
    pub inside: u64,
    /// Blocks that had no room in the table.
    pub overflows: u64,
    /// Samples that were lost: two calls used up a budget together, or one that throws had no memory at first.
    pub lost_budgets: u64,
}

impl Counts {
    /// Adds what another gate has counted.
    pub fn add(&mut self, others: Self) {
        self.inside += others.inside;
        self.overflows += others.overflows;
        self.lost_budgets += others.lost_budgets;
    }

    /// What was counted since there was so much.
    pub const fn since(self, before: Self) -> Self {
        Self {
            inside: self.inside.saturating_sub(before.inside),
            overflows: self.overflows.saturating_sub(before.overflows),
            lost_budgets: self.lost_budgets.saturating_sub(before.lost_budgets),
        }
    }

    /// What one has counted whose process stands still.
    fn of_stopped(description: &Description, stopped: &Stopped) -> Result<Option<Self>, StopError> {
        let start = description.data.start;
        let words = stopped.read(start, description.layout().budgets() as usize)?;
        let word = |address: u64| {
            let at = usize::try_from(address - start).ok()?;
            Some(u64::from_le_bytes(*words.get(at..)?.first_chunk()?))
        };
        Ok(Self::read(description, word))
    }

    fn read(description: &Description, word: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        let (start, layout) = (description.data.start, description.layout());
        Some(Self {
            inside: word(start + layout.inside())?,
            overflows: word(start + layout.overflows())?,
            lost_budgets: word(start + layout.lost_budgets())?,
        })
    }
}

impl Gate {
    /// The same gate in a child of its process, which has a copy of it; `None` where the child runs another program, or has ended.
    ///
    /// # Errors
    ///
    /// Another heaptap may count by it there.
    pub fn of_child(&self, child: u32) -> Result<Option<Self>, GateError> {
        let Ok(words) = Words::of(child) else { return Ok(None) };
        let gate =
            Self { pid: child, file: Arc::clone(&self.file), words, description: self.description.clone() };
        if !gate.is_mapped() {
            return Ok(None);
        }
        files::lock(&self.file, child)?;
        Ok(Some(gate))
    }

    /// Whether its process has it.
    pub fn is_mapped(&self) -> bool {
        files::is_mapped(self.pid, &self.description.code, &self.file)
    }

    /// Whether calls go through it: not where its functions' library was unloaded.
    pub fn is_led_to(&self) -> bool {
        is_led_to(&self.words, &self.description)
    }

    /// Where its code is.
    pub const fn code(&self) -> &Range<u64> {
        &self.description.code
    }

    /// Its gaps, for who draws them anew.
    pub fn feed(&self, interval_bytes: u64) -> feeding::Fed {
        feeding::Fed::new(&self.file, self.pid, &self.description, interval_bytes)
    }

    /// Its functions.
    pub fn functions(&self) -> usize {
        self.description.jumps.len()
    }

    /// What lies where in its data.
    pub fn layout(&self) -> Layout {
        self.description.layout()
    }

    /// Whether frees often look for blocks that are not in its table, which has too few buckets for those that are.
    pub fn is_crowded(&self) -> bool {
        let layout = self.layout();
        let mut filter = vec![0; layout.buckets() as usize];
        let read = self.words.read(self.description.data.start + layout.filter(), &mut filter);
        read.is_some() && layout.is_crowded(&filter)
    }

    /// What it has counted; `None` where its memory is gone.
    pub fn counts(&self) -> Option<Counts> {
        Counts::read(&self.description, |address| self.words.word(address))
    }
}

/// Whether any jump leads to the gate that this describes.
fn is_led_to(words: &Words, description: &Description) -> bool {
    let mut is = [0; JUMP_BYTES];
    let mut jumps = description.jumps.iter();
    jumps.any(|jump| words.read(jump.address, &mut is).is_some() && jump.is_there(&is).is_some())
}

/// Where a file of ours can be opened by its descriptor.
fn path_of(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
