//! Which program goes where: an allocator's functions, and the loader's announcement.

use std::path::PathBuf;

use profiler_common::{
    call::{Convention, FREES, Outcome, Shape},
    counters::Counter,
};

use super::loading::{CALL, FREE, GATE_CALL, GATE_FREE, GATE_RETURN, GATE_WHOLE, RETURNS};
use crate::{
    gate::{code::Stop, plan},
    target::{
        allocator::Allocator,
        hooks::Back,
        loader,
        maps::{AddressSpace, Module},
    },
};

/// A place where a program is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// The program.
    pub(super) program: &'static str,
    /// What it is told.
    pub(super) cookie: u64,
    /// The function, for people.
    pub(super) function: String,
    /// The file, as the process names it.
    pub(super) path: String,
    /// A path that leads to the file for as long as the address space is there.
    pub(super) held_path: PathBuf,
    /// Where in the file, in bytes.
    pub(super) offset: u64,
}

impl Site {
    /// Whether it is the returns from there that count.
    pub(super) fn is_return(&self) -> bool {
        self.program == RETURNS
    }
}

/// Which of an allocator's functions get ordinary probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of them.
    All,
    /// Those that can be gated.
    Gated,
    /// Those that no gate is for, beside one.
    Beside,
}

impl Part {
    /// Whether functions of this shape are among them.
    pub(super) fn has(self, shape: Shape) -> bool {
        match self {
            Self::All => true,
            Self::Gated => plan::takes_part(shape),
            Self::Beside => !plan::takes_part(shape),
        }
    }
}

/// Where the programs go for parts of these allocators, each with its number, which were found in `space`; `has_calls` where one
/// program can see both the entry and the return of a function.
pub(super) fn of_allocators(
    allocators: &[(u8, &Allocator, Part)],
    space: &AddressSpace,
    has_calls: bool,
) -> Vec<Site> {
    let mut sites = Vec::new();
    for &(number, allocator, part) in allocators {
        // An allocator was found by reading this file, so that it is held.
        let Some(module) = space.modules().get(allocator.module) else { continue };
        for hook in allocator.hooks.iter().filter(|hook| part.has(hook.shape)) {
            let mut add = |program, offset, cookie| {
                sites.push(site(module, program, hook.names.join(", "), offset, cookie));
            };
            let Some(convention) = hook.shape.convention() else {
                let (program, cookie) = match hook.shape {
                    Shape::Destroy => ("loss_enter", Counter::DestroyedHeaps as u64),
                    Shape::Unsized => ("loss_enter", Counter::UnsizedAllocations as u64),
                    Shape::Unmap => ("unmap_enter", Convention::default().of_allocator(number).cookie()),
                    _ if has_calls => (CALL, FREES),
                    _ => (FREE, 0),
                };
                add(program, hook.site.offset, cookie);
                continue;
            };
            let mut cookie = convention.of_allocator(number);
            if let Some(told) = hook.state_distance.and_then(|distance| cookie.with_state_at(distance)) {
                cookie = told;
            }
            if hook.jumps {
                cookie = cookie.jumps();
            }
            let is_mapping = Outcome::is_mapping(cookie.outcome());
            let mut entry = if is_mapping { "map_enter" } else { "alloc_enter" };
            match &hook.back {
                Back::Rets(offsets) => {
                    cookie = cookie.by_ret();
                    for &offset in offsets {
                        add("alloc_ret", offset, 0);
                    }
                }
                // Such functions do not throw, so that a hijacked return address is safe here.
                Back::ReturnProbe | Back::Unseen if has_calls && !is_mapping => entry = CALL,
                Back::ReturnProbe | Back::Unseen => add(RETURNS, hook.site.offset, 0),
            }
            add(entry, hook.site.offset, cookie.cookie());
        }
    }
    sites
}

/// Where a program goes in a gate, at a place in the gate's file, for a function of this shape that an allocator of this number has.
pub(super) fn behind_gate(
    shape: Shape,
    number: u8,
    stop: Stop,
    function: String,
    path: PathBuf,
    offset: u64,
) -> Site {
    // Its returns are seen in the gate, with its return address where the caller has put it.
    let convention = shape.convention().unwrap_or_default().of_allocator(number).by_ret();
    let (program, cookie) = match stop {
        Stop::Whole => (GATE_WHOLE, convention.cookie()),
        Stop::Call => (GATE_CALL, convention.cookie()),
        Stop::Return => (GATE_RETURN, 0),
        Stop::Free => (GATE_FREE, 0),
    };
    Site { program, cookie, function, path: "the gate".to_owned(), held_path: path, offset }
}

/// The loader as a module, and the function that it calls around every change of what is mapped; `None` where there is no such
/// loader.
pub(super) fn of_loader(space: &AddressSpace) -> Option<(usize, Site)> {
    let loader = loader::find(space)?;
    let module = space.modules().get(loader.module)?;
    module.held_path()?;
    let function = loader::ANNOUNCEMENT.to_owned();
    let offset = loader.announcement_offset;
    Some((loader.module, site(module, "loader_change", function, offset, loader.state_distance())))
}

fn site(module: &Module, program: &'static str, function: String, offset: u64, cookie: u64) -> Site {
    let held_path = module.held_path().unwrap_or_else(|| PathBuf::from(&module.path));
    Site { program, cookie, function, path: module.path.clone(), held_path, offset }
}
