//! Why a profile and `top` differ, in numbers and in words.

use std::fmt::Write as _;

use crate::{
    output::unit::ValueFormat,
    source::{
        RawHeap,
        memory::{Parts, Resident},
    },
};

/// The comments that a profile of this heap carries, such as `memory: resident_bytes=… inuse_bytes=…`; none where nothing is known.
///
/// Two lines, for pprof prints all comments above every table. `resident_bytes` are `inuse_bytes` less `absent_bytes` and all
/// that follow in the first. What may be left out is 0, but for `stack_bytes`: without it, stacks are not told from other
/// anonymous memory.
pub fn comments(heap: &RawHeap) -> Vec<String> {
    let Some(resident) = &heap.memory else { return Vec::new() };
    let Resident { began, now, inuse_bytes, age } = resident;
    let parts = resident.parts(heap);
    let mut first =
        format!("memory: resident_bytes={} inuse_bytes={}", now.resident_bytes(), parts.inuse_bytes);
    let mut also = |name: &str, number: Option<u64>| {
        if let Some(number) = number {
            // Writing to a string does not fail.
            let _ = write!(first, " {name}={number}");
        }
    };
    let unless_zero = |number: u64| (number > 0).then_some(number);
    also("absent_bytes", unless_zero(parts.absent_bytes));
    also("earlier_bytes", Some(parts.earlier_bytes));
    also("grown_bytes", Some(parts.grown_bytes));
    also("file_bytes", Some(parts.file_bytes));
    also("stack_bytes", now.stacks.map(|stacks| stacks.bytes));
    also("shared_bytes", Some(parts.shared_bytes));
    also("other_bytes", Some(parts.other_bytes));
    let (began_bytes, anonymous_bytes) = (began.resident_bytes(), began.anonymous_bytes);
    let mut second =
        format!("memory: began_resident_bytes={began_bytes} began_anonymous_bytes={anonymous_bytes}");
    let running = now.stacks.map_or(0, |stacks| stacks.untold_threads);
    let sometimes = [
        ("swapped_bytes", u128::from(now.swapped_bytes)),
        ("hugetlb_bytes", u128::from(now.hugetlb_bytes)),
        ("running_threads", running as u128),
    ];
    for (name, number) in sometimes.into_iter().filter(|(_, number)| *number > 0) {
        let _ = write!(second, " {name}={number}");
    }
    if inuse_bytes.is_some() {
        let _ = write!(second, " age_ms={}", age.as_millis());
    }
    vec![first, second]
}

/// The same for people, in a few lines; none where nothing is known.
pub fn lines(heap: &RawHeap) -> Vec<String> {
    let Some(resident) = &heap.memory else { return Vec::new() };
    let Resident { began, now, inuse_bytes, age } = resident;
    let parts = resident.parts(heap);
    let when = match inuse_bytes {
        None => "when the recording ended".to_owned(),
        Some(_) => format!("{:.2} s before the recording ended", age.as_secs_f64()),
    };
    let mut lines = vec![format!(
        "memory {when}: {} resident (RSS); it began with {}",
        show(now.resident_bytes()),
        show(began.resident_bytes())
    )];
    let mut line = |bytes, text: &str| lines.push(format!("  {:>10}  {text}", show(bytes)));
    line(parts.inuse_bytes - parts.absent_bytes, &profiled(heap, resident, &parts));
    if parts.earlier_bytes == began.anonymous_bytes {
        line(parts.earlier_bytes, "anonymous when it began: allocated earlier, or free; not in this profile");
    } else {
        let text = format!(
            "left of {} that were anonymous when it began: the rest was freed or used again, or not all in use was written to",
            show(began.anonymous_bytes)
        );
        line(parts.earlier_bytes, &text);
    }
    if parts.grown_bytes > 0 {
        let or_stacks = if now.stacks.is_none() { ", stacks" } else { "" };
        let text =
            format!("anonymous since: the allocator's overhead, freed but kept, mapped otherwise{or_stacks}");
        line(parts.grown_bytes, &text);
    }
    let mut rest = "files".to_owned();
    if let Some(stacks) = now.stacks {
        let _ = write!(rest, "; {} stacks", show(stacks.bytes));
        if stacks.untold_threads > 0 {
            let _ = write!(rest, " (but for {}: theirs are anonymous)", running(stacks.untold_threads));
        }
    }
    let _ = write!(rest, "; {} shared", show(parts.shared_bytes));
    if parts.other_bytes > 0 {
        let _ = write!(rest, "; {} the kernel's", show(parts.other_bytes));
    }
    line(parts.file_bytes, &rest);
    for (bytes, what) in [(now.swapped_bytes, "swapped out"), (now.hugetlb_bytes, "huge pages of hugetlbfs")]
    {
        if bytes > 0 {
            lines.push(format!("  and {} {what}, which RSS leaves out", show(bytes)));
        }
    }
    lines
}

fn profiled(heap: &RawHeap, resident: &Resident, parts: &Parts) -> String {
    let mut text = if parts.absent_bytes == 0 {
        "in use of what was allocated since it began".to_owned()
    } else {
        format!(
            "of {} in use that were allocated since it began; the other {} were never written to, or are swapped out",
            show(parts.inuse_bytes),
            show(parts.absent_bytes)
        )
    };
    match resident.inuse_bytes {
        None => text.push_str(": this profile"),
        Some(_) => {
            let _ = write!(text, "; {} at the end: this profile", show(heap.inuse_bytes()));
        }
    }
    text
}

fn running(threads: usize) -> String {
    if threads == 1 { "1 running thread".to_owned() } else { format!("{threads} running threads") }
}

