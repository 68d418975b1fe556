//! The memory that a process takes, with what the kernel keeps for it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use procfs::process::{MMapPath, Process};

/// The most memory that a process was seen to take while something went on, in bytes.
///
/// Its own is what the kernel has as the most ever (`VmHWM`), without the ring buffers that are mapped, which are the
/// kernel's; that of the kernel is the sum of its BPF maps.
pub fn peak_bytes<T>(pid: u32, what: impl FnOnce() -> T) -> (T, u64) {
    let (own, kernels, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // Nothing is left of one that has ended.
                if let Some((mine, maps)) = now_bytes(pid) {
                    own.fetch_max(mine, Ordering::Relaxed);
                    kernels.fetch_max(maps, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let done = what();
        is_over.store(true, Ordering::Relaxed);
        done
    });
    (done, own.into_inner() + kernels.into_inner())
}

fn now_bytes(pid: u32) -> Option<(u64, u64)> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let rings: u64 = process
        .smaps()
        .ok()?
        .into_iter()
        .filter(|map| map.pathname == MMapPath::Path("anon_inode:bpf-map".into()))
        .filter_map(|map| map.extension.map.get("Rss").copied())
        .sum();
    let own = process.status().ok()?.vmhwm? * 1024;
    // There may be several descriptors of a map.
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten() {
        // Descriptors come and go.
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let number = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let Some(map) = number("map_id:") {
            maps.insert(map, number("memlock:").unwrap_or_default());
        }
    }
    Some((own.saturating_sub(rings), maps.into_values().sum()))
}
