//! Gates in processes: put in, fed, found again, taken out.
//!
//! A gate is a file in memory that the process has mapped twice, privately: its code, which nobody writes any more, and its data, of
//! which the process has its own copy as soon as it writes. The file's first page says what the gate has changed, so that
//! whoever comes upon it can undo that.

mod error;

mod description;

mod files;

mod memory;

mod prepared;

mod entering;

mod leaving;

mod left;

mod feeding;

pub use description::{Description, Jump, Reading};
pub use error::GateError;
pub use feeding::Feeder;
pub use leaving::{Departure, Stays};
pub use left::{Left, find};
pub use prepared::{Plan, Prepared};

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use crate::target::{
    stopped::{StopError, Stopped},
    words::Words,
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
    let mut tries = 1;
    loop {
        match Stopped::all(pid, STOP_LIMIT) {
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
    /// Times that two calls used up a budget together.
    pub lost_budgets: u64,
}

impl Gate {
    /// Its functions.
    pub fn functions(&self) -> usize {
        self.description.jumps.len()
    }

    /// What it has counted; `None` where its memory is gone.
    pub fn counts(&self) -> Option<Counts> {
        let word = |offset| self.words.word(self.description.data.start + offset);
        let layout = self.description.layout();
        Some(Counts {
            inside: word(layout.inside())?,
            overflows: word(layout.overflows())?,
            lost_budgets: word(layout.lost_budgets())?,
        })
    }
}

/// Where a file of ours can be opened by its descriptor.
fn path_of(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
