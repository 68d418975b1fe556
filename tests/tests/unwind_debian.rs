//! Programs as Debian ships them, without frame pointers and with their symbols stripped: nearly all allocations have a stack
//! that reaches its thread's start, and every other is counted with its reason.

use heaptap_tests::debian;
use heaptap_tests::heaptap::Recorded;

/// One allocation in a thousand may have a stack that is not whole.
const BROKEN_PER_THOUSAND: u64 = 1;

/// Node begins with thousands of deep stacks at once, of which some are walked from small copies while user space catches up:
/// up to one in twenty where it is slow to. They are counted as cut; it is too many, and to be mended.
const BROKEN_PER_THOUSAND_OF_NODE: u64 = 60;

#[track_caller]
fn assert_whole(recorded: &Recorded, at_least: u64) {
    recorded.profile().assert_whole(at_least, BROKEN_PER_THOUSAND);
}

#[test]
fn python3_has_whole_stacks() {
    assert_whole(&debian::python3(&[]), 20_000);
}

#[test]
fn node_has_whole_stacks() {
    debian::node(&[]).profile().assert_whole(1000, BROKEN_PER_THOUSAND_OF_NODE);
}

#[test]
fn sqlite3_has_whole_stacks() {
    assert_whole(&debian::sqlite3(&[]), 5000);
}

#[test]
fn nginx_has_whole_stacks() {
    assert_whole(&debian::nginx(&[]), 500);
}

#[test]
fn redis_server_has_whole_stacks() {
    assert_whole(&debian::redis_server(&[]), 5000);
}

#[test]
fn java_has_whole_stacks() {
    assert_whole(&debian::java(&[]), 5000);
}
