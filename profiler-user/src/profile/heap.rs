//! A heap becomes a profile: numbers from the source, names from the symbolizer.

use std::{collections::HashMap, time::SystemTime};

use profiler_common::{counters::REGISTRY, counters::Severity, heap::Totals, unwind::WalkEnd};

use super::{
    builder::{BuildError, LocationId, MappingId, ProfileBuilder},
    cost,
    entry::{Label, Line, Mapping},
    gate, memory, proto,
    sample_type::{DEFAULT_SAMPLE_TYPE, HEAP_SAMPLE_TYPES, HeapCount, SampleType},
};
use crate::{
    source::{Inheritance, RawEntry, RawFrame, RawHeap, StackRef, health::Health},
    symbolize::{self, Names},
    target::maps::{Content, Module, Range},
};

/// Functions that allocate on behalf of their callers, which is whom a heap profile is about.
///
/// Matched by viewers against whole names without parameters (`simplifyFunc` in google/pprof, profile/prune.go).
const DROP_FRAMES: &str = concat!(
    r"malloc|calloc|realloc|reallocarray|posix_memalign|aligned_alloc|memalign|valloc|pvalloc",
    r"|operator new(\[\])?",
    r"|(.*::)?__r(ust|dl|g)_(alloc|alloc_zeroed|realloc)|alloc::alloc::.*",
);

/// What stands in for stacks for which the kernel's table had no room.
const OVERFLOW_NAME: &str = "[stack not kept: the table of stacks was full]";

/// What stands in for stacks that the kernel could not send.
const UNSENT_NAME: &str = "[stack not received: the ring buffer was full]";

/// What stands above the outermost frame of a stack that is deeper than was kept.
const CUT_NAME: &str = "[stack cut here]";

/// Replaced programs that are named in the comments.
const FORMER: usize = 8;

/// The profile of a heap whose frames `names` has looked up.
///
/// # Errors
///
/// Only if the profile is put together wrongly, which is a defect of this function.
pub fn profile(heap: &RawHeap, names: &Names) -> Result<proto::Profile, BuildError> {
    let mut writer =
        Writer { heap, names, builder: ProfileBuilder::new(&HEAP_SAMPLE_TYPES), mappings: HashMap::new() };
    writer.describe();
    writer.map_executable();
    let stacks: Vec<_> = heap
        .stacks
        .iter()
        .map(|stack| {
            let mut locations: Vec<_> = stack.frames.iter().map(|frame| writer.location(frame)).collect();
            if stack.end == WalkEnd::Cut {
                locations.push(writer.stand_in(CUT_NAME));
            }
            locations
        })
        .collect();
    let (overflow, unsent) = (writer.stand_in(OVERFLOW_NAME), writer.stand_in(UNSENT_NAME));
    for entry in &heap.entries {
        match entry.stack {
            StackRef::Known(index) => {
                writer.sample(stacks.get(index).map_or(&[unsent][..], Vec::as_slice), entry)?;
            }
            StackRef::Overflow => writer.sample(&[overflow], entry)?,
            StackRef::Unsent => writer.sample(&[unsent], entry)?,
        }
    }
    Ok(writer.builder.finish())
}

/// The remarks about losses that a profile of this heap carries; empty where nothing was lost.
pub fn losses(heap: &RawHeap) -> Vec<String> {
    let unsent: u64 = heap
        .entries
        .iter()
        .filter(|entry| entry.stack == StackRef::Unsent && !entry.is_inherited)
        .map(|entry| entry.totals.alloc_objects)
        .sum();
    let mut losses = counters(heap, Severity::Loss, "loss");
    if unsent > 0 {
        losses.push(format!("loss: unsent_stacks = {unsent}: allocations whose stack did not reach heaptap"));
    }
    for path in &heap.unprobed {
        losses.push(format!(
            "loss: unprobed_allocator = 1: {path} has a malloc of its own that cannot be probed; only what it passes on to others is counted"
        ));
    }
    if !heap.blind.is_zero() {
        let blind_us = heap.blind.as_micros();
        losses.push(format!(
            "loss: blind_us = {blind_us}: microseconds in which calls were not seen, after the first thread ended or the program was replaced"
        ));
    }
    losses
}

