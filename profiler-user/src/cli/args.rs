//! What can be typed.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use profiler_common::limits::MAX_FRAMES;

use super::{
    limit::{self, MaxOverhead},
    report::ReportArgs,
};
use crate::{
    source::uprobe::{Capacities, DEFAULT_INTERVAL_BYTES, GateWish, LONGEST_INTERVAL_BYTES, Subject},
    symbolize::{self, reader::COMMAND},
    target::given::{Given, readable_elf},
};

/// A heap profiler that works from outside the program.
///
/// heaptap attaches to a running process, counts what its allocator hands out and takes back, by call stack, and
/// writes profiles that `go tool pprof` and every other pprof viewer open. The program needs no restart, no code
/// change and no preloaded library. Needs root.
#[derive(Debug, Parser)]
#[command(
    name = "heaptap",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  heaptap record --pid 1234 --duration 30s   half a minute of a running process
  heaptap record -- ./server --port 8080     a command, from its first allocation on
  heaptap serve --pid 1234                   for `go tool pprof` and the like
  heaptap report heap.server.1234.pb.gz      look at a profile again
  heaptap inspect --pid 1234                 what would be probed, and where"
)]
pub struct Cli {
    /// What to log to stderr: error, warn, info, debug or trace. From debug on, the kernel side logs too.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    pub log: tracing::level_filters::LevelFilter,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record the heap of a process into a pprof profile.
    Record(RecordArgs),
    /// Serve the heap of a process over HTTP, the way Go programs serve their own.
    Serve(ServeArgs),
    /// Show what would be probed in a process, and where; touches nothing.
    Inspect(InspectArgs),
    /// Take out of a process what a heaptap that was killed has left there.
    Detach(DetachArgs),
    /// Check that this machine has what heaptap needs.
    Doctor,
    /// Show a saved profile, of heaptap or of anybody else.
    Report(ReportArgs),
    /// Read debug information for another heaptap.
    #[command(name = COMMAND, hide = true)]
    ReadDebugInformation(ReaderArgs),
}

/// Read the debug information of the file that is the standard input, for the heaptap that started this one.
#[derive(Clone, Debug, Args)]
pub struct ReaderArgs {
    /// Where the files are looked for that debug files share.
    #[arg(long = "debug-dir")]
    pub debug_dirs: Vec<PathBuf>,
}

/// Record the heap of a process into a pprof profile.
///
/// Counts every allocation from the moment the probes are in. Blocks allocated before that are not known; their
/// frees are counted, not guessed. Ends with Ctrl-C, after --duration, or with the process.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 when a profile was written, 1 when it is empty, 2 when something failed.
A second Ctrl-C ends heaptap at once, without a profile. The process goes on in any case.")]
pub struct RecordArgs {
    /// The process to attach to.
    #[arg(long, value_name = "PID", required_unless_present = "command", conflicts_with = "command")]
    pub pid: Option<u32>,

    /// A command to start and record from its first allocation on, behind `--`.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,

    /// How long to record, such as 30s or 5m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,

    /// Where to write the profile [default: heap.NAME.PID.pb.gz].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Replace the output files if they are there.
    #[arg(long)]
    pub force: bool,

    /// Which allocations to count.
    #[command(flatten)]
    pub sample: SampleArgs,

    /// Whether to count in front of the probes.
    #[command(flatten)]
    pub gate: GateArgs,

    /// What the recording may cost the process, in percent of one CPU, or `off`. Where it costs more for three seconds,
    /// fewer allocations are counted, and where that is not enough, it ends with what was collected.
    #[arg(long, value_name = "PERCENT", default_value_t = MaxOverhead::Off, conflicts_with = "exact")]
    pub max_overhead: MaxOverhead,

    /// What to count besides.
    #[command(flatten)]
    pub mmap: MmapArgs,

    /// Also record the processes that it forks, and those that they fork, each into a profile of its own: FILE with the process's PID
    /// before .pb.gz. What a child has from its parent is known; each fork takes longer, by some 30 ms (less with a
    /// smaller --max-live) and a microsecond for each live block.
    #[arg(long, conflicts_with = "capture_stacks")]
    pub follow_forks: bool,

    /// Start the command as root even under sudo, not as the user who called it.
    #[arg(long, requires = "command")]
    pub as_root: bool,

    /// Keep every new stack, with the registers and the memory that it was found in, to look into why stacks break. The
    /// file then holds whatever the program had on its stacks. Costs the program some 20 µs a stack.
    #[arg(long, value_name = "FILE")]
    pub capture_stacks: Option<PathBuf>,

