//! The real `go tool pprof`.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::heaptap::Running;

/// Runs `go tool pprof ARGUMENTS`, and returns its output; panics where it fails or complains.
#[track_caller]
pub fn pprof(arguments: &[&str]) -> String {
    // Profiles that pprof fetches are kept for good otherwise.
    let folder = TempDir::new().expect("a folder for pprof's copies");
    let mut command = Command::new("go");
    command.args(["tool", "pprof"]).args(arguments).env("PPROF_TMPDIR", folder.path()).stdin(Stdio::null());
    let version = Command::new("go").arg("version").output();
    assert!(
        version.is_ok_and(|output| output.status.success()),
        "the tests compare with the real pprof and there is no `go` on PATH: install Go, on Debian `apt-get \
         install golang-go`"
    );
    let outcome = Running::start(command).wait();
    assert_eq!(outcome.code, Some(0), "go tool pprof {arguments:?}: {outcome:#?}");
    outcome.stdout
}

/// A line of `-top`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The value of the function itself, with its unit as pprof printed it.
    pub flat: String,
    /// The value with everything that it calls.
    pub cum: String,
    /// The function, and after it whatever pprof adds.
    pub function: String,
}

/// The rows of a `-top` report.
pub fn rows(report: &str) -> Vec<Row> {
    let mut lines = report.lines();
    lines.find(|line| line.trim_start().starts_with("flat "));
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            match fields[..] {
                [flat, _, _, cum, _, ref function @ ..] => {
                    Some(Row { flat: flat.to_owned(), cum: cum.to_owned(), function: function.join(" ") })
                }
                _ => None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_head_of_the_table() {
        let report = "Type: inuse_space\nShowing nodes accounting for 30B, 100% of 30B total\n      \
                      flat  flat%   sum%        cum   cum%\n       \
                      20B 66.67% 66.67%        30B   100%  a b (inline)\n";
        let row = Row { flat: "20B".to_owned(), cum: "30B".to_owned(), function: "a b (inline)".to_owned() };
        assert_eq!(rows(report), [row]);
    }
}
