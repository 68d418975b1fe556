//! The profilers that are compared, and how each is started.

use std::ffi::OsString;
use std::iter;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::attached::Attached;
use super::bpftrace;
use super::target::{Launcher, Target};

/// A way to profile a heap, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profiler {
    Native,
    Exact,
    Sampled,
    Gated,
    Bpftrace,
    HeaptrackAttached,
    HeaptrackPreloaded,
    Dhat,
    Gperftools,
}

impl Profiler {
    /// The first one is what the others are compared with.
    pub(super) const ALL: [Self; 9] = [
        Self::Native,
        Self::Exact,
        Self::Sampled,
        Self::Gated,
        Self::Bpftrace,
        Self::HeaptrackAttached,
        Self::HeaptrackPreloaded,
        Self::Dhat,
        Self::Gperftools,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Exact => "heaptap --exact",
            Self::Sampled => "heaptap --sample 512KiB",
            Self::Gated => "heaptap --gate",
            Self::Bpftrace => "bpftrace",
            Self::HeaptrackAttached => "heaptrack, attached",
            Self::HeaptrackPreloaded => "heaptrack, preloaded",
            Self::Dhat => "valgrind dhat",
            Self::Gperftools => "gperftools",
        }
    }

    /// What goes before the target's command for those that start it.
    pub(super) fn launcher(self, tools: &Tools) -> Launcher {
        let file = |name: &str| tools.folder.join(name);
        match self {
            Self::Native
            | Self::Exact
            | Self::Sampled
            | Self::Gated
            | Self::Bpftrace
            | Self::HeaptrackAttached => Launcher::default(),
            Self::HeaptrackPreloaded => Launcher {
                words: vec!["heaptrack".into(), "--output".into(), file("heaptrack").into()],
                environment: Vec::new(),
            },
            Self::Dhat => {
                let mut output = OsString::from("--dhat-out-file=");
                output.push(file("dhat"));
                Launcher {
                    words: vec!["valgrind".into(), "--tool=dhat".into(), output],
                    environment: Vec::new(),
                }
            }
            Self::Gperftools => Launcher {
                words: Vec::new(),
                environment: vec![
                    ("LD_PRELOAD", "libtcmalloc.so.4".into()),
                    ("HEAPPROFILE", file("gperftools").into()),
                ],
            },
        }
    }

    /// Attaches to a running target, for those that do; they count from then on.
    pub(super) fn attach(self, tools: &Tools, target: &Target) -> Result<Option<Attached>> {
        let pid = target.pid().to_string();
        let attached = match self {
            Self::Native | Self::HeaptrackPreloaded | Self::Dhat | Self::Gperftools => return Ok(None),
            Self::Exact => {
                Attached::start(tools.heaptap(&["--exact"], &pid), |line| line.contains(": recording "))?
            }
            Self::Sampled => Attached::start(tools.heaptap(&["--sample", "512KiB"], &pid), |line| {
                line.contains(": recording ")
            })?,
            Self::Gated => {
                let interval = tools.gate_interval.iter().flat_map(|interval| ["--sample", interval]);
                let options: Vec<&str> = iter::once("--gate=require").chain(interval).collect();
                Attached::start(tools.heaptap(&options, &pid), |line| line.contains(": recording "))?
            }
            Self::Bpftrace => {
                let maps = target.maps();
                let allocator = bpftrace::allocator(&maps).context("no allocator is known")?;
                let mut command = Command::new("bpftrace");
                command.args(["-p", &pid, "-e", &bpftrace::script(allocator)]);
                // By default, blocks beyond 4,096 are not followed.
                command.env("BPFTRACE_MAP_KEYS_MAX", "262144");
                let mut attached = Attached::start(command, |line| line == bpftrace::COUNTS)?;
                // The last probes may come after the first line.
                for _ in 0..3 {
                    attached.wait_for(|line| line == bpftrace::COUNTS)?;
                }
                attached
            }
            Self::HeaptrackAttached => {
                // Debian's sh ends at Ctrl-C without what the script does at its end, which is to detach.
                let mut command = Command::new("bash");
                command.args(["/usr/bin/heaptrack", "--output"]);
                command.arg(tools.folder.join("heaptrack-attached")).args(["--pid", &pid]);
                let attached = Attached::start(command, |line| line == "injection finished")?;
                // gdb fails in silence, also where it is the target that fails.
                target.is_alive().then_some(()).context("cannot attach: the target died of it")?;
                let is_injected = target.maps().contains("libheaptrack_inject");
                is_injected
                    .then_some(())
                    .context("cannot attach: gdb did not get its library into the target")?;
                attached
            }
        };
        Ok(Some(attached))
    }
}

/// Where heaptap is, and where profiles go.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) heaptap: PathBuf,
    pub(super) folder: PathBuf,
    /// The sampling interval behind a gate, where it is not heaptap's own.
    pub(super) gate_interval: Option<String>,
}

impl Tools {
    fn heaptap(&self, options: &[&str], pid: &str) -> Command {
        let mut command = Command::new(&self.heaptap);
        command.arg("record").args(options).args(["--quiet", "--force", "--pid", pid, "--output"]);
        command.arg(self.folder.join("heap.pb.gz"));
        command
    }
}
