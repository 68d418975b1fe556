//! `docs/benchmarks.md`: the table with how it came about.

/// The document.
pub(super) fn text(table: &str, machine: &str, rounds: u32, seconds: f64) -> String {
    let repeat = if rounds == 1 { "once".to_owned() } else { format!("{rounds} times") };
    format!(
        "# What heap profilers cost

<!-- Written by `cargo xtask bench`: a change belongs there. -->

Repeat this, as root on 64-bit x86 Debian, with `cargo xtask bench --rounds {rounds} --seconds {seconds}`: it installs what it
compares. `--only WORKLOAD` and `--profiler NAME` restrict it to those with this in their names, and then only print. What
heaptap alone takes is measured by others: `cargo xtask bench attach`, `idle`, `load`, `many` and `unwind`.

{machine}

Everything was measured {repeat}. In each round of a workload all profilers have their turn, one after the other, so that
a slow moment of the machine meets all; a cell is the median of the rounds with the least and the most. Only on a
machine that does nothing else, as its load average tells, are the numbers good for more than a look.

{table}

{HOW}"
    )
}

const HOW: &str = "## How it is measured

The target is started first, and says that it is ready; profilers that start it come before it in its command. Those that
attach do so then. The target works for some tenths of a second to warm up, and then for the time that counts. It measures
itself: neither starting nor attaching is part of a number.

| column | |
| --- | --- |
| ns for an operation | the target's own measure, by as many operations as fit into the time: in each thread where it has several, and for redis-server the reciprocal of requests/s |
| slowdown | the time of an operation by that of the native run of the same round |
| requests/s, p99 | what redis-benchmark says, of 50 connections; it needs CPU as well, on the same machine |
| profiler's CPU | of the profiler's own processes while the target works, in percent of one CPU. What it does inside the target, or in the kernel in the target's name, shows as slowdown |
| its memory | the most that the profiler's own processes have had until they ended, without what they share with the kernel; looked at every 20 ms while they end |
| the kernel's for it | the maps of kernel programs (BPF), by what the kernel has accounted for them |
| the target's growth | by how much the most memory that the target has had is more than in the native run of the same round: the only memory of profilers without a process of their own. The target's own ups and downs are in it, and that a fast one gets further, and so may need more, than a slow one |
| detached after | from SIGINT, while the target is at work, until the profiler has ended, its profile written and its probes out. The target runs on |
| notes | why there is no number: what the profiler says, or that it took too long: 30 s to attach or to detach, or 30 s more than the work should take |

The workloads:

- *pairs of malloc(64) and free* do nothing else, in so many threads, so many frames deep below the thread's own: the worst case.
- *mix of sizes*: an operation frees one of 50,000 blocks, any of them, and allocates another: most are small, one of a hundred
  has up to 64 KiB.
- *growth by realloc*: a buffer grows by half from 64 bytes to a MiB; an operation is one `realloc`.
- *redis-server*: Debian's, with jemalloc; `redis-benchmark -t set -c 50 -r 10000 -d 100`.
- *Python*: an operation makes a record, writes it as JSON and reads that. Most of Python's objects are in an allocator of
  its own, which takes its memory from the system in large pieces, and are seen by no profiler here.
- *SQLite*: an operation inserts a row into a table in memory that has an index, a hundred in a transaction.

The profilers:

- *heaptap* attaches: `heaptap record --exact --pid PID`, or with `--sample 512KiB`, or with `--gate=require`, which
  samples as often by code in front of the allocator.
- *bpftrace* attaches with a script that does the same: `malloc`, `calloc`, `realloc` and `free` by probes on entry and return, the
  blocks in a map by address, and sums by stack. It walks stacks by frame pointers, which none of these programs has: its stacks
  are wrong or end early, and so cost less than whole ones. Before it ends it looks up the names of all of them. It follows at most 262,144 blocks, in maps that are allocated at once.
- *heaptrack* attaches by gdb (`heaptrack --pid PID`), which its authors call unstable, or is preloaded (`heaptrack COMMAND`). It is
  run by bash, as Debian's sh leaves it in the target after Ctrl-C.
- *valgrind dhat* runs the program in an emulator, one thread at a time: `valgrind --tool=dhat COMMAND`. It sees the reads and
  writes of blocks as well.
- *gperftools* is preloaded (`LD_PRELOAD=libtcmalloc.so.4 HEAPPROFILE=FILE`), and is an allocator too: its slowdown is that of
  counting in one allocator against another without.
";
