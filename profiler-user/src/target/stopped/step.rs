//! Threads that stand within code that is to be changed go on until they are out of it.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    super::process::status,
    StopError,
    request::{self, Event},
    threads::Threads,
};

/// An instruction takes no time, unless it is a system call that waits.
const STEP_LIMIT: Duration = Duration::from_millis(100);

/// All signals but the one that a step ends with, which the kernel would have to unblock for good.
const ALL_BUT_STEPS: u64 = !(1 << (libc::SIGTRAP - 1));

impl Threads {
    /// Steps every thread out of the ranges.
    pub(super) fn step_out(&mut self, ranges: &[Range<u64>], steps: u32) -> Result<(), StopError> {
        let threads: Vec<i32> = self.states.keys().copied().collect();
        for thread in threads {
            if is_inside(ranges, self.address(thread)?) {
                self.step_thread_out(thread, ranges, steps)?;
            }
        }
        Ok(())
    }

    fn step_thread_out(&mut self, thread: i32, ranges: &[Range<u64>], steps: u32) -> Result<(), StopError> {
        let ignored = status(thread).map_err(|_| self.gone())?.sigign;
        if ignored & !ALL_BUT_STEPS != 0 {
            return Err(StopError::IgnoresSteps { pid: self.pid, thread });
        }
        let blocked = request::blocked(thread).map_err(self.failed(thread, "asked for its signals"))?;
        request::block(thread, ALL_BUT_STEPS).map_err(self.failed(thread, "kept from signals"))?;
        let stepped = self.step(thread, ranges, steps);
        let settled = self.settle(thread, STEP_LIMIT);
        let unblocked = request::block(thread, blocked).map_err(self.failed(thread, "given its signals"));
        stepped.and(settled).and(unblocked)
    }

    fn step(&mut self, thread: i32, ranges: &[Range<u64>], steps: u32) -> Result<(), StopError> {
        let mut signal = 0;
        for _ in 0..steps {
            request::step(thread, signal).map_err(self.failed(thread, "stepped"))?;
            signal = match self.next(thread, Instant::now(), STEP_LIMIT)? {
                Event::Signal(met) if Event::is_group_stop(met) => met,
                _ => 0,
            };
            if !is_inside(ranges, self.address(thread)?) {
                return Ok(());
            }
        }
        Err(StopError::Inside { pid: self.pid, thread, address: self.address(thread)?, steps })
    }

    fn address(&self, thread: i32) -> Result<u64, StopError> {
        Ok(request::registers(thread).map_err(self.failed(thread, "asked for its registers"))?.rip)
    }
}

/// At a range's first address nothing of it is executed yet.
fn is_inside(ranges: &[Range<u64>], address: u64) -> bool {
    ranges.iter().any(|range| range.start < address && address < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_begins_behind_its_first_address() {
        let ranges = [0x1000..0x1005, 0x2000..0x2005];
        for (address, expected) in
            [(0x1000, false), (0x1001, true), (0x1005, false), (0x2004, true), (0, false)]
        {
            assert_eq!(is_inside(&ranges, address), expected, "{address:#x}");
        }
    }
}
