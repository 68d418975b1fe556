//! What somebody has left in a process, who was killed.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{
    Departure, Description, GateError, Jump,
    description::Reading,
    files::{MAPPED_NAME, descriptors, is_in_memory, is_mapped, is_open, lock, open, open_mapped},
    leaving::{Remains, leave},
};
use crate::target::{
    cover::JUMP_BYTES,
    mapping::{self, Mapping},
    process::ProcessError,
};

/// A gate that nobody counts by, or what there is of it.
#[derive(Debug)]
pub struct Left {
    pid: u32,
    file: File,
    remains: Remains,
}

/// What was left in a process.
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
    let mut found: Vec<Left> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.name == MAPPED_NAME) {
        let (device, inode) =
            mapping.inode.map_or(((0, 0), 0), |(major, minor, inode)| ((major, minor), inode));
        if inode == 0 || !is_in_memory(device).map_err(GateError::file(pid, "told from others"))? {
            continue;
        }
        let range = mapping.start..mapping.end;
        if !found.iter().any(|left| is_mapped(pid, &range, &left.file)) {
            let file = open_mapped(pid, &range).map_err(GateError::file(pid, "opened"))?;
            found.push(Left::of(pid, file, &mappings)?);
        }
        let left = found.iter_mut().find(|left| is_mapped(pid, &range, &left.file));
        left.into_iter().for_each(|left| left.remains.ranges.push(range.clone()));
    }
    for descriptor in descriptors(pid).map_err(GateError::file(pid, "looked for"))? {
        if !found.iter().any(|left| is_open(pid, descriptor, &left.file)) {
            let file = open(pid, descriptor).map_err(GateError::file(pid, "opened"))?;
            found.push(Left::of(pid, file, &mappings)?);
        }
        let left = found.iter_mut().find(|left| is_open(pid, descriptor, &left.file));
        left.into_iter().for_each(|left| left.remains.descriptors.push(descriptor));
    }
    Ok(found)
}

impl Left {
    fn of(pid: u32, mut file: File, mappings: &[Mapping]) -> Result<Self, GateError> {
        lock(&file, pid)?;
        let mut remains = Remains::default();
        match Description::read(&mut file).map_err(GateError::file(pid, "read"))? {
            Reading::Unfinished => {}
            Reading::Unknown => remains.is_unknown = true,
            Reading::Whole(description) => {
                let jumps = description.jumps.iter().copied();
                remains.functions = jumps.len();
                remains.jumps = jumps.filter(|jump| is_of_file(pid, jump, mappings)).collect();
                remains.description = Some(description);
            }
        }
        Ok(Self { pid, file, remains })
    }

    /// How many functions it was put in front of.
    pub const fn functions(&self) -> usize {
        self.remains.functions
    }

    /// Takes it out.
    pub fn leave(&self) -> Result<Departure, GateError> {
        leave(self.pid, &self.file, &self.remains)
    }
}

/// Whether what a jump is said to have taken the place of is what the file has there, which is all that is ever written: anybody may have
/// written the description.
fn is_of_file(pid: u32, jump: &Jump, mappings: &[Mapping]) -> bool {
    let end = jump.address + JUMP_BYTES as u64;
    let holds = |mapping: &&Mapping| mapping.start <= jump.address && end <= mapping.end;
    let Some(mapping) = mappings.iter().find(holds) else { return false };
    let read = || -> io::Result<[u8; JUMP_BYTES]> {
        let mut bytes = [0; JUMP_BYTES];
        let file = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end))?;
        file.read_exact_at(&mut bytes, mapping.offset + (jump.address - mapping.start))?;
        Ok(bytes)
    };
    mapping.is_executable
        && mapping.is_private
        && mapping.inode.is_some()
        && mapping.name != MAPPED_NAME
        && read().is_ok_and(|bytes| bytes == jump.original)
}