/// How allocations were sampled, in words.
fn sampling(intervals_bytes: &[u64]) -> String {
    let intervals: Vec<_> = intervals_bytes.iter().map(u64::to_string).collect();
    format!(
        "sampling: one for every {} bytes allocated, on average: a value that comes from n samples has a standard error of about 1/sqrt(n) of it",
        intervals.join(", then ")
    )
}

fn counters(heap: &RawHeap, severity: Severity, word: &str) -> Vec<String> {
    REGISTRY
        .iter()
        .filter(|description| description.severity == severity)
        .map(|description| (description, heap.counters.get(description.counter)))
        .filter(|(_, count)| *count > 0)
        .map(|(description, count)| format!("{word}: {} = {count}: {}", description.name, description.help))
        .collect()
}

struct Writer<'heap> {
    heap: &'heap RawHeap,
    names: &'heap Names,
    builder: ProfileBuilder,
    mappings: HashMap<usize, MappingId>,
}

impl Writer<'_> {
    /// Everything about the profile as a whole.
    fn describe(&mut self) {
        let heap = self.heap;
        self.builder.default_sample_type(DEFAULT_SAMPLE_TYPE);
        // Where every byte allocated is counted, it is one byte from one event to the next.
        let interval_bytes = heap.intervals_bytes.last().copied().unwrap_or(1);
        self.builder.period(SampleType { name: "space", unit: "bytes" }, clamp(interval_bytes));
        let taken = heap.started + heap.duration;
        let unix_time = taken.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.builder.time(clamp(unix_time.as_nanos()), clamp(heap.duration.as_nanos()));
        self.builder.drop_frames(DROP_FRAMES, "");
        self.builder.comment(&format!(
            "heaptap {}: process {} ({}), {} since the recording began",
            env!("CARGO_PKG_VERSION"),
            heap.pid,
            heap.comm,
            if heap.is_sampled() { "estimates from a sample of the allocations" } else { "every allocation" }
        ));
        if heap.is_sampled() {
            self.builder.comment(&sampling(&heap.intervals_bytes));
        }
        if let Some(container) = &heap.container {
            self.builder.comment(&format!("container: {container}"));
        }
        if let Some(Inheritance { parent, objects, bytes }) = heap.inheritance {
            self.builder.comment(&format!(
                "fork: a child of process {parent}, from which it had {objects} blocks of {bytes} bytes: in use where it has not freed them, and not among alloc_*"
            ));
        }
        for former in heap.former.iter().take(FORMER) {
            self.builder.comment(&format!("exec: {former} was replaced; what it had is no longer in use"));
        }
        if let Some(others @ 1..) = heap.former.len().checked_sub(FORMER) {
            self.builder
                .comment(&format!("exec: {others} other programs followed, and were replaced as well"));
        }
        let health = Health::of(heap);
        for (end, allocations) in &health.by_end {
            self.builder.comment(&format!("allocations: {allocations} {}", end.text()));
        }
        for ((end, file), allocations) in &health.broken {
            self.builder.comment(&format!("broken: {allocations} in {file}: {}", end.text()));
        }
        for remark in self.names.remarks() {
            self.builder.comment(&format!("names may be missing of {remark}"));
        }
        for comment in losses(heap).into_iter().chain(counters(heap, Severity::Normal, "counter")) {
            self.builder.comment(&comment);
        }
        let costs = cost::comments(heap.cost.as_ref()).into_iter().chain(gate::comments(heap.gate.as_ref()));
        for comment in memory::comments(heap).into_iter().chain(costs) {
            self.builder.comment(&comment);
        }
    }

    /// The executable is named even where no stack reaches it.
    fn map_executable(&mut self) {
        let is_executable = |range: &Range| {
            let Content::Module(module) = range.content else { return false };
            self.heap.space.modules().get(module).is_some_and(|module| module.path == self.heap.exe)
        };
        if let Some(index) = self.heap.space.ranges().iter().position(is_executable)
            && let Some(id) = self.mapping(index)
        {
            self.builder.main_mapping(id);
        }
    }

    fn mapping(&mut self, index: usize) -> Option<MappingId> {
        if let Some(&id) = self.mappings.get(&index) {
            return Some(id);
        }
        let range = self.heap.space.ranges().get(index)?;
        let build_id;
        let (file, build_id, is_file) = match &range.content {
            Content::Module(module) => {
                let Module { path, build_id: id, .. } = self.heap.space.modules().get(*module)?;
                build_id = id.as_deref().map(hexadecimal).unwrap_or_default();
                (path.as_str(), build_id.as_str(), true)
            }
            Content::Unnamed(name) => (name.as_str(), "", false),
        };
        let mapping = Mapping {
            start: range.start,
            limit: range.end,
            file_offset_bytes: range.offset,
            file,
            build_id,
            looked_for_inlined: is_file,
        };
        let id = self.builder.mapping(&mapping);
        self.mappings.insert(index, id);
        Some(id)
    }

    fn location(&mut self, frame: &RawFrame) -> LocationId {
        let mapping = frame.range().and_then(|index| self.mapping(index));
        let names = self.names.lines(frame, self.heap.space.ranges());
        let lines: Vec<_> = names.iter().map(line).collect();
        // A return address may already belong to the next line; the byte before it is of the call.
        self.builder.location(frame.address.saturating_sub(1), mapping, &lines)
    }

    fn stand_in(&mut self, name: &str) -> LocationId {
        self.builder.location(0, None, &[Line { function: name, system_name: name, ..Line::default() }])
    }

    fn sample(&mut self, stack: &[LocationId], entry: &RawEntry) -> Result<(), BuildError> {
        let Totals { freed_objects, freed_bytes, alloc_objects, alloc_bytes, sent: _ } = entry.totals;
        let mut count = HeapCount {
            alloc_objects: clamp(alloc_objects),
            alloc_bytes: clamp(alloc_bytes),
            freed_objects: clamp(freed_objects),
            freed_bytes: clamp(freed_bytes),
        };
        if entry.is_inherited {
            // In use without having been allocated by the process.
            count.freed_objects = count.freed_objects.saturating_sub(count.alloc_objects);
            count.freed_bytes = count.freed_bytes.saturating_sub(count.alloc_bytes);
            (count.alloc_objects, count.alloc_bytes) = (0, 0);
        }
        let mean_bytes = alloc_bytes.checked_div(alloc_objects).unwrap_or_default();
        let allocator =
            entry.allocator.checked_sub(1).and_then(|place| self.heap.allocators.get(usize::from(place)));
        let pid = self.heap.pid.to_string();
        let mut labels = vec![
            Label::Number { key: "bytes", value: clamp(mean_bytes), unit: "bytes" },
            Label::Text { key: "pid", value: &pid },
            Label::Text { key: "comm", value: &self.heap.comm },
        ];
        labels.extend(allocator.map(|value| Label::Text { key: "allocator", value }));
        labels.extend(self.heap.container.as_deref().map(|value| Label::Text { key: "container", value }));
        self.builder.sample(stack, &count.values(), &labels)
    }
}

