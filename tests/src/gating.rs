//! Gates without heaptap's probes, put in by heaptap's library.

use profiler_user::gate::plan;
use profiler_user::gated::Plan;
use profiler_user::target::allocator::{self, Findings};
use profiler_user::target::given::Given;
use profiler_user::target::maps::{AddressSpace, Content};
use profiler_user::target::separate::Places;

/// The plans by which all of a process's allocators are gated.
pub fn plans(pid: u32, interval_bytes: u64) -> Vec<Plan> {
    let mut space = AddressSpace::default();
    space.refresh(pid).expect("its mappings");
    let mut findings = Findings::default();
    allocator::find(&space, &Places::of(pid, Given::default()), &mut findings);
    let allocators = findings.allocators.iter().filter(|allocator| !allocator.family.gives_mappings);
    let plans = allocators.map(|allocator| {
        let planned = plan::of(allocator, &space).unwrap_or_else(|all| panic!("{all:?}"));
        let names = planned.iter().map(|(place, _)| allocator.hooks[*place].names.join(", ")).collect();
        let ranges = || space.current().filter(|range| range.content == Content::Module(allocator.module));
        let start = ranges().map(|range| range.start).min().expect("it is mapped");
        let end = ranges().map(|range| range.end).max().expect("it is mapped");
        Plan {
            functions: planned.into_iter().map(|(_, function)| function).collect(),
            names,
            module: start..end,
            interval_bytes,
            blocks: 1 << 12,
        }
    });
    plans.collect()
}
