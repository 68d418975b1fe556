//! Processes with those that they have started, and what they use.

use std::collections::HashMap;
use std::fs;
use std::process::Child;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Of the times in `/proc`, on x86.
const TICKS_PER_SECOND: f64 = 100.0;

/// How often, and how many times, it is looked whether a process ends by itself.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 100;

/// A process and all that come from it.
pub(super) fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in all() {
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut tree = vec![root];
    let mut index = 0;
    while let Some(pid) = tree.get(index) {
        tree.extend(children.remove(pid).unwrap_or_default());
        index += 1;
    }
    tree
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Ends one of the processes that come from another, and leaves that one some time to end by itself before it is ended.
pub(super) fn end_with(child: &mut Child, pid: u32) {
    if let Ok(None) = child.try_wait()
        && pid != child.id()
    {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        for _ in 0..LOOKS {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(LOOK);
        }
    }
    end(child);
}

/// Ends a process and all that come from it, unless it has ended already.
pub(super) fn end(child: &mut Child) {
    // Its number may be another's once it has been waited for.
    if let Ok(None) = child.try_wait() {
        for pid in tree(child.id()) {
            // Fails for one that has ended, which is what is wanted.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        let _ = child.wait();
    }
}

/// Seconds of CPU that processes have used, to the nanosecond, with those of their children that have ended, to the tick.
pub(super) fn cpu_s(pids: &[u32]) -> f64 {
    let own = pids.iter().filter_map(|pid| own_cpu(*pid)).map(|time| time.as_secs_f64());
    let of_children = pids.iter().filter_map(|pid| Stat::of(*pid)).map(|stat| stat.ended_cpu_s);
    own.sum::<f64>() + of_children.sum::<f64>()
}

/// What the threads of a process have used, those that have ended as well; `/proc` has it in ticks, which is too coarse for what does
/// nearly nothing.
fn own_cpu(pid: u32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).ok()?;
    clock_gettime(clock).ok().map(Duration::from)
}

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    /// What children have used that have ended and been waited for.
    ended_cpu_s: f64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // Any character may be in the name, which is in parentheses.
        let (_, text) = text.rsplit_once(") ")?;
        let mut fields = text.split(' ').skip(1);
        let parent = fields.next()?.parse().ok()?;
        let times = fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().ok());
        let [user, system] = times.collect::<Option<Vec<f64>>>()?.try_into().ok()?;
        Some(Self { parent, ended_cpu_s: (user + system) / TICKS_PER_SECOND })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_and_the_times_are_found_behind_any_name() {
        let text = "7 (a) b (c)) S 3 7 7 0 -1 4194560 100 200 0 0 150 50 25 75 20 0 1 0 12345 1000 10";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 3, ended_cpu_s: 1.0 }));
        assert_eq!(Stat::parse("7 (a) S 3"), None);
    }

    #[test]
    fn what_a_process_computes_is_seen_at_once() {
        let own = [std::process::id()];
        let before = cpu_s(&own);
        let began = std::time::Instant::now();
        while cpu_s(&own) == before {
            assert!(began.elapsed() < Duration::from_millis(10), "not within a tick");
        }
    }

    #[test]
    fn this_process_is_in_its_parents_tree() {
        let own = std::process::id();
        let parent = Stat::of(own).unwrap().parent;
        assert!(tree(parent).contains(&own));
        assert_eq!(tree(own).first(), Some(&own));
    }
}
