//! One boot of a machine.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::outcome::Outcome;

/// A machine to boot.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: &'static str,
    /// Debian's release that the kernel is of, and the package that stands for the newest kernel of its line.
    pub(super) release: &'static str,
    pub(super) package: &'static str,
    /// The processor, as qemu names it.
    pub(super) cpu: &'static str,
    /// The test binaries that are run there, where they are not all and nobody asks for this machine alone.
    pub(super) only: &'static [&'static str],
    /// Whether heaptap runs there; where it does not, `heaptap doctor` has to say so and no test runs.
    pub(super) is_supported: bool,
}

/// How long a machine may say nothing. A test says nothing while it runs, and waits two minutes for anything it waits for.
const SILENCE: Duration = Duration::from_secs(600);

/// How long a machine may take in all: several times what all tests do on a busy machine.
const LIMIT: Duration = Duration::from_secs(3000);

/// The emulator; it is ended when it is no longer watched.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Fails for one that has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// Whether a test binary is run there.
    pub(super) fn runs(&self, suite: &str) -> bool {
        self.only.is_empty() || self.only.contains(&suite)
    }

    /// Boots a kernel, shows the console, and gives what it said.
    pub(super) fn boot(
        &self,
        kernel: &Path,
        file_system: &Path,
        suites: &[&str],
        folder: &Path,
    ) -> Result<Outcome> {
        let release = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = folder.join(format!("{}.log", self.name));
        let mut log_file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        println!(
            "{}: {release} with -cpu {}; all of the console is in {}",
            self.name,
            self.cpu,
            log.display()
        );
        let (doctor, suites) = if self.is_supported { (0, suites) } else { (2, &[][..]) };
        let mut outcome = Outcome::of(release, doctor, suites);
        let started = Instant::now();
        // The kernel hands words that it does not know to the first process.
        let words = format!("console=ttyS0 panic=-1 quiet SUITES={}", suites.join(","));
        // It ends with us, however that comes.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            // Two processors that take turns: with a thread for each, Debian's qemu 7.2 now and then lets one of them run
            // code that the other has just changed, which is the kernel's end ("Oops: int3").
            .args(["-accel", "tcg,thread=single", "-cpu", self.cpu])
            .args(["-smp", "2", "-m", "2G", "-no-reboot", "-net", "none", "-append", &words])
            // With neither screen nor monitor, so that the firmware does not clear the terminal.
            .args(["-display", "none", "-vga", "none", "-monitor", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(file_system)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run `setpriv`")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut emulator = Emulator(child);
        let mut lines = Lines { pieces: pieces_of(stdout), begun: Vec::new() };
        loop {
            let patience = SILENCE.min(LIMIT.saturating_sub(started.elapsed()));
            let line = match lines.next(patience) {
                Ok(Some(line)) => line,
                Ok(None) => {
                    let status = emulator.0.wait().context("cannot wait for the machine")?;
                    outcome.ended = Some(format!("qemu ended ({status})"));
                    break;
                }
                Err(Silent) => {
                    outcome.hear(&lines.rest());
                    outcome.ended = Some(if started.elapsed() < LIMIT {
                        format!("it said nothing for {} s, and was switched off", SILENCE.as_secs())
                    } else {
                        format!("it took {} s, and was switched off", LIMIT.as_secs())
                    });
                    break;
                }
            };
            writeln!(log_file, "{:7.1} {line}", started.elapsed().as_secs_f64())
                .with_context(|| format!("cannot write {}", log.display()))?;
            if outcome.is_shown() && !line.is_empty() {
                println!("{:<8} {line}", self.name);
            }
            outcome.hear(&line);
        }
        outcome.took = started.elapsed();
        Ok(outcome)
    }
}

/// The lines of a console.
struct Lines {
    pieces: Receiver<Vec<u8>>,
    /// What has come of the next line, or of several.
    begun: Vec<u8>,
}

/// Nothing came in time.
struct Silent;

impl Lines {
    /// The next line; `None` at the end.
    fn next(&mut self, patience: Duration) -> std::result::Result<Option<String>, Silent> {
        loop {
            if let Some(end) = self.begun.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.begun.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            match self.pieces.recv_timeout(patience) {
                Ok(piece) => self.begun.extend(piece),
                Err(mpsc::RecvTimeoutError::Timeout) => return Err(Silent),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// What has come of a line that does not end, such as the name of a test that hangs.
    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.begun).into_owned()
    }
}

/// What comes from a stream, read by a thread of its own so that waiting for it can time out.
fn pieces_of(mut stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if sender.send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_whole_and_one_that_does_not_end_is_told() {
        let (sender, pieces) = mpsc::channel();
        let mut lines = Lines { pieces, begun: Vec::new() };
        for piece in ["one\r\ntw", "o\nthree ..."] {
            sender.send(piece.into()).expect("it is listened to");
        }
        for wanted in ["one", "two"] {
            assert!(matches!(lines.next(Duration::ZERO), Ok(Some(line)) if line == wanted));
        }
        assert!(lines.next(Duration::ZERO).is_err());
        assert_eq!(lines.rest(), "three ...");
        drop(sender);
        assert!(matches!(lines.next(Duration::ZERO), Ok(None)));
    }
}
