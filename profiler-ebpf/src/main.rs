//! heaptap's programs that run in the kernel.
//!
//! A call into the allocator goes through the modules in this order: [`entry`] reads the probe's registers,
//! [`inflight`] keeps the call until it returns, [`sampling`] says whether it is counted, [`unwind`] walks the stack
//! unless [`remember`] knows it, [`record`] counts what was
//! allocated and [`release`] what was freed, in the [`maps`], where the blocks are [`live`]; [`gate`] does so for calls that were sampled in front of their probe;
//! [`mapping`] tells user space of what the program maps
//! itself, [`events`] tells it what else it cannot see in the maps, [`lifecycle`] cleans up behind threads and
//! programs that end, and [`fork`] goes on with child processes.
//!
//! Uprobe programs can be preempted and entered again on the same CPU (since 6.0, 88bf18581375), so that all
//! state is on the BPF stack or in a ring-buffer reservation.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the target has no other atomic addition")]

mod entry;

mod inflight;

mod unwind;

mod remember;

mod transcript;

mod send;

#[cfg(feature = "kernel-walk")]
mod kernel_walk;

mod sampling;

mod record;

mod release;

mod live;

mod gate;

mod mapping;

mod maps;

mod events;

mod closing;

mod fork;

mod inherit;

mod counters;

mod lifecycle;

mod memory;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that read a target's memory are for GPL-compatible programs only.
// SAFETY: the kernel's loader reads a NUL-terminated string out of this section; nothing else is in it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
