//! What a trap costs on this machine, measured on functions of our own.
//!
//! The programs do nothing for a process that is not watched, as heaptap itself is not, so that what is measured is the
//! trap and the way into the program.

use std::{num::NonZeroU32, path::Path, sync::Arc, time::Duration};

use aya::programs::{
    ProgramError, UProbe,
    uprobe::{UProbeAttachLocation, UProbeScope},
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    attach::Link,
    kernel::{Kernel, KernelError},
    loading::{FREE, RETURNS},
    multi::Multi,
};
use crate::source::cost::TrapCost;

/// Why no cost could be measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum CalibrateError {
    /// Our own mappings could not be read.
    #[error("cannot read heaptap's own mappings")]
    Maps(#[from] procfs::ProcError),
    /// A function of our own is in no mapping of a file: a defect of this build.
    #[error("heaptap's function at {address:#x} is in none of its files")]
    NotMapped {
        /// Its address.
        address: u64,
    },
    /// The kernel refused a probe.
    #[error("the kernel refused a probe on heaptap itself")]
    Probe(#[from] ProgramError),
    /// The same of one that is attached as those of the process are.
    #[error("the kernel refused a probe on heaptap itself")]
    Link(#[from] KernelError),
    /// The probes were not hit, or time stood still.
    #[error("a trap seems to cost nothing")]
    Nothing,
}

/// Calls of a function in a batch.
const CALLS: u32 = 10;

/// Rounds of a batch for each function, one after the other, so that a slow moment meets all. The lower quarter counts: interrupts
/// come in between, and a virtual machine's host takes the processor away.
const ROUNDS: usize = 25;

/// So many are always made: the first are slower.
const LEAST_ROUNDS: usize = 9;

/// After so much time the least number of rounds is enough: an emulated machine may take 100 µs for a trap.
const ENOUGH: Duration = Duration::from_millis(5);

/// Begin with an instruction that the kernel carries out itself (`push_setup_xol_ops` in arch/x86/kernel/uprobes.c),
/// as most functions of allocators do. What is behind their ends tells them apart, for those who put equal functions into one.
#[unsafe(naked)]
extern "C" fn plain() {
    core::arch::naked_asm!("push rbp", "pop rbp", "ret", ".byte 1")
}

#[unsafe(naked)]
extern "C" fn entered() {
    core::arch::naked_asm!("push rbp", "pop rbp", "ret", ".byte 2")
}

#[unsafe(naked)]
extern "C" fn returned() {
    core::arch::naked_asm!("push rbp", "pop rbp", "ret", ".byte 3")
}

/// Begins with one that it has to single-step.
#[unsafe(naked)]
extern "C" fn stepped() {
    core::arch::naked_asm!("test edi, edi", "ret")
}

/// What is attached to functions of our own: programs that do nothing there, in the way that others are attached to the process.
pub(super) enum Means {
    /// To many places at once.
    Multi(Arc<Multi>),
    /// One by one: a program at entries, and one at returns.
    Single(Box<[UProbe; 2]>),
}

impl Means {
    /// Those by which `kernel` attaches.
    pub(super) fn of(kernel: &Kernel) -> Result<Self, KernelError> {
        Ok(match kernel.multi() {
            Some(multi) => Self::Multi(Arc::clone(multi)),
            None => Self::Single(Box::new([kernel.handle(FREE)?, kernel.handle(RETURNS)?])),
        })
    }

    /// Attaches to a function of our own, or to its returns, in no other process.
    fn attach(&mut self, function: extern "C" fn(), is_return: bool) -> Result<Link, CalibrateError> {
        const OURS: &str = "/proc/self/exe";
        let (offset, pid) = (file_offset(function)?, std::process::id());
        match self {
            Self::Multi(multi) => {
                Ok(Box::new(multi.link_nothing(Path::new(OURS), offset, is_return, pid)?))
            }
            Self::Single(programs) => {
                let [entry, back] = &mut **programs;
                let program = if is_return { back } else { entry };
                let scope = NonZeroU32::new(pid).map_or(UProbeScope::CallingProcess, UProbeScope::OneProcess);
                let link = program.attach(UProbeAttachLocation::AbsoluteOffset(offset), OURS, scope)?;
                Ok(Box::new(program.take_link(link)?))
            }
        }
    }
}

/// Measures. Takes some milliseconds; the links that it gives, to be dropped, may take a tenth of a second each to go.
pub(super) fn calibrate(means: &mut Means) -> Result<(TrapCost, Vec<Link>), CalibrateError> {
    let links = vec![
        means.attach(stepped, false)?,
        means.attach(entered, false)?,
        means.attach(returned, false)?,
        means.attach(returned, true)?,
    ];
    let [plain_ns, stepped_ns, entered_ns, returned_ns] = times_ns([plain, stepped, entered, returned]);
    let trap = TrapCost {
        entry_ns: entered_ns - plain_ns,
        stepped_ns: stepped_ns - plain_ns,
        return_ns: returned_ns - entered_ns,
    };
    if trap.entry_ns <= 0.0 || trap.stepped_ns <= 0.0 || trap.return_ns <= 0.0 {
        return Err(CalibrateError::Nothing);
    }
    Ok((trap, links))
}

/// Where a function lies in our executable, in bytes.
fn file_offset(function: extern "C" fn()) -> Result<u64, CalibrateError> {
    let address = function as usize as u64;
    let maps = procfs::process::Process::myself()?.maps()?;
    let map =
        maps.into_iter().find(|map| (map.address.0..map.address.1).contains(&address) && map.inode != 0);
    let map = map.ok_or(CalibrateError::NotMapped { address })?;
    Ok(address - map.address.0 + map.offset)
}

/// The CPU time of this thread: others may want the processor meanwhile, and on a busy machine have it most of the time.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Nanoseconds of a call of each function.
fn times_ns<const FUNCTIONS: usize>(functions: [extern "C" fn(); FUNCTIONS]) -> [f64; FUNCTIONS] {
    let began = cpu_time();
    let mut batches = functions.map(|function| (function, Vec::with_capacity(ROUNDS)));
    for round in 0..ROUNDS {
        if round >= LEAST_ROUNDS && cpu_time().saturating_sub(began) >= ENOUGH {
            break;
        }
        for (function, times) in &mut batches {
            let start = cpu_time();
            for _ in 0..CALLS {
                std::hint::black_box(*function)();
            }
            times.push(cpu_time().saturating_sub(start));
        }
    }
    batches.map(|(_, mut times)| {
        times.sort_unstable();
        let quarter = times.get(times.len() / 4).copied().unwrap_or_default();
        quarter.as_nanos() as f64 / f64::from(CALLS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_functions_begin_in_the_file_as_the_kernel_side_needs_them() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let at = |function| {
            let offset = usize::try_from(file_offset(function).unwrap()).unwrap();
            file[offset]
        };
        // push rbp; test r/m32, r32
        assert_eq!([plain, entered, returned, stepped].map(at), [0x55, 0x55, 0x55, 0x85]);
    }

    #[test]
    fn functions_are_told_apart() {
        let mut offsets = [plain, entered, returned, stepped].map(|function| file_offset(function).unwrap());
        offsets.sort_unstable();
        assert!(offsets.windows(2).all(|pair| pair[0] != pair[1]), "{offsets:x?}");
    }

    #[test]
    fn calls_take_time() {
        assert!(times_ns([plain, stepped]).iter().all(|time| *time > 0.0));
    }
}