    /// Say nothing but that the recording has begun, what was lost, and the closing table.
    #[arg(long, short)]
    pub quiet: bool,

    /// Where to look for names.
    #[command(flatten)]
    pub symbols: SymbolArgs,

    /// How much the kernel side may keep.
    #[command(flatten)]
    pub capacities: CapacityArgs,
}

/// Serve the heap of a process over HTTP, the way Go programs serve their own.
///
/// `go tool pprof http://localhost:6060/debug/pprof/heap` then works on a program that knows nothing of pprof. A
/// fetch neither stops nor resets the recording, so that two of them can be compared with -base.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The process to attach to.
    #[arg(long, value_name = "PID")]
    pub pid: u32,

    /// The address to listen on, which must be a loopback address; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6060")]
    pub listen: SocketAddr,

    /// Which allocations to count.
    #[command(flatten)]
    pub sample: SampleArgs,

    /// Whether to count in front of the probes.
    #[command(flatten)]
    pub gate: GateArgs,

    /// What the recording may cost the process, in percent of one CPU, or `off`. Where it costs more for three seconds,
    /// fewer allocations are counted (not with --exact), and where that is not enough, counting ends, and what was collected is
    /// served on. A tenth of a CPU, some 20,000 allocations and frees a second, is
    /// what one thread of a service can lose without being noticed by who waits for it.
    #[arg(long, value_name = "PERCENT", default_value_t = limit::SERVED)]
    pub max_overhead: MaxOverhead,

    /// What to count besides.
    #[command(flatten)]
    pub mmap: MmapArgs,

    /// Where to look for names.
    #[command(flatten)]
    pub symbols: SymbolArgs,

    /// How much the kernel side may keep.
    #[command(flatten)]
    pub capacities: CapacityArgs,
}

/// Show what would be probed in a process, and where; touches nothing.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The process to look at.
    #[arg(long, value_name = "PID")]
    pub pid: u32,

    /// Also say of each function whether calls could be counted in front of the probe, by code in the process, which instructions a
    /// jump there would take the place of, and why not.
    #[arg(long)]
    pub gate: bool,

    /// Where to look for names.
    #[command(flatten)]
    pub symbols: SymbolArgs,
}

/// Take out of a process what a heaptap that was killed has left there.
///
/// Only `--gate` ever writes into a process, and only a heaptap that is killed leaves that there. The process runs on as it should
/// with it, some 2 ns slower for each allocation.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The process.
    #[arg(long, value_name = "PID")]
    pub pid: u32,
}

/// Whether to count in front of the probes.
#[derive(Clone, Copy, Debug, Args)]
pub struct GateArgs {
    /// Sample by code that is put into the process, in front of its allocator's functions, so that calls outside of the sample cost it
    /// some 2 ns instead of a trap. Writes into the process: a jump at the beginning of each function, a page of code, and data; all
    /// of it is taken out at the end. One sample for every --sample bytes, or 512KiB. Where that cannot be done, ordinary
    /// probes are used, and it is said why; with `require` that is an error.
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "if-possible",
          conflicts_with = "exact")]
    pub gate: Option<GateChoice>,
}

/// What becomes of a recording where there can be no gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GateChoice {
    /// It is made by ordinary probes.
    IfPossible,
    /// There is none.
    Require,
}

impl GateArgs {
    /// What is wanted, and the interval to sample at.
    pub fn with(self, sample: SampleArgs) -> (Option<GateWish>, Option<u64>) {
        let Some(choice) = self.gate else { return (None, sample.sample) };
        let interval_bytes = sample.sample.unwrap_or(DEFAULT_INTERVAL_BYTES);
        let is_required = choice == GateChoice::Require;
        (Some(GateWish { interval_bytes, is_required }), Some(interval_bytes))
    }
}

/// Which allocations to count.
#[derive(Clone, Copy, Debug, Args)]
pub struct SampleArgs {
    /// Count every allocation. This is the default.
    #[arg(long, conflicts_with = "sample")]
    pub exact: bool,

    /// Count a sample of the allocations, one for every SIZE bytes on average, such as 512KiB, and estimate the rest from it:
    /// without bias, and with an error that the profile tells. Takes less of the program's time, above all where stacks are deep.
    #[arg(long, value_name = "SIZE", value_parser = interval_bytes)]
    pub sample: Option<u64>,
}

