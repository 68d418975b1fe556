//! What the profilers are measured on.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use super::target::Program;
use crate::bench::compile;
use crate::workspace::root;

/// A program, and what it is called in the table.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) name: String,
    /// Whether it works in several threads.
    pub(super) has_threads: bool,
    pub(super) program: Program,
}

/// Threads and frames of the pairs.
const PAIRS: [(u32, u32); 5] = [(1, 1), (1, 10), (1, 30), (2, 1), (8, 1)];

/// Requests that are sent at once on each connection.
const PIPELINES: [u32; 2] = [1, 16];

/// All workloads, their programs compiled.
pub(super) fn all(folder: &Path) -> Result<Vec<Workload>> {
    let guest_of = |source: &str, name: &str, flags: &[&str]| {
        let source = format!("xtask/src/bench/guests/{source}.c");
        let flags = [&["-D_GNU_SOURCE", "-fomit-frame-pointer", "-pthread"], flags].concat();
        compile(folder, name, &source, &flags)
    };
    let guest = |name: &str, flags: &[&str]| guest_of(name, name, flags);
    let mut all = Vec::new();
    let pairs = guest("pairs", &[])?;
    for (threads, frames) in PAIRS {
        let name =
            format!("pairs of malloc(64) and free: {}, {}", count(threads, "thread"), count(frames, "frame"));
        let pairs = by_commands(name, by_threads(&pairs, threads, frames));
        all.push(Workload { has_threads: threads > 1, ..pairs });
    }
    // So many that what is known of them is in no cache.
    let million = guest_of("sizes", "million", &["-DLIVE=1000000"])?;
    let (sizes, growth) = (guest("sizes", &[])?, guest("growth", &[])?);
    let inserts = guest("inserts", &["-lsqlite3"])?;
    all.push(by_commands("mix of sizes, 50,000 live blocks".to_owned(), by_threads(&sizes, 1, 1)));
    all.push(by_commands("mix of sizes, 1,000,000 live blocks".to_owned(), by_threads(&million, 1, 1)));
    all.push(by_commands("growth by realloc".to_owned(), by_threads(&growth, 1, 1)));
    for pipeline in PIPELINES {
        let name = match pipeline {
            1 => "redis-server, SET".to_owned(),
            _ => format!("redis-server, SET, pipeline of {pipeline}"),
        };
        let program = Program::Redis { pipeline, folder: folder.to_path_buf() };
        all.push(Workload { name, has_threads: false, program });
    }
    let script = root()?.join("xtask/src/bench/guests/records.py");
    all.push(by_commands("Python, JSON records".to_owned(), vec!["/usr/bin/python3".into(), script.into()]));
    all.push(by_commands("SQLite, bulk insert".to_owned(), by_threads(&inserts, 1, 1)));
    Ok(all)
}

fn by_commands(name: String, command: Vec<OsString>) -> Workload {
    Workload { name, has_threads: false, program: Program::Guest(command) }
}

fn by_threads(guest: &Path, threads: u32, frames: u32) -> Vec<OsString> {
    vec![guest.into(), threads.to_string().into(), frames.to_string().into()]
}

fn count(number: u32, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
