//! The rows of real files, compared with what binutils reads from them.

use std::{collections::HashMap, fs::File, path::Path, process::Command};

use profiler_common::unwind::{FpRule, Kind, Row, WalkEnd};

use super::UnwindInfo;

/// Column headings of a table, and the cells of each of its rows.
#[derive(Clone, Default)]
struct Printed {
    signal: bool,
    end: u64,
    headings: Vec<String>,
    rows: Vec<(u64, Vec<String>)>,
}

/// The tables of `readelf --debug-dump=frames-interp`, one for each function.
fn tables(text: &str) -> Vec<Printed> {
    let mut cies: HashMap<String, Printed> = HashMap::new();
    let mut functions: Vec<Printed> = Vec::new();
    let mut cie = None;
    for line in text.lines() {
        // Registers are printed twice: `r10 (r10)`.
        let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with('(')).collect();
        match words.as_slice() {
            [offset, _, _, "CIE", augmentation, ..] => {
                cie = Some((*offset).to_owned());
                let signal = augmentation.contains('S');
                cies.insert((*offset).to_owned(), Printed { signal, ..Printed::default() });
            }
            [_, _, _, "FDE", of, range] => {
                cie = None;
                let common = &cies[&of.replace("cie=", "")];
                let (start, end) = range.strip_prefix("pc=").unwrap().split_once("..").unwrap();
                let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
                // Where the function adds nothing, what is common is not printed again.
                let rows = common.rows.iter().map(|(_, cells)| (start, cells.clone())).collect();
                functions.push(Printed { end, rows, ..common.clone() });
            }
            [_, "ZERO", "terminator"] => {}
            [first, rest @ ..] => {
                let table = match &cie {
                    Some(offset) => cies.get_mut(offset).unwrap(),
                    None => match functions.last_mut() {
                        Some(function) => function,
                        None => continue,
                    },
                };
                let cells = rest.iter().map(|word| (*word).to_owned()).collect();
                if *first == "LOC" {
                    table.headings = cells;
                    table.rows.clear();
                } else if let Ok(address) = u64::from_str_radix(first, 16) {
                    table.rows.push((address, cells));
                }
            }
            [] => {}
        }
    }
    functions
}

/// What the cells mean, as a row; `None` where an expression was not printed.
fn expected(printed: &Printed, cells: &[String]) -> Option<Row> {
    let unsupported = Row::stop(WalkEnd::Unsupported);
    let cell = |heading: &str| {
        let column = printed.headings.iter().position(|name| name == heading)?;
        cells.get(column).map(String::as_str)
    };
    if printed.signal {
        return Some(Row::SIGNAL);
    }
    let cfa = cell("CFA")?;
    match cell("ra")? {
        "u" => return Some(Row::END),
        "c-8" => {}
        _ => return Some(unsupported),
    }
    if cfa == "exp" {
        return None;
    }
    let (base, offset) = cfa.split_at(3);
    let kind = match base {
        "rsp" => Kind::Sp,
        "rbp" => Kind::Fp,
        _ => return Some(unsupported),
    };
    let (fp_rule, fp_offset) = match cell("rbp").unwrap_or("u") {
        "u" | "s" => (FpRule::Unchanged, 0),
        "exp" => return None,
        saved => match saved.strip_prefix('c') {
            Some(offset) => (FpRule::AtCfa, offset.parse::<i16>().unwrap() / 8),
            None => return Some(unsupported),
        },
    };
    if !matches!(cell("rsp").unwrap_or("u"), "u" | "v+0") {
        return Some(unsupported);
    }
    let offset: i32 = offset.parse().unwrap();
    Some(if kind == Kind::Sp && offset < 8 { Row::END } else { Row::new(kind, fp_rule, fp_offset, offset) })
}

/// The share of rows that can be followed, in parts of a thousand.
fn compare(path: &Path) -> Option<u64> {
    let file = File::open(path).ok()?;
    let output = Command::new("readelf").arg("--debug-dump=frames-interp").arg(path).output().ok()?;
    let info = UnwindInfo::load(&file).unwrap().expect("unwind information");
    let (mut followed, mut all, mut expressions) = (0_u64, 0_u64, 0_u64);
    for function in tables(&String::from_utf8_lossy(&output.stdout)) {
        let ends = function.rows.iter().skip(1).map(|(start, _)| *start).chain([function.end]);
        for ((start, cells), end) in function.rows.iter().zip(ends) {
            if *start >= end {
                continue;
            }
            let found = info.row(*start);
            if let Some(expected) = expected(&function, cells) {
                assert_eq!(found, expected, "{}: {start:#x} {cells:?}", path.display());
                let last = info.row(end - 1);
                assert!(last == expected || last == Row::SIGNAL, "{}: {end:#x} {cells:?}", path.display());
            } else {
                expressions += 1;
            }
            all += 1;
            followed += u64::from(found != Row::stop(WalkEnd::Unsupported));
        }
    }
    assert!(all > 100, "{} rows of {}", all, path.display());
    println!("{}: {followed} of {all} rows, {expressions} with expressions", path.display());
    Some(followed * 1000 / all)
}

#[test]
fn rows_say_what_binutils_reads_from_the_same_files() {
    let libraries = Path::new("/lib/x86_64-linux-gnu");
    let programs = Path::new("/usr/bin");
    let files = [
        libraries.join("libc.so.6"),
        libraries.join("ld-linux-x86-64.so.2"),
        libraries.join("libcrypto.so.3"),
        libraries.join("libstdc++.so.6"),
        programs.join("python3.11"),
        programs.join("bash"),
    ];
    for path in files {
        // Other distributions have other files, and a machine need not have binutils.
        let Some(share) = compare(&path) else { continue };
        let low = if path.ends_with("libcrypto.so.3") { 900 } else { 990 };
        assert!(share >= low, "only {share} ‰ of the rows of {} can be followed", path.display());
    }
}
