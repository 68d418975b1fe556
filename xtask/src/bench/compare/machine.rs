//! The machine that was measured on, and the versions of everything.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::Result;

use crate::workspace::{output, root};

/// Packages whose versions matter: the profilers, and what the workloads are made of.
const PACKAGES: [&str; 11] = [
    "bpftrace",
    "heaptrack",
    "gdb",
    "valgrind",
    "libgoogle-perftools4",
    "redis-server",
    "libjemalloc2",
    "python3",
    "libsqlite3-0",
    "libc6",
    "gcc",
];

/// How busy the machine has been in the last minute.
pub(super) fn load() -> Result<String> {
    let loads = fs::read_to_string("/proc/loadavg")?;
    Ok(loads.split(' ').next().unwrap_or_default().to_owned())
}

/// A list in Markdown.
pub(super) fn text(heaptap: &Path, load: &str) -> Result<String> {
    let cpus = thread::available_parallelism()?;
    let mut lines = vec![
        format!("- {} CPUs: {}", cpus, field(&fs::read_to_string("/proc/cpuinfo")?, "model name")),
        format!("- memory: {}", field(&fs::read_to_string("/proc/meminfo")?, "MemTotal")),
        format!("- kernel: {}", output(Command::new("uname").arg("-srm"))?.trim()),
        format!("- system: {}", system(&fs::read_to_string("/etc/os-release").unwrap_or_default())),
        format!("- {}, commit {}", output(Command::new(heaptap).arg("--version"))?.trim(), commit()),
    ];
    lines.push(format!("- packages: {}", PACKAGES.map(package).join(", ")));
    let date = output(Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M UTC"]))?;
    lines.push(format!("- load average before it began: {load}"));
    lines.push(format!("- finished: {}", date.trim()));
    Ok(lines.join("\n"))
}

fn package(name: &str) -> String {
    let version = output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", name]));
    format!("{name} {}", version.as_deref().unwrap_or("of unknown version"))
}

fn commit() -> String {
    let commit = root().and_then(|root| {
        output(Command::new("git").current_dir(root).args(["describe", "--always", "--dirty"]))
    });
    commit.map_or_else(|_| "unknown".to_owned(), |commit| commit.trim().to_owned())
}

/// The value of the first line with a name, as the kernel writes them.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim());
    text.lines().find_map(value).unwrap_or("unknown")
}

fn system(os_release: &str) -> &str {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("unknown", |name| name.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_machine_are_found() {
        let cpus = "processor\t: 0\nmodel name\t: A CPU @ 2.60GHz\nprocessor\t: 1\nmodel name\t: another\n";
        assert_eq!(field(cpus, "model name"), "A CPU @ 2.60GHz");
        assert_eq!(field("MemTotal:        4096 kB\n", "MemTotal"), "4096 kB");
        assert_eq!(field("", "MemTotal"), "unknown");
        assert_eq!(system("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
    }
}