/// What to count besides what the allocators give.
#[derive(Clone, Copy, Debug, Args)]
pub struct MmapArgs {
    /// Also count the anonymous memory that the program maps itself (mmap, mremap, munmap, brk), under the allocator `mmap`.
    /// These are whole pages as they were asked for, also where none was ever touched.
    #[arg(long)]
    pub mmap: bool,
}

/// Where to look for names; `DEBUGINFOD_URLS` names servers to ask as well.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Names")]
pub struct SymbolArgs {
    /// A directory of separate debug files, searched like /usr/lib/debug and before it, for names and for unwind
    /// information; can be given several times.
    #[arg(long = "debug-dir", value_name = "DIR")]
    pub debug_dirs: Vec<PathBuf>,

    /// The file of the program, or of a library of it, as it was before it was stripped, or its debug file: for names, unwind
    /// information, and to find an allocator in a static program; can be given several times.
    #[arg(long = "symbols", value_name = "FILE", value_parser = readable_elf)]
    pub files: Vec<PathBuf>,
}

impl From<SymbolArgs> for Given {
    fn from(SymbolArgs { debug_dirs: directories, files }: SymbolArgs) -> Self {
        Self { directories, files }
    }
}

impl From<SymbolArgs> for symbolize::Options {
    fn from(args: SymbolArgs) -> Self {
        // The program that is running, whatever has become of its file.
        Self { given: args.into(), reader: Some(PathBuf::from("/proc/self/exe")) }
    }
}

/// How much the kernel side may keep.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Capacities")]
pub struct CapacityArgs {
    /// The most memory that heaptap may take, with what the kernel keeps for it, such as 512MiB. What has no room is counted,
    /// and said: blocks that inuse_* lacks, and allocations without their stack. With --follow-forks each process's
    /// stacks are beside it [default: a quarter of the machine's, from 256MiB to 2GiB].
    #[arg(long, value_name = "SIZE", value_parser = memory_bytes)]
    pub memory_limit: Option<u64>,

    /// Live blocks to follow; beyond that inuse_* falls short, and says by how much [default: one for every 64 bytes of
    /// the process, from 2097152, or 1048576 where it sleeps, to 16777216, as far as the memory goes, and in a sample no more than
    /// it has of 64GiB, or of 64 times what the process has, but 131072 at least].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub max_live: Option<u32>,

    /// Stacks, times the block sizes of each, to tell apart; beyond that allocations are counted without their stack
    /// [default: 262144, or 131072 for a process that sleeps, as far as the memory goes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_stacks: Option<u32>,

    /// Frames to keep of a stack, counted from the leaf; deeper ones are cut, and say so.
    #[arg(long, value_name = "N", default_value_t = Capacities::default().stack_depth,
          value_parser = clap::value_parser!(u32).range(1..=MAX_FRAMES as i64))]
    pub stack_depth: u32,

    /// Size of the buffer for new stacks, in bytes: a power of two, at least 4096, and at least 65536 for stacks of more than 12 KiB to
    /// be known [default: 33554432, or 8388608 for a process that sleeps, but no more than an eighth of the memory].
    #[arg(long, value_name = "BYTES", value_parser = ring_bytes)]
    pub ring_bytes: Option<u32>,
}

impl CapacityArgs {
    /// What to set up for it.
    pub fn for_subject(self, subject: Subject) -> Capacities {
        let Self { memory_limit, max_live, max_stacks, stack_depth, ring_bytes } = self;
        let limit_bytes = memory_limit.unwrap_or_else(|| {
            let machine_bytes =
                <procfs::Meminfo as procfs::Current>::current().map_or(0, |memory| memory.mem_total);
            Capacities::default_memory_bytes(machine_bytes)
        });
        let fitting = Capacities::within(limit_bytes, subject);
        Capacities {
            live_blocks: max_live.unwrap_or(fitting.live_blocks),
            totals: max_stacks.unwrap_or(fitting.totals),
            ring_bytes: ring_bytes.unwrap_or(fitting.ring_bytes),
            stack_depth,
            ..fitting
        }
    }
}

/// A mean number of bytes from one sample to the next.
fn interval_bytes(text: &str) -> Result<u64, String> {
    let bytes = text.parse::<bytesize::ByteSize>()?.as_u64();
    if (1..=LONGEST_INTERVAL_BYTES).contains(&bytes) {
        return Ok(bytes);
    }
    Err("it has to be a size from 1 (every allocation) to 1TiB, such as 512KiB".to_owned())
}

