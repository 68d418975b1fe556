//! What heaptap needs of the machine, one by one: each with what it is for and whether it is there.

use std::{fs, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};

/// One prerequisite, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is needed.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Whether it is there.
    pub verdict: Verdict,
}

/// Whether a prerequisite is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is; with what was found.
    Present(String),
    /// It is not, and heaptap can do without; with what was found.
    Optional(String),
    /// It is not; with what was found and what to do about it.
    Missing {
        /// What was found.
        found: String,
        /// What to do.
        next_step: String,
    },
}

impl Verdict {
    /// What was found, in words.
    pub fn found(&self) -> &str {
        match self {
            Self::Present(found) | Self::Optional(found) | Self::Missing { found, .. } => found,
        }
    }
}

/// What the kernel programs use, with the version that brought it (after include/uapi/linux/bpf.h and the kernel's history),
/// oldest first. Everything else that is used is older than 5.8.
///
/// The last is no interface: older kernels take such a map, with a warning that it is unsafe
/// (`check_map_prog_compatibility` in kernel/bpf/verifier.c, v6.0), upon which some are configured to panic.
const KERNEL_FEATURES: [((u8, u8), &str); 4] = [
    ((5, 8), "ring buffers (5.8)"),
    ((5, 15), "values handed to a probe's program (5.15)"),
    ((5, 17), "bounded loops and the ends of mappings, by bpf_loop and bpf_find_vma (5.17)"),
    // `bpf_mem_alloc`, 7c8199e24fa0.
    (OLDEST_KERNEL, "hash maps that may grow inside a probe (6.1)"),
];

/// The oldest kernel, which has all of them.
const OLDEST_KERNEL: (u8, u8) = (6, 1);

/// Capabilities by their numbers in include/uapi/linux/capability.h.
const CAPABILITIES: [(u8, &str); 4] =
    [(39, "CAP_BPF"), (38, "CAP_PERFMON"), (19, "CAP_SYS_PTRACE"), (40, "CAP_CHECKPOINT_RESTORE")];

/// `CAP_SYS_ADMIN` stands in for all of the above but `CAP_SYS_PTRACE`.
const CAP_SYS_ADMIN: u8 = 21;

const CAP_SYS_PTRACE: u8 = 19;

/// Looks at every prerequisite.
pub fn check_all() -> Vec<Check> {
    vec![
        privileges(),
        pid_namespace(),
        architecture(),
        kernel(),
        uprobes(),
        ring_buffer(),
        tracepoints(),
        lockdown(),
        btf(),
    ]
}

/// The first required prerequisite that is not there.
pub fn first_missing(checks: &[Check]) -> Option<&Check> {
    checks.iter().find(|check| matches!(check.verdict, Verdict::Missing { .. }))
}

fn privileges() -> Check {
    let effective = procfs::process::Process::myself().and_then(|myself| myself.status());
    let verdict = match effective {
        Ok(status) => capabilities(status.capeff, rustix::process::geteuid().is_root()),
        Err(error) => missing(
            format!("cannot read /proc/self/status: {error}"),
            "mount /proc and run heaptap again".to_owned(),
        ),
    };
    Check { name: "privileges", purpose: "load kernel programs and look into other processes", verdict }
}

