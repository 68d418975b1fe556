//! `heaptap inspect`: what would be probed in a process, and where.

use std::io::{self, Write};

use super::{args::InspectArgs, error::CliError};
use crate::gate::plan::{self, Obstacle};
use crate::profile::printable::Printable;
use crate::target::{
    Process,
    allocator::{self, Allocator, Findings},
    container,
    hooks::Back,
    loader,
    maps::AddressSpace,
    separate::Places,
    site::Choice,
};

/// Looks and tells. Attaches nothing.
pub(super) fn run(args: &InspectArgs, out: &mut dyn Write) -> Result<(), CliError> {
    let process = Process::open(args.pid)?;
    let mut space = AddressSpace::default();
    space.refresh(args.pid)?;
    let mut findings = Findings { with_mappings: true, ..Findings::default() };
    allocator::find(&space, &Places::of(args.pid, args.symbols.clone().into()), &mut findings);
    write(&process, &space, &findings, args.gate, out).map_err(CliError::Stdout)
}

fn write(
    process: &Process,
    space: &AddressSpace,
    findings: &Findings,
    with_gates: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let exe = process.exe().to_string_lossy();
    writeln!(out, "process {} ({}), {}", process.pid(), Printable(process.comm()), Printable(&exe))?;
    if let Some(container) = container::of(process.pid()) {
        writeln!(out, "container {container}")?;
    }
    for allocator in &findings.allocators {
        write_allocator(allocator, space, out)?;
        if with_gates && !allocator.family.gives_mappings {
            write_gate(allocator, space, out)?;
        }
    }
    if findings.allocators.iter().all(|allocator| allocator.family.gives_mappings) {
        writeln!(out, "\nno allocator that heaptap knows: nothing would be probed")?;
    }
    write_what_follows(space, out)?;
    if !findings.passed.is_empty() {
        writeln!(out, "\nlooked at, not probed:")?;
    }
    for passed in &findings.passed {
        let path = space.modules().get(passed.module).map_or("?", |module| module.path.as_str());
        writeln!(out, "  {}: {}", Printable(path), Printable(&passed.verdict.text()))?;
    }
    Ok(())
}

/// What the process may do while it is recorded, and what becomes of the recording then.
fn write_what_follows(space: &AddressSpace, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nwhile it is recorded:")?;
    let loader = loader::find(space).and_then(|loader| space.modules().get(loader.module));
    match loader {
        Some(loader) => writeln!(
            out,
            "  an allocator that is loaded is counted from then on: {} tells of it",
            Printable(&loader.path)
        )?,
        None => writeln!(
            out,
            "  an allocator that is loaded is not noticed: there is no loader that tells of it, as in a static program"
        )?,
    }
    writeln!(out, "  its threads are followed, and the program that it replaces itself by (exec)")?;
    writeln!(
        out,
        "  its child processes are with `heaptap record --follow-forks`, each into a profile of its own; otherwise not"
    )
}

fn write_allocator(allocator: &Allocator, space: &AddressSpace, out: &mut dyn Write) -> io::Result<()> {
    let path = space.modules().get(allocator.module).map_or("?", |module| module.path.as_str());
    if allocator.family.gives_mappings {
        writeln!(out, "\nwith --mmap: memory that the program maps itself, in {}", Printable(path))?;
    } else {
        writeln!(out, "\nallocator {} in {}", allocator.label(space), Printable(path))?;
    }
    writeln!(
        out,
        "  {:<24} {:<12} {:>11} {:<22} why there",
        "function", "probes", "file offset", "on instruction"
    )?;
    for hook in &allocator.hooks {
        let probes = match &hook.back {
            Back::Unseen => "entry".to_owned(),
            Back::ReturnProbe => "entry+return".to_owned(),
            Back::Rets(offsets) => format!("entry+{} ret", offsets.len()),
        };
        let site = &hook.site;
        let place = match site.choice {
            Choice::LaterEmulated => format!("{} (+{})", site.instruction, site.into_function_bytes),
            Choice::EntryEmulated | Choice::EntryStepped => site.instruction.clone(),
        };
        let names = hook.names.join(", ");
        writeln!(out, "  {names:<24} {probes:<12} {:>#11x} {place:<22} {}", site.offset, site.choice.text())?;
    }
    for (name, reason) in &allocator.unhooked {
        writeln!(out, "  {name:<24} {reason}")?;
    }
    Ok(())
}

/// Whether an allocator could be gated, and where its functions are jumped away from.
fn write_gate(allocator: &Allocator, space: &AddressSpace, out: &mut dyn Write) -> io::Result<()> {
    let planned = plan::of(allocator, space);
    match &planned {
        Ok(functions) => writeln!(out, "  could be gated: {} functions", functions.len())?,
        Err(_) => writeln!(out, "  cannot be gated, as not all of its functions can be:")?,
    }
    for hook in allocator.hooks.iter().filter(|hook| plan::takes_part(hook.shape)) {
        let names = hook.names.join(", ");
        match &hook.cover {
            Ok(cover) => writeln!(
                out,
                "  {names:<24} {:>2} bytes at {:#x}: {}",
                cover.bytes.len(),
                cover.offset,
                cover.text()
            )?,
            Err(reason) => writeln!(out, "  {names:<24} not: it {reason}")?,
        }
    }
    for obstacle in planned.err().into_iter().flatten() {
        if !matches!(obstacle, Obstacle::Function { .. }) {
            writeln!(out, "  {}", Printable(&obstacle.to_string()))?;
        }
    }
    Ok(())
}
