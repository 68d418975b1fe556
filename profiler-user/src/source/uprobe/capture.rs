//! Keeping stacks as they were walked, with what they were walked from, for whoever looks into a walk.
//!
//! The file is gzip-compressed JSON, one [`Line`] a line. It holds what the target had on its stacks.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use flate2::{Compression, write::GzEncoder};
use profiler_common::unwind::{Regs, WalkEnd};
use serde::{Deserialize, Serialize};

use super::stacks::lookup;
use crate::target::maps::{AddressSpace, Content};

/// Why stacks cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the stacks to `{}`", path.display())]
pub struct CaptureError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A range of code, before the first stack that leads through it.
    Range(CapturedRange),
    /// A stack.
    Stack(CapturedStack),
}

/// A range of code that is or was mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedRange {
    /// Its number, by which frames name it.
    pub id: usize,
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset in the file of the first address, in bytes.
    pub offset: u64,
    /// The file's path in the target's mount namespace, or the kernel's name for what is no file.
    pub name: String,
    /// Whether a file is mapped.
    pub is_file: bool,
}

/// A stack, its frames, and what they were found in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedStack {
    /// Whether the kernel has walked it, by rows that it had learned; else user space has, to teach them.
    pub by_kernel: bool,
    /// The program counter that the walk began at: a return address.
    pub pc: u64,
    /// The stack pointer there.
    pub sp: u64,
    /// The frame pointer register (rbp) there.
    pub fp: u64,
    /// The program counters found, the first of which is `pc`.
    pub pcs: Vec<u64>,
    /// The range of each, by its number; of the byte before it, since they are return addresses.
    pub ranges: Vec<Option<usize>>,
    /// How the walk ended, in words.
    pub end: String,
    /// The stack's memory from `sp` on, in words of eight bytes; `None` (null) for what could not be read.
    pub memory: Vec<Option<u64>>,
    /// The rows of those program counters that are in no file, as numbers: where their code was made at run time, who made it said
    /// how to walk through it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rows: BTreeMap<u64, u64>,
}

/// A walk that is over.
pub(super) struct Walked<'walk> {
    pub(super) by_kernel: bool,
    /// Where it began.
    pub(super) regs: Regs,
    /// What it found, from `regs.pc` on.
    pub(super) pcs: &'walk [u64],
    pub(super) end: WalkEnd,
    /// The memory from `regs.sp` on, as far as it matters.
    pub(super) memory: Vec<Option<u64>>,
    /// The rows of what is in no file.
    pub(super) rows: BTreeMap<u64, u64>,
}

/// Stacks that may wait to be written. What is behind it waits in memory.
const WAITING: usize = 1 << 14;

/// A file of stacks that is being written, by a thread of its own: whoever learns must not wait for it.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    lines: SyncSender<Line>,
    writer: JoinHandle<io::Result<()>>,
    /// Places in [`AddressSpace::ranges`] of those that are in the file.
    ranges: HashSet<usize>,
    /// Lines that were not taken because too many waited or nobody writes any more.
    lost: u64,
}

impl Capture {
    /// Returns a new file that only its owner may read; with `overwrite` in the place of one that is there.
    ///
    /// # Errors
    ///
    /// Fails where the file is there or cannot be made.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if overwrite {
            options.create(true).truncate(true);
        } else {
            options.create_new(true);
        }
        let file = options.open(path).map_err(failed)?;
        let (lines, waiting) = sync_channel(WAITING);
        let writer = std::thread::Builder::new()
            .name("heaptap-capture".to_owned())
            .spawn(move || write(file, &waiting))
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), lines, writer, ranges: HashSet::new(), lost: 0 })
    }

    /// Keeps a stack, and the ranges that it leads through.
    pub(super) fn keep(&mut self, walked: Walked<'_>, space: &AddressSpace) {
        let ranges: Vec<Option<usize>> = walked.pcs.iter().map(|pc| space.find(lookup(*pc))).collect();
        for id in ranges.iter().copied().flatten() {
            if self.ranges.insert(id)
                && let Some(range) = captured_range(id, space)
            {
                self.line(Line::Range(range));
            }
        }
        let Regs { pc, sp, fp } = walked.regs;
        self.line(Line::Stack(CapturedStack {
            by_kernel: walked.by_kernel,
            pc,
            sp,
            fp,
            pcs: walked.pcs.to_vec(),
            ranges,
            end: walked.end.text().to_owned(),
            memory: walked.memory,
            rows: walked.rows,
        }));
    }

    fn line(&mut self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.lost += 1;
        }
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// Fails where something could not be written; what was written before is there.
    pub fn finish(self) -> Result<(), CaptureError> {
        drop(self.lines);
        let written = self.writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer failed")));
        let lost = || io::Error::other(format!("{} lines came faster than they could be written", self.lost));
        let written = written.and_then(|()| if self.lost == 0 { Ok(()) } else { Err(lost()) });
        written.map_err(|source| CaptureError { path: self.path, source })
    }
}

fn write(file: File, lines: &Receiver<Line>) -> io::Result<()> {
    let mut out = GzEncoder::new(BufWriter::new(file), Compression::fast());
    for line in lines {
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(())
}

fn captured_range(id: usize, space: &AddressSpace) -> Option<CapturedRange> {
    let range = space.ranges().get(id)?;
    let (name, is_file) = match &range.content {
        Content::Module(module) => {
            let module = space.modules().get(*module)?;
            // The vDSO is in none.
            (module.path.clone(), module.inode.is_some())
        }
        Content::Unnamed(name) => (name.clone(), false),
    };
    Some(CapturedRange { id, start: range.start, end: range.end, offset: range.offset, name, is_file })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn a_stack_is_written_behind_the_ranges_that_it_leads_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stacks");
        let mut space = AddressSpace::default();
        space.refresh(std::process::id()).unwrap();
        let here = a_stack_is_written_behind_the_ranges_that_it_leads_through as *const () as u64 + 1;
        let pcs = [here, 5];
        let walked = || Walked {
            by_kernel: true,
            regs: Regs { pc: here, sp: 16, fp: 0 },
            pcs: &pcs,
            end: WalkEnd::Whole,
            memory: vec![Some(1), None],
            rows: BTreeMap::from([(5, 6)]),
        };
        let mut capture = Capture::create(&path, false).unwrap();
        capture.keep(walked(), &space);
        capture.keep(walked(), &space);
        capture.finish().unwrap();
        let text = BufReader::new(GzDecoder::new(File::open(&path).unwrap()));
        let lines: Vec<Line> =
            text.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        let [Line::Range(range), Line::Stack(first), second] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(range.name, std::env::current_exe().unwrap().to_string_lossy());
        assert_eq!((&first.pcs[..], &first.ranges[..]), (&[here, 5][..], &[Some(range.id), None][..]));
        assert_eq!((&first.memory[..], first.end.as_str()), (&[Some(1), None][..], "whole"));
        assert_eq!(first.rows, BTreeMap::from([(5, 6)]));
        assert_eq!(*second, Line::Stack(first.clone()));
        let error = Capture::create(&path, false).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert!(Capture::create(&path, true).is_ok());
    }
}
