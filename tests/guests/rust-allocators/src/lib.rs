//! Calls the four functions of a global allocator in each of their outcomes, and allocates as Rust programs do.
//!
//! The guests speak the protocol of `ledger.h` and `allocators.h`, constructor and all.

mod early;
mod ledger;
mod sites;

use std::io::Write;
use std::{env, fs, io};

pub use ledger::Counting;

fn print_ledger(out: &mut impl Write) -> io::Result<()> {
    for line in ledger::lines() {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "end")?;
    out.flush()
}

/// Answers commands, or runs once and writes the ledger to the file that the only argument names.
pub fn serve() {
    if let Some(path) = env::args_os().nth(1) {
        sites::run();
        let mut report = fs::File::create(path).expect("the report can be written");
        return print_ledger(&mut report).expect("the report can be written");
    }
    let say = |line: &str| {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).expect("somebody listens");
    };
    say("ready");
    for line in io::stdin().lines() {
        match line.expect("commands are text").as_str() {
            "run" => sites::run(),
            "drop" => sites::drop_kept(),
            "forget" => early::forget(),
            "unknown" => say(&format!("unknown {}", early::freed())),
            "ledger" => {
                print_ledger(&mut io::stdout().lock()).expect("somebody listens");
                continue;
            }
            "exit" => break,
            other => panic!("unknown command `{other}`"),
        }
        say("done");
    }
    say("done");
}
