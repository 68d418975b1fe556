//! How much memory a process that has BPF maps takes, of its own and of the kernel's.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result};

const MB: f64 = 1e6;

/// What a process has of the kernel's maps, in MB: it is not its own.
pub(super) fn shared_mb(pid: u32) -> Result<f64> {
    Ok(shared_kb(&read(pid, "smaps")?) * 1024.0 / MB)
}

/// The most memory that a process has had, in MB.
pub(super) fn peak_mb(pid: u32) -> Result<f64> {
    status_mb(pid, "VmHWM:")
}

/// The memory that a process has, in MB.
pub(super) fn resident_mb(pid: u32) -> Result<f64> {
    status_mb(pid, "VmRSS:")
}

fn status_mb(pid: u32, name: &str) -> Result<f64> {
    Ok(field_kb(&read(pid, "status")?, name).context("the process has ended")? * 1024.0 / MB)
}

fn read(pid: u32, name: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{name}")).context("the process has ended")
}

/// The memory of the maps that a process holds, in MB: of each once, however often it is open.
pub(super) fn kernel_maps_mb(pid: u32) -> Result<f64> {
    let mut bytes = HashMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("heaptap has ended")? {
        // Descriptors come and go.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let Some(id) = field(&text, "map_id:") {
            bytes.insert(id as u64, field(&text, "memlock:").context("a map without a size")?);
        }
    }
    Ok(bytes.values().sum::<f64>() / MB)
}

/// What of a process's memory is a ring buffer's, which is mapped twice over.
fn shared_kb(smaps: &str) -> f64 {
    let mut is_map = false;
    let mut sum = 0.0;
    for line in smaps.lines() {
        if let Some(resident) = field_kb(line, "Rss:") {
            sum += if is_map { resident } else { 0.0 };
        } else if line.contains('-') && !line.contains(" kB") {
            is_map = line.ends_with("bpf-map");
        }
    }
    sum
}

/// The number in the line that begins with a name.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn field_kb(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_with_the_kernel_is_told_from_the_rest() {
        let smaps = "7f00-7f10 rw-s 00000000 00:0e 9    anon_inode:bpf-map\nSize:  64 kB\nRss:  48 kB\n\
                     7f20-7f30 rw-p 00000000 00:00 0    [heap]\nRss:  7 kB\nAnonymous:  7 kB\n\
                     7f40-7f50 r--s 00000000 00:0e 9    anon_inode:bpf-map\nRss:  4 kB\nVmFlags: rd sh\n";
        assert_eq!(shared_kb(smaps), 52.0);
    }

    #[test]
    fn fields_are_found_by_their_names() {
        assert_eq!(field("map_id:\t5\nmemlock:\t4096\n", "memlock:"), Some(4096.0));
        assert_eq!(field_kb("Name:\tx\nVmHWM:\t  85272 kB\n", "VmHWM:"), Some(85272.0));
        assert_eq!(field_kb("VmHWM:\t  none\n", "VmHWM:"), None);
    }
}
