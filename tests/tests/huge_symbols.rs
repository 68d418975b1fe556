//! A program with a million functions, as large C++ programs have them.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use heaptap_tests::compile::source;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Running, path_str};
use heaptap_tests::profile::Profile;

const FUNCTIONS: usize = 1_000_000;

/// What heaptap may take, in kB: some hundred megabytes are the files and tables, of which the names are fifty.
const PEAK_KB: u64 = 512 << 10;

/// Says at the end how much the largest of the processes had that were run, those included that heaptap starts.
const MEASURED: &str = "
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, flush=True)
sys.exit(code)";

/// Compiles the guest `live` with many more functions, none of which is called.
fn build(folder: &Path) -> PathBuf {
    let mut text = String::from(".section .note.GNU-stack,\"\",@progbits\n.text\n");
    for number in 0..FUNCTIONS {
        let name = format!("function_of_a_large_program_{number}");
        writeln!(text, ".globl {name}\n.type {name}, @function\n{name}: ret").expect("a string grows");
    }
    fs::write(folder.join("functions.s"), text).expect("the folder has room");
    let program = folder.join("huge");
    let mut compile = Command::new("cc");
    compile.args(["-std=c11", "-O2", "-g", "-fno-builtin", "-pthread", "-o"]).arg(&program);
    compile.arg(source("live.c")).arg(folder.join("functions.s"));
    let output = compile.output().expect("gcc is installed");
    assert!(output.status.success(), "{compile:?}: {}", String::from_utf8_lossy(&output.stderr));
    program
}

#[test]
fn a_program_with_a_million_functions_is_recorded_in_bounded_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut guest = Guest::start_program("huge", &build(folder.path()));
    let output = folder.path().join("heap.pb.gz");
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", MEASURED]).arg(heaptap::binary());
    command.args(["record", "--pid", &guest.pid().to_string(), "--output", path_str(&output)]);
    let mut recording = Running::start(command);
    recording.stderr_line("heaptap: recording");
    guest.command("run");
    let ledger = guest.ledger();
    // The recording ends with it.
    guest.exit();
    let outcome = recording.wait();
    outcome.assert_success();
    ledger.assert_equals(&Profile::read(&output));
    let peak = outcome.stdout.lines().find_map(|line| line.strip_prefix("peak ")?.parse::<u64>().ok());
    let peak = peak.expect("the measuring process says it");
    assert!(peak <= PEAK_KB, "{peak} kB at most: {outcome:#?}");
}
