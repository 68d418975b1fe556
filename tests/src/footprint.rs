//! The memory that a process takes, with what the kernel keeps for it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use procfs::process::{MMapPath, Process};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The most memory that a process was seen to take while something went on, in bytes.
///
/// Its own is what the kernel has as the most ever (`VmHWM`), without the ring buffers that are mapped, which are the
/// kernel's; that of the kernel is the sum of its BPF maps.
pub fn peak_bytes<T>(pid: u32, what: impl FnOnce() -> T) -> (T, u64) {
    let (going_on, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let watching = scope.spawn(move || {
            let (mut own, mut kernels) = (0, 0);
            loop {
                // Nothing is left of one that has ended.
                if let Some((mine, maps)) = now_bytes(pid) {
                    own = own.max(mine);
                    kernels = kernels.max(maps);
                }
                if is_over.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return own + kernels;
                }
            }
        });
        let done = what();
        // It goes as well where that panics.
        drop(going_on);
        (done, watching.join().expect("it only looks"))
    })
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