fn line(line: &symbolize::Line) -> Line<'_> {
    Line {
        function: &line.function.name,
        system_name: &line.function.system_name,
        filename: &line.function.file,
        line: i64::from(line.number),
        ..Line::default()
    }
}

/// A number as pprof has them, which are signed.
fn clamp(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use profiler_common::counters::Counter;

    use super::*;
    use crate::source::RawStack;

    fn entry(stack: StackRef, objects: u64, bytes: u64, freed: u64) -> RawEntry {
        let freed_bytes = bytes / objects * freed;
        let totals =
            Totals { freed_objects: freed, freed_bytes, alloc_objects: objects, alloc_bytes: bytes, sent: 1 };
        RawEntry { stack, allocator: 1, is_inherited: false, totals }
    }

    fn comments(profile: &proto::Profile) -> Vec<&str> {
        let string = |index: &i64| profile.string_table[usize::try_from(*index).unwrap()].as_str();
        profile.comment.iter().map(string).collect()
    }

    #[test]
    fn values_labels_and_stand_ins_come_out_as_the_heap_has_them() {
        let frame = |address| RawFrame::new(address, None);
        let mut heap = RawHeap::empty();
        heap.stacks = vec![
            RawStack { frames: [frame(0x11), frame(0x21)].into(), end: WalkEnd::Whole },
            RawStack { frames: [frame(0x11)].into(), end: WalkEnd::Cut },
        ];
        heap.entries = vec![
            entry(StackRef::Known(0), 4, 400, 1),
            entry(StackRef::Known(1), 1, 7, 0),
            entry(StackRef::Overflow, 2, 20, 2),
            entry(StackRef::Unsent, 3, 30, 0),
        ];
        heap.counters.0[Counter::TotalsFull as usize] = 2;
        heap.counters.0[Counter::UnknownFrees as usize] = 9;
        let profile = profile(&heap, &Names::default()).unwrap();
        let values: Vec<_> = profile.sample.iter().map(|sample| sample.value.clone()).collect();
        assert_eq!(values, [[4, 400, 3, 300], [1, 7, 1, 7], [2, 20, 0, 0], [3, 30, 3, 30]]);
        assert_eq!(profile.sample[0].label[0].num, 100, "bytes of a block");
        assert_eq!(profile.sample[1].location_id.len(), 2, "a cut stack has a mark above it");
        let comments = comments(&profile);
        assert!(
            comments.iter().any(|comment| comment.starts_with("loss: totals_full = 2: ")),
            "{comments:?}"
        );
        assert!(
            comments.iter().any(|comment| comment.starts_with("loss: unsent_stacks = 3: ")),
            "{comments:?}"
        );
        assert!(
            comments.iter().any(|comment| comment.starts_with("counter: unknown_frees = 9: ")),
            "{comments:?}"
        );
        assert!(comments.contains(&"allocations: 4 whole"), "{comments:?}");
    }

    #[test]
    fn what_a_child_has_from_its_parent_is_in_use_and_not_allocated() {
        let mut heap = RawHeap::empty();
        heap.entries = vec![RawEntry { is_inherited: true, ..entry(StackRef::Overflow, 4, 400, 1) }];
        heap.inheritance = Some(Inheritance::of(7, &heap.entries));
        let profile = profile(&heap, &Names::default()).unwrap();
        assert_eq!(profile.sample[0].value, [0, 0, 3, 300]);
        let said = |comment: &&str| {
            comment.starts_with("fork: a child of process 7, from which it had 4 blocks of 400 bytes")
        };
        assert!(comments(&profile).iter().any(said), "{:?}", comments(&profile));
    }

    #[test]
    fn a_container_is_in_the_comments_and_a_label_of_every_sample() {
        let mut heap = RawHeap::empty();
        heap.entries = vec![entry(StackRef::Overflow, 2, 20, 2), entry(StackRef::Unsent, 3, 30, 0)];
        let without = profile(&heap, &Names::default()).unwrap();
        heap.container = Some("0123abcd".to_owned());
        let profile = profile(&heap, &Names::default()).unwrap();
        assert!(comments(&profile).contains(&"container: 0123abcd"));
        let string = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
        for (sample, before) in profile.sample.iter().zip(&without.sample) {
            let labels: Vec<_> =
                sample.label.iter().map(|label| (string(label.key), string(label.str))).collect();
            assert_eq!(labels.last(), Some(&("container", "0123abcd")), "{labels:?}");
            assert_eq!(before.label.len() + 1, labels.len());
        }
    }

    #[test]
    fn addresses_are_those_of_the_calls() {
        let mut heap = RawHeap::empty();
        let frames = vec![RawFrame::new(0x1005, None)];
        heap.stacks = vec![RawStack { frames: frames.into(), end: WalkEnd::Whole }];
        heap.entries = vec![entry(StackRef::Known(0), 1, 1, 0)];
        let profile = profile(&heap, &Names::default()).unwrap();
        assert_eq!(profile.location[0].address, 0x1004);
    }

    #[test]
    fn the_readme_explains_every_counter_and_loss() {
        let readme = include_str!("../../../README.md");
        for description in &REGISTRY {
            let row = format!("| `{}` | {} |", description.name, description.help);
            assert!(readme.contains(&row), "no row `{row}`");
        }
        for loss in ["unsent_stacks", "unprobed_allocator", "blind_us"] {
            assert!(readme.contains(&format!("| `{loss}` |")), "{loss}");
        }
    }

    #[test]
    fn the_pattern_of_frames_to_drop_is_a_regular_expression() {
        let pattern = regex::Regex::new(&format!("^(?:{DROP_FRAMES})$")).unwrap();
        for name in ["malloc", "operator new", "operator new[]", "__rust_alloc", "__rustc::__rust_realloc"] {
            assert!(pattern.is_match(name), "{name}");
        }
        for name in ["parse_malloc", "my_alloc", "operator new_thing", "free"] {
            assert!(!pattern.is_match(name), "{name}");
        }
    }
}