fn show(bytes: u64) -> String {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    ValueFormat::of_value(bytes, "bytes").show(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use profiler_common::heap::Totals;

    use super::*;
    use crate::{
        source::{RawEntry, StackRef},
        target::memory::{Stacks, Usage},
    };

    const MIB: u64 = 1 << 20;

    fn heap(inuse_bytes: u64, memory: Resident) -> RawHeap {
        let totals = Totals { alloc_objects: 1, alloc_bytes: inuse_bytes, ..Totals::default() };
        let entries = vec![RawEntry { stack: StackRef::Unsent, allocator: 0, is_inherited: false, totals }];
        RawHeap { entries, memory: Some(memory), ..RawHeap::empty() }
    }

    fn usage(anonymous_bytes: u64) -> Usage {
        Usage {
            anonymous_bytes,
            stacks: Some(Stacks { bytes: 2 * MIB, untold_threads: 0 }),
            file_bytes: 28 * MIB,
            ..Usage::default()
        }
    }

    fn resident(began: u64, now: u64) -> Resident {
        Resident { began: usage(began * MIB), now: usage(now * MIB), inuse_bytes: None, age: Duration::ZERO }
    }

    #[test]
    fn the_closing_lines_add_up() {
        assert_eq!(
            lines(&heap(200 * MIB, resident(120, 341))),
            [
                "memory when the recording ended: 371MB resident (RSS); it began with 150MB",
                "       200MB  in use of what was allocated since it began: this profile",
                "       120MB  anonymous when it began: allocated earlier, or free; not in this profile",
                "        21MB  anonymous since: the allocator's overhead, freed but kept, mapped otherwise",
                "        28MB  files; 2MB stacks; 0 shared",
            ]
        );
    }

    #[test]
    fn what_is_in_use_and_not_resident_is_said_to_be() {
        let mut memory = resident(120, 50);
        memory.now.swapped_bytes = 30 * MIB;
        memory.now.hugetlb_bytes = 4 * MIB;
        memory.now.other_bytes = 4 << 10;
        memory.now.stacks = Some(Stacks { bytes: MIB, untold_threads: 1 });
        assert_eq!(
            lines(&heap(200 * MIB, memory)),
            [
                "memory when the recording ended: 79MB resident (RSS); it began with 150MB",
                "        50MB  of 200MB in use that were allocated since it began; the other 150MB were never written to, \
                 or are swapped out: this profile",
                "           0  left of 120MB that were anonymous when it began: the rest was freed or used again, \
                 or not all in use was written to",
                "        28MB  files; 1MB stacks (but for 1 running thread: theirs are anonymous); 0 shared; 4kB the kernel's",
                "  and 30MB swapped out, which RSS leaves out",
                "  and 4MB huge pages of hugetlbfs, which RSS leaves out",
            ]
        );
    }

    #[test]
    fn numbers_from_before_the_end_say_so() {
        let mut memory = resident(120, 341);
        memory.age = Duration::from_millis(640);
        memory.inuse_bytes = Some(190 * MIB);
        memory.now.stacks = None;
        let heap = heap(200 * MIB, memory);
        let lines = lines(&heap);
        assert!(
            lines[0].starts_with("memory 0.64 s before the recording ended: 369MB resident"),
            "{lines:#?}"
        );
        assert!(
            lines[1].ends_with(
                "190MB  in use of what was allocated since it began; 200MB at the end: this profile"
            ),
            "{lines:#?}"
        );
        assert!(lines[3].ends_with(
            "31MB  anonymous since: the allocator's overhead, freed but kept, mapped otherwise, stacks"
        ));
        assert!(lines[4].ends_with("28MB  files; 0 shared"), "{lines:#?}");
        assert_eq!(
            comments(&heap),
            [
                "memory: resident_bytes=386924544 inuse_bytes=199229440 earlier_bytes=125829120 grown_bytes=32505856 \
                 file_bytes=29360128 shared_bytes=0 other_bytes=0",
                "memory: began_resident_bytes=157286400 began_anonymous_bytes=125829120 age_ms=640",
            ]
        );
    }

    #[test]
    fn comments_have_bytes_and_leave_out_what_is_not_there() {
        assert_eq!(
            comments(&heap(200 * MIB, resident(120, 341))),
            [
                "memory: resident_bytes=389021696 inuse_bytes=209715200 earlier_bytes=125829120 grown_bytes=22020096 \
                 file_bytes=29360128 stack_bytes=2097152 shared_bytes=0 other_bytes=0",
                "memory: began_resident_bytes=157286400 began_anonymous_bytes=125829120",
            ]
        );
        let mut memory = resident(120, 150);
        memory.now.swapped_bytes = 3;
        memory.now.hugetlb_bytes = 5;
        memory.now.stacks = Some(Stacks { bytes: 0, untold_threads: 7 });
        assert_eq!(
            comments(&heap(200 * MIB, memory)),
            [
                "memory: resident_bytes=186646528 inuse_bytes=209715200 absent_bytes=52428800 earlier_bytes=0 \
                 grown_bytes=0 file_bytes=29360128 stack_bytes=0 shared_bytes=0 other_bytes=0",
                "memory: began_resident_bytes=157286400 began_anonymous_bytes=125829120 swapped_bytes=3 \
                 hugetlb_bytes=5 running_threads=7",
            ]
        );
    }

    #[test]
    fn where_nothing_is_known_nothing_is_said() {
        assert_eq!(comments(&RawHeap::empty()), [""; 0]);
        assert_eq!(lines(&RawHeap::empty()), [""; 0]);
    }
}
