//! Programs that say themselves what they have in use.

use heaptap_tests::debian;

#[test]
fn python3_has_in_use_what_glibc_says() {
    let (recorded, taken) = debian::python3_with_its_own_count();
    let profile = recorded.profile();
    let inuse = profile.total().inuse_bytes;
    assert!(inuse >= 20_000 * 1000 + (10 << 20), "{inuse}");
    // glibc counts its own 8 bytes for each block, and what it rounds up to 16; the load came and went meanwhile.
    assert!(
        (taken - inuse).abs() <= inuse / 20,
        "{inuse} in the profile, {taken} by glibc: {:#?}",
        profile.comments
    );
}

#[test]
fn redis_has_in_use_what_it_says() {
    let (recorded, taken) = debian::redis_server_with_its_own_count();
    assert!(recorded.outcome.stderr.contains("jemalloc"), "{}", recorded.outcome.stderr);
    let profile = recorded.profile();
    let inuse = profile.total().inuse_bytes;
    // 5,000 values of 500 bytes. redis counts what jemalloc rounds sizes up to, by a fifth at most for most sizes, and
    // what it freed of before.
    assert!(inuse >= 5000 * 500, "{inuse}");
    assert!(
        (inuse..=inuse + inuse / 4).contains(&taken),
        "{inuse} in the profile, {taken} by redis: {:#?}",
        profile.comments
    );
}
