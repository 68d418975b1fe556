//! Records a command by other kernel programs than heaptap's own, and tells what they took: for `cargo xtask bench`.
//!
//! `record_with OBJECT COMMAND…`: `OBJECT` is an ELF file of kernel programs. What the command prints comes first, then
//! `frames N`, the depth at which most allocations were made, and with `--program-time` before all, which costs the command
//! some time of its own, `program NAME RUNS NANOSECONDS` for each.
#![expect(clippy::print_stdout, reason = "what it prints is all that it is for")]

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    io::{self, Write},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    maps::{MapData, MapInfo, MapType, StackTraceMap},
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use profiler_user::{
    source::{
        RawHeap, StackRef,
        uprobe::{Options, Recording},
    },
    target::{Process, launch::Held},
};

fn main() -> Result<()> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let with_times = arguments.first().is_some_and(|argument| argument == "--program-time");
    if with_times {
        arguments.remove(0);
    }
    let [object, program, arguments @ ..] = arguments.as_slice() else {
        bail!("usage: record_with [--program-time] OBJECT COMMAND…");
    };
    let object = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    // It is measured for as long as this is open.
    let _measuring = with_times.then(|| enable_stats(Stats::RunTime)).transpose()?;
    let held = Held::start(program, arguments, None)?;
    let process = Process::open(held.pid())?;
    let recording = Recording::start_with(&object, process, Options::default(), |_, _| {})?;
    let status = held.release()?.wait()?;
    ensure!(status.success(), "the command ended with {status}");
    recording.stop()?;
    let programs = programs()?;
    println!("frames {}", frames(&recording.snapshot()?, &programs)?);
    if with_times {
        for Program { name, runs, nanoseconds, .. } in programs {
            println!("program {name} {runs} {nanoseconds}");
        }
    }
    Ok(io::stdout().flush()?)
}

/// A program that we have loaded.
struct Program {
    name: String,
    runs: u64,
    nanoseconds: u64,
    maps: Vec<u32>,
}

/// Our own programs, of all that the kernel has.
fn programs() -> Result<Vec<Program>> {
    let mut ours = HashSet::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The one that reads the folder is closed by now.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        ours.extend(
            text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()),
        );
    }
    let mut programs = Vec::new();
    for program in loaded_programs() {
        let program = program?;
        if ours.contains(&program.id()) {
            programs.push(Program {
                name: program.name_as_str().unwrap_or("?").to_owned(),
                runs: program.run_count(),
                nanoseconds: program.run_time().as_nanos().try_into()?,
                maps: program.map_ids()?.unwrap_or_default(),
            });
        }
    }
    Ok(programs)
}

/// The frames of the stack that most was allocated on, from the caller of the allocator on; of the deepest one where the
/// kernel has walked.
fn frames(heap: &RawHeap, programs: &[Program]) -> Result<usize> {
    for &id in programs.iter().flat_map(|program| &program.maps) {
        if MapInfo::from_id(id)?.map_type()? != MapType::StackTrace {
            continue;
        }
        let stacks = StackTraceMap::try_from(aya::maps::Map::StackTraceMap(MapData::from_id(id)?))?;
        let mut deepest = 0;
        for stack in &stacks {
            deepest = deepest.max(stack?.1.frames().len());
        }
        // The function itself comes first.
        return Ok(deepest.saturating_sub(1));
    }
    let known = heap.entries.iter().filter_map(|entry| match entry.stack {
        StackRef::Known(index) => Some((entry.totals.alloc_objects, heap.stacks.get(index)?)),
        StackRef::Overflow | StackRef::Unsent => None,
    });
    let (_, stack) = known.max_by_key(|(objects, _)| *objects).context("nothing was allocated")?;
    Ok(stack.frames.len())
}