/// What a set of effective capabilities, as a bit mask, allows.
fn capabilities(effective: u64, is_root: bool) -> Verdict {
    let has = |capability: u8| effective & (1 << capability) != 0;
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(capability, _)| !has(*capability) && (*capability == CAP_SYS_PTRACE || !has(CAP_SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect();
    let who = if is_root { "root" } else { "not root" };
    if lacking.is_empty() {
        return Verdict::Present(format!("{who}, with every capability that is needed"));
    }
    let next_step = if is_root {
        format!("give this container {} (or run it privileged)", lacking.join(", "))
    } else {
        "run the same command with sudo".to_owned()
    };
    missing(format!("{who}, without {}", lacking.join(", ")), next_step)
}

/// `PROC_PID_INIT_INO` of include/linux/proc_ns.h: the inode of the first PID namespace.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

fn pid_namespace() -> Check {
    let verdict = match fs::read_link("/proc/self/ns/pid") {
        Ok(link) if link.as_os_str() == FIRST_PID_NAMESPACE => Verdict::Present("the host's".to_owned()),
        Ok(link) => missing(
            format!("{}, a container's", link.display()),
            "run heaptap on the host, or in a container that shares its PIDs (--pid=host, hostPID: true)"
                .to_owned(),
        ),
        Err(error) => Verdict::Optional(format!("cannot tell: {error}")),
    };
    Check {
        name: "the host's PID namespace",
        purpose: "mean the same process as the kernel by a PID",
        verdict,
    }
}

fn architecture() -> Check {
    let found = std::env::consts::ARCH.to_owned();
    let verdict = if found == "x86_64" {
        Verdict::Present(found)
    } else {
        missing(found, "use a 64-bit x86 machine: heaptap reads its registers only".to_owned())
    };
    Check { name: "architecture", purpose: "read arguments and stacks out of registers", verdict }
}

fn kernel() -> Check {
    let verdict = match procfs::KernelVersion::current() {
        Ok(version) => kernel_version((version.major, version.minor, version.patch)),
        Err(error) => Verdict::Optional(format!("unknown: {error}")),
    };
    Check { name: "kernel 6.1 or later", purpose: "count in the kernel without harm to the target", verdict }
}

/// What a kernel of this version lacks.
fn kernel_version((major, minor, patch): (u8, u8, u16)) -> Verdict {
    let found = format!("{major}.{minor}.{patch}");
    let lacking: Vec<_> = KERNEL_FEATURES
        .iter()
        .filter(|(since, _)| (major, minor) < *since)
        .map(|(_, feature)| *feature)
        .collect();
    if lacking.is_empty() {
        return Verdict::Present(found);
    }
    let (major, minor) = OLDEST_KERNEL;
    missing(
        format!("{found}, without {}", lacking.join(", ")),
        format!("boot a kernel of {major}.{minor} or later"),
    )
}

fn uprobes() -> Check {
    let path = "/sys/bus/event_source/devices/uprobe/type";
    let verdict = match fs::read_to_string(path) {
        Ok(kind) => Verdict::Present(format!("perf event type {}", kind.trim())),
        Err(error) => missing(
            format!("{path}: {error}"),
            "mount /sys, or boot a kernel with CONFIG_UPROBE_EVENTS".to_owned(),
        ),
    };
    Check { name: "uprobes", purpose: "stop at the allocator's functions", verdict }
}

fn ring_buffer() -> Check {
    let verdict = supported(
        is_map_supported(MapType::RingBuf).map_err(|error| error.to_string()),
        "boot a kernel with CONFIG_BPF_SYSCALL, 5.8 or later",
    );
    Check { name: "BPF ring buffer", purpose: "receive new stacks", verdict }
}

fn tracepoints() -> Check {
    let verdict = supported(
        is_program_supported(ProgramType::RawTracePoint).map_err(|error| error.to_string()),
        "boot a kernel with CONFIG_BPF_EVENTS",
    );
    Check { name: "BPF tracing programs", purpose: "run at probes, and see threads end", verdict }
}

fn supported(answer: Result<bool, String>, next_step: &str) -> Verdict {
    match answer {
        Ok(true) => Verdict::Present("supported".to_owned()),
        Ok(false) => missing("not supported".to_owned(), next_step.to_owned()),
        Err(error) => missing(
            format!("cannot be asked: {error}"),
            "see to the prerequisites above first; without privileges the kernel does not answer".to_owned(),
        ),
    }
}

fn lockdown() -> Check {
    let path = Path::new("/sys/kernel/security/lockdown");
    let verdict = match fs::read_to_string(path) {
        Ok(modes) => lockdown_mode(&modes),
        Err(_) => Verdict::Present("not locked down (this kernel has no lockdown, or hides it)".to_owned()),
    };
    Check { name: "kernel not locked down", purpose: "let programs read the target's stack", verdict }
}

/// The mode in brackets holds: `none [integrity] confidentiality` (kernel_lockdown(7)).
fn lockdown_mode(modes: &str) -> Verdict {
    let mode = modes.split_whitespace().find(|mode| mode.starts_with('[')).unwrap_or("[none]");
    if mode == "[confidentiality]" {
        return missing(
            "locked down for confidentiality".to_owned(),
            "boot with lockdown=integrity or lockdown=none: this mode forbids tracing".to_owned(),
        );
    }
    Verdict::Present(format!("mode {mode}"))
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    let verdict = match fs::metadata(path) {
        Ok(metadata) => Verdict::Present(format!("{path}, {} bytes", metadata.len())),
        Err(error) => Verdict::Optional(format!("{path}: {error}; heaptap's programs bring their own types")),
    };
    Check { name: "kernel type information (BTF)", purpose: "describe the programs to the kernel", verdict }
}

const fn missing(found: String, next_step: String) -> Verdict {
    Verdict::Missing { found, next_step }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(capabilities: &[u8]) -> u64 {
        capabilities.iter().map(|capability| 1 << capability).sum()
    }

    #[test]
    fn either_the_small_capabilities_or_the_large_one_will_do() {
        assert!(matches!(capabilities(mask(&[38, 39, 40, 19]), false), Verdict::Present(_)));
        assert!(matches!(capabilities(mask(&[21, 19]), true), Verdict::Present(_)));
        let Verdict::Missing { found, next_step } = capabilities(mask(&[21]), true) else { panic!() };
        assert!(
            found.contains("CAP_SYS_PTRACE") && next_step.contains("CAP_SYS_PTRACE"),
            "{found}; {next_step}"
        );
        let Verdict::Missing { next_step, .. } = capabilities(0, false) else { panic!() };
        assert!(next_step.contains("sudo"), "{next_step}");
    }

    #[test]
    fn an_old_kernel_is_refused_for_what_it_lacks() {
        let (major, minor) = OLDEST_KERNEL;
        assert_eq!(kernel().name, format!("kernel {major}.{minor} or later"));
        for version in [(6, 1, 0), (6, 12, 117), (7, 0, 0)] {
            assert!(matches!(kernel_version(version), Verdict::Present(_)), "{version:?}");
        }
        for (version, lacks, has) in [
            ((6, 0, 19), "hash maps", "bpf_loop"),
            ((5, 16, 20), "bpf_loop", "a probe's program"),
            ((5, 10, 251), "a probe's program", "ring buffers"),
            ((4, 19, 0), "ring buffers", "nothing"),
        ] {
            let Verdict::Missing { found, next_step } = kernel_version(version) else {
                panic!("{version:?} is taken")
            };
            let (major, minor, patch) = version;
            assert!(found.starts_with(&format!("{major}.{minor}.{patch}, ")), "{found}");
            assert!(found.contains(lacks) && !found.contains(has), "{found}");
            assert!(found.contains("(6.1)") && next_step.contains("6.1"), "{found}; {next_step}");
        }
    }

    #[test]
    fn only_the_mode_that_forbids_tracing_is_in_the_way() {
        assert!(matches!(lockdown_mode("[none] integrity confidentiality\n"), Verdict::Present(_)));
        assert!(matches!(lockdown_mode("none [integrity] confidentiality\n"), Verdict::Present(_)));
        assert!(matches!(lockdown_mode("none integrity [confidentiality]\n"), Verdict::Missing { .. }));
    }

    #[test]
    fn every_prerequisite_says_what_it_is_for() {
        for check in check_all() {
            assert!(!check.purpose.is_empty() && !check.name.is_empty());
        }
    }
}
