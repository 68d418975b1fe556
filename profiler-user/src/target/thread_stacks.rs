//! Where the threads of a process have their stacks, as far as that can be told.
//!
//! The kernel knows of the first thread's stack only. Of another thread it tells the stack pointer, where that thread waits
//! (`/proc/PID/task/TID/syscall`, proc_pid_syscall(5); `kstkesp` in `stat` is 0 since Linux 4.11 but in a process that dies).
//! A thread that runs at that moment tells nothing.

use procfs::process::LimitValue;

/// Threads beyond these are not asked.
const THREADS_LIMIT: usize = 8 << 10;

/// A thread that runs may wait a moment later.
const TRIES: usize = 3;

/// What glibc makes a stack where no limit is set is 2 MiB; this is what most systems set.
const DEFAULT_LIMIT_BYTES: u64 = 8 << 20;

/// The kernel joins neighbours of one kind to one mapping. What glibc's malloc maps is at least so large
/// (`DEFAULT_MMAP_THRESHOLD_MIN`), so that a mapping that is less than that too large for a stack holds no such block.
const JOINED_BYTES: u64 = 128 << 10;

/// Where the stack pointers of a process's threads were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StackPointers {
    /// By rising address.
    pointers: Vec<u64>,
    /// How many threads did not tell.
    pub(super) untold: usize,
    /// The largest mapping that is taken for a stack.
    mapping_limit_bytes: u64,
}

impl StackPointers {
    /// Asks the threads of a process, but for the first, whose stack the kernel names.
    pub(super) fn of(pid: u32) -> Self {
        let Some(process) = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok())
        else {
            return Self::default();
        };
        let limit = process.limits().ok().map(|limits| limits.max_stack_size.soft_limit);
        let threads =
            process.tasks().into_iter().flatten().flatten().filter(|thread| thread.tid != thread.pid);
        let told = threads.enumerate().map(|(at, thread)| {
            let tries = if at < THREADS_LIMIT { TRIES } else { 0 };
            (0..tries).find_map(|_| {
                // It is a line of numbers.
                pointer(&std::fs::read_to_string(format!("/proc/{pid}/task/{}/syscall", thread.tid)).ok()?)
            })
        });
        Self::from_told(told, limit)
    }

    /// With the stack pointers of some threads, and so many that told nothing.
    #[cfg(test)]
    pub(super) fn at(pointers: &[u64], untold: usize) -> Self {
        let told = pointers.iter().copied().map(Some).chain(std::iter::repeat_n(None, untold));
        Self::from_told(told, None)
    }

    fn from_told(told: impl Iterator<Item = Option<u64>>, limit: Option<LimitValue>) -> Self {
        let (mut pointers, mut untold) = (Vec::new(), 0);
        for pointer in told {
            pointer.map_or_else(|| untold += 1, |pointer| pointers.push(pointer));
        }
        pointers.sort_unstable();
        let limit = match limit {
            Some(LimitValue::Value(bytes)) => bytes,
            Some(LimitValue::Unlimited) | None => DEFAULT_LIMIT_BYTES,
        };
        Self { pointers, untold, mapping_limit_bytes: limit.saturating_add(JOINED_BYTES) }
    }

    /// Whether anonymous memory from `start` up to `end` is a thread's stack: a stack pointer lies in it, no access is
    /// allowed to what is below it, and it is no larger than a stack.
    pub(super) fn have(&self, start: u64, end: u64, is_guarded: bool) -> bool {
        let next = self.pointers.partition_point(|pointer| *pointer < start);
        is_guarded
            && end.saturating_sub(start) <= self.mapping_limit_bytes
            && self.pointers.get(next).is_some_and(|pointer| *pointer < end)
    }
}

/// The stack pointer in `running`, `-1 0xSP 0xPC`, or `NUMBER 0x… 0x… 0x… 0x… 0x… 0x… 0xSP 0xPC`.
fn pointer(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().rev();
    let (_code, pointer) = (fields.next()?, fields.next()?);
    u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_tells_its_stack_pointer_where_it_waits() {
        assert_eq!(pointer("running\n"), None);
        assert_eq!(pointer("-1 0x7ffd10 0x401000\n"), Some(0x7f_fd10));
        assert_eq!(pointer("202 0x1 0x80 0x0 0x0 0x0 0xffffffff 0x7f00a0 0x401000\n"), Some(0x7f_00a0));
        for line in ["", "\n", "x", "0x1", "1 2", "0x10000000000000000 0x1", "0x 0x"] {
            assert_eq!(pointer(line), None, "{line}");
        }
    }

    #[test]
    fn a_stack_is_guarded_has_a_stack_pointer_in_it_and_is_no_larger_than_stacks_are() {
        let told = [Some(0x5000), None, Some(0x1000)].into_iter();
        let pointers = StackPointers::from_told(told, Some(LimitValue::Value(0x10000)));
        assert_eq!(pointers.untold, 1);
        assert!(pointers.have(0x1000, 0x2000, true));
        assert!(pointers.have(0x4000, 0x6000, true));
        assert!(!pointers.have(0x1000, 0x2000, false), "nothing guards it");
        assert!(!pointers.have(0x2000, 0x5000, true), "no stack pointer lies in it");
        assert!(!pointers.have(0x6000, 0x7000, true));
        assert!(pointers.have(0x1000, 0x1000 + 0x10000 + JOINED_BYTES, true));
        assert!(!pointers.have(0x1000, 0x1001 + 0x10000 + JOINED_BYTES, true), "it is too large");
    }
}