/// The memory that heaptap may take.
fn memory_bytes(text: &str) -> Result<u64, String> {
    let bytes = text.parse::<bytesize::ByteSize>()?.as_u64();
    if bytes >= Capacities::LEAST_MEMORY_BYTES {
        return Ok(bytes);
    }
    Err("it has to be a size of 128MiB or more, such as 512MiB".to_owned())
}

/// The kernel wants a power of two of whole pages (`ringbuf_map_alloc` in kernel/bpf/ringbuf.c).
fn ring_bytes(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|error| format!("{error}"))?;
    if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) {
        return Ok(bytes);
    }
    let next = bytes.clamp(4096, 1 << 30).next_power_of_two();
    Err(format!("it has to be a power of two from 4096 to {}, such as {next}", 1 << 30))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_put_together_rightly() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_process_or_a_command_is_needed_and_not_both() {
        let parse = |arguments: &[&str]| Cli::try_parse_from([&["heaptap", "record"], arguments].concat());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--pid", "1"]).is_ok());
        assert!(parse(&["--", "ls", "-l"]).is_ok());
        assert!(parse(&["--pid", "1", "--", "ls"]).is_err());
        assert!(parse(&["--pid", "1", "--debug-dir", "a", "--debug-dir", "b"]).is_ok());
        assert!(parse(&["--pid", "1", "--duration", "30s"]).is_ok());
        assert!(parse(&["--pid", "1", "--duration", "30 bananas"]).is_err());
        assert!(parse(&["--pid", "1", "--max-overhead", "2.5"]).is_ok());
        assert!(parse(&["--pid", "1", "--max-overhead", "0"]).is_err());
        assert!(parse(&["--pid", "1", "--exact"]).is_ok());
        assert!(parse(&["--pid", "1", "--exact", "--max-overhead", "2.5"]).is_err());
    }

    #[test]
    fn what_is_asked_for_goes_before_what_fits_the_memory() {
        let parsed = |arguments: &[&str]| {
            let all = [&["heaptap", "record", "--pid", "1"], arguments].concat();
            let Command::Record(args) = Cli::try_parse_from(all).unwrap().command else { unreachable!() };
            args.capacities.for_subject(Subject::beginning())
        };
        let small = parsed(&["--memory-limit", "128MiB"]);
        assert_eq!(small, Capacities::within(128 << 20, Subject::beginning()));
        let asked = parsed(&["--memory-limit", "128MiB", "--max-live", "7", "--max-stacks", "8"]);
        assert_eq!(asked, Capacities { live_blocks: 7, totals: 8, ..small });
        assert!(memory_bytes("100MiB").unwrap_err().contains("128MiB"));
        assert!(memory_bytes("much").is_err());
    }

    #[test]
    fn sampling_intervals_are_sizes() {
        assert_eq!(interval_bytes("512KiB"), Ok(512 << 10));
        assert_eq!(interval_bytes("1"), Ok(1));
        assert!(interval_bytes("0").unwrap_err().contains("512KiB"));
        assert!(interval_bytes("2TiB").is_err());
        assert!(interval_bytes("many").is_err());
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from([&["heaptap", "record", "--pid", "1"], arguments].concat())
        };
        assert!(parse(&["--sample", "1MiB"]).is_ok());
        assert!(parse(&["--sample", "1MiB", "--exact"]).is_err());
    }

    #[test]
    fn a_gate_samples_and_may_be_required() {
        let wish = |arguments: &[&str]| {
            let all = [&["heaptap", "record", "--pid", "1"], arguments].concat();
            let Command::Record(args) = Cli::try_parse_from(all).ok()?.command else { unreachable!() };
            Some(args.gate.with(args.sample))
        };
        let of = |interval_bytes, is_required| {
            Some((Some(GateWish { interval_bytes, is_required }), Some(interval_bytes)))
        };
        assert_eq!(wish(&[]), Some((None, None)));
        assert_eq!(wish(&["--gate"]), of(512 << 10, false));
        assert_eq!(wish(&["--gate=require", "--sample", "1MiB"]), of(1 << 20, true));
        assert_eq!(wish(&["--gate=maybe"]), None);
        assert_eq!(wish(&["--gate", "--exact"]), None);
    }

    #[test]
    fn ring_sizes_are_powers_of_two_and_the_error_names_one() {
        assert_eq!(ring_bytes("4096"), Ok(4096));
        assert!(ring_bytes("5000").unwrap_err().contains("8192"));
        assert!(ring_bytes("1").unwrap_err().contains("4096"));
        assert!(ring_bytes("4294967295").is_err());
    }
}
