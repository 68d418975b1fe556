//! A JVM as Debian ships it, at work: what it has compiled keeps no frame pointers. It takes all processors, and so is by itself: where
//! heaptap cannot run for a while, stacks that are not known yet are lost, and counted.

use heaptap_tests::heaptap::Recording;
use heaptap_tests::load::Load;
use heaptap_tests::service::{self, Service};

/// One allocation in a thousand may have a stack that is not whole.
const BROKEN_PER_THOUSAND: u64 = 1;

#[test]
fn a_jvm_that_has_compiled_its_program_has_whole_stacks_with_its_methods() {
    let service = Service::java(&[]);
    let url = service.url().to_owned();
    let load = Load::start([move |round| service::check(&url, round)]);
    // By then, the second compiler has most of it, which keeps other things than frame pointers in rbp.
    load.advance(1000);
    let recording = Recording::attach(service.pid());
    load.advance(300);
    let recorded = recording.finish();
    load.stop();
    let profile = recorded.profile();
    profile.assert_whole(2000, BROKEN_PER_THOUSAND);

    let through_java = profile.stacks.iter().filter(|stack| {
        stack.functions.iter().any(|name| name.starts_with("Service."))
            && stack.functions.last().is_some_and(|first| first == "clone3")
    });
    let objects: i64 = through_java.map(|stack| stack.values.alloc_objects).sum();
    assert!(objects > 1000, "{objects} allocations by the program: {:#?}", profile.comments);
}
