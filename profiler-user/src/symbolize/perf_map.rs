//! Perf maps: the file in which a runtime tells where it has put the code that it made.
//!
//! One line for each function, `START SIZE NAME`, the numbers hexadecimal (tools/perf/Documentation/jit-interface.txt
//! in the kernel's sources). Memory is used again: a later line takes over what it covers.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::Arc,
};

/// What is read at most.
const LIMIT_BYTES: u64 = 256 << 20;

/// How many lines are read at most.
const LINES_LIMIT: u64 = 4 << 20;

/// Lines with longer names are left out.
const NAME_LIMIT_BYTES: usize = 4 << 10;

/// How many times a line may be found to cover an address: a map in which every line covers every address would
/// take very long.
const WORK_LIMIT: u64 = 64 << 20;

/// What a map told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The name of each address that was asked for.
    pub(super) names: Vec<Option<Arc<str>>>,
    /// Lines that could not be made sense of.
    pub(super) malformed: u64,
    /// Whether a limit was reached before the end.
    pub(super) is_cut: bool,
}

/// Reads a map for the names of `wanted`, which must rise.
pub(super) fn read(map: impl Read, wanted: &[u64]) -> io::Result<Told> {
    let mut reader = BufReader::with_capacity(1 << 16, map.take(LIMIT_BYTES));
    let mut told = Told { names: vec![None; wanted.len()], ..Told::default() };
    let mut line = Vec::new();
    let (mut lines, mut work, mut read_bytes) = (0, 0, 0);
    loop {
        line.clear();
        // The numbers take 34 bytes at most, and `0x` before each.
        let limit = NAME_LIMIT_BYTES as u64 + 64;
        read_bytes += (&mut reader).take(limit).read_until(b'\n', &mut line)? as u64;
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        if !is_whole {
            if (line.len() as u64) < limit {
                // The end, perhaps of a line that is still being written.
                break;
            }
            read_bytes += reader.skip_until(b'\n')? as u64;
        }
        lines += 1;
        if lines > LINES_LIMIT || work > WORK_LIMIT {
            told.is_cut = true;
            return Ok(told);
        }
        let Some((start, end, name)) = is_whole.then(|| parse(&line)).flatten() else {
            told.malformed += 1;
            continue;
        };
        let place = |address| wanted.partition_point(|wanted| *wanted < address);
        let Some(covered) = told.names.get_mut(place(start)..place(end)) else { continue };
        if !covered.is_empty() {
            let name: Arc<str> = Arc::from(String::from_utf8_lossy(name));
            work += covered.len() as u64;
            covered.fill(Some(name));
        }
    }
    told.is_cut = read_bytes >= LIMIT_BYTES;
    Ok(told)
}

/// Start, end and name.
fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let start = number(parts.next()?)?;
    let size = number(parts.next()?)?;
    let name = parts.next()?.trim_ascii();
    let is_fine = size > 0 && !name.is_empty() && name.len() <= NAME_LIMIT_BYTES;
    is_fine.then_some((start, start.checked_add(size)?, name))
}

fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // `from_str_radix` takes a sign.
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(map: &[u8], wanted: &[u64]) -> Vec<Option<String>> {
        let told = read(map, wanted).unwrap();
        told.names.into_iter().map(|name| name.map(|name| name.to_string())).collect()
    }

    #[test]
    fn addresses_inside_a_line_have_its_name_and_later_lines_take_over() {
        let map = b"1000 100 first one\n0x1080 0x10 second\n2000 1 third\n";
        let wanted = [0xfff, 0x1000, 0x1080, 0x108f, 0x1090, 0x10ff, 0x1100, 0x2000, 0x2001];
        let names = names(map, &wanted);
        let names: Vec<_> = names.iter().map(|name| name.as_deref().unwrap_or_default()).collect();
        assert_eq!(names, ["", "first one", "second", "second", "first one", "first one", "", "third", ""]);
    }

    #[test]
    fn lines_that_make_no_sense_are_counted_and_the_others_are_read() {
        let long = format!("1000 10 {}\n", "x".repeat(NAME_LIMIT_BYTES + 1));
        let longer = format!("1000 10 {}\n", "x".repeat(1 << 20));
        let mut map =
            b"\nnonsense\n1000\n1000 10\n1000 10 \n1000 0 none\n+1000 10 sign\nffffffffffffffff 2 over\n\
            11111111111111111 1 big\n\xff\xfe 1 bytes\n"
                .to_vec();
        map.extend(long.as_bytes());
        map.extend(longer.as_bytes());
        map.extend(b"1000 10 na\xffme\n1000 10 unfinished");
        let told = read(map.as_slice(), &[0x1000]).unwrap();
        assert_eq!(told.malformed, 12);
        assert!(!told.is_cut);
        assert_eq!(told.names, [Some(Arc::from("na\u{fffd}me"))]);
    }

    #[test]
    fn a_map_without_end_is_cut() {
        let told = read(io::repeat(b'\n'), &[1]).unwrap();
        assert!(told.is_cut);
        let told = read(io::repeat(b'a'), &[1]).unwrap();
        assert!(told.is_cut);
    }
}
