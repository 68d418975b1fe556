//! Gates that somebody has left in a process, who was killed.

use std::fs::File;

use super::{
    Departure, Description, GateError,
    leaving::leave,
    memory::{MAPPED_NAME, lock, open_mapped},
};
use crate::target::{mapping, process::ProcessError};

/// A gate that nobody counts by.
#[derive(Debug)]
pub struct Left {
    pid: u32,
    file: File,
    description: Description,
}

/// The gates that were left in a process.
///
/// # Errors
///
/// One by which another heaptap counts is [`GateError::Taken`].
pub fn find(pid: u32) -> Result<Vec<Left>, GateError> {
    let mappings = match mapping::of(pid) {
        Ok(mappings) => mappings,
        Err(ProcessError::Gone { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.is_executable && mapping.name == MAPPED_NAME) {
        let range = mapping.start..mapping.end;
        let mut file = open_mapped(pid, &range).map_err(GateError::file(pid, "opened"))?;
        lock(&file, pid)?;
        let description = Description::read(&mut file).map_err(GateError::file(pid, "read"))?;
        // Who was killed early has left none, and nothing leads there; nor where it says that it is elsewhere.
        let Some(description) = description.filter(|description| description.code == range) else { continue };
        found.push(Left { pid, file, description });
    }
    Ok(found)
}

impl Left {
    /// How many functions it was put in front of.
    pub fn functions(&self) -> usize {
        self.description.jumps.len()
    }

    /// Takes it out.
    pub fn leave(&self) -> Result<Departure, GateError> {
        leave(self.pid, &self.file, &self.description)
    }
}
