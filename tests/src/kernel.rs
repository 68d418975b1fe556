//! Which kernel the tests run on.

/// Whether it is this version or a later one.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map_while(|text| text.parse().ok());
    let version: (u32, u32) = numbers.next().zip(numbers.next()).expect("a kernel has a version");
    version >= (major, minor)
}
