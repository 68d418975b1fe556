//! Programs as Debian ships them, without frame pointers and with their symbols stripped: nearly all allocations have a stack
//! that reaches its thread's start, and every other is counted with its reason.

use std::sync::{Mutex, PoisonError};

use heaptap_tests::debian;
use heaptap_tests::heaptap::Recorded;

/// One allocation in a thousand may have a stack that is not whole.
const BROKEN_PER_THOUSAND: u64 = 1;

/// One recording at a time: two that learn at once on two processors keep each other from it, and what is cut then says nothing of
/// how stacks are walked.
static MACHINE: Mutex<()> = Mutex::new(());

#[track_caller]
fn assert_whole(record: impl FnOnce() -> Recorded, at_least: u64) {
    let recorded = {
        let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        record()
    };
    recorded.profile().assert_whole(at_least, BROKEN_PER_THOUSAND);
}

#[test]
fn python3_has_whole_stacks() {
    assert_whole(|| debian::python3(&[]), 20_000);
}

#[test]
fn node_has_whole_stacks() {
    assert_whole(|| debian::node(&[]), 1000);
}

#[test]
fn sqlite3_has_whole_stacks() {
    assert_whole(|| debian::sqlite3(&[]), 5000);
}

#[test]
fn nginx_has_whole_stacks() {
    assert_whole(|| debian::nginx(&[]), 500);
}

#[test]
fn redis_server_has_whole_stacks() {
    assert_whole(|| debian::redis_server(&[]), 5000);
}

#[test]
fn java_has_whole_stacks() {
    assert_whole(|| debian::java(&[], &[]), 5000);
}
