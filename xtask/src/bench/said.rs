//! What a program says, waited for no longer than until a moment.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

/// The lines that a program has said and that were not waited for yet.
#[derive(Debug)]
pub(super) struct Said {
    lines: Receiver<String>,
    /// What it complained about, for who asks why it has ended.
    complaint: Option<String>,
    last: Option<String>,
}

impl Said {
    /// Listens to all that can be read, such as stdout and stderr of one program.
    pub(super) fn of(streams: impl IntoIterator<Item = Box<dyn Read + Send>>) -> Self {
        let (sender, lines) = mpsc::channel();
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || pass_on(stream, &sender));
        }
        Self { lines, complaint: None, last: None }
    }

    /// Waits for a line in which something is found.
    pub(super) fn wait_for<T>(&mut self, until: Instant, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        loop {
            let wait = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(wait) {
                Ok(line) => {
                    if let Some(found) = found(&line) {
                        return Ok(found);
                    }
                    self.keep(line);
                }
                Err(RecvTimeoutError::Timeout) => bail!("timeout"),
                Err(RecvTimeoutError::Disconnected) => {
                    match self.complaint.take().or_else(|| self.last.take()) {
                        Some(line) => bail!("ended: {line}"),
                        None => bail!("ended without a word"),
                    }
                }
            }
        }
    }

    fn keep(&mut self, line: String) {
        if line.trim().is_empty() {
            return;
        }
        if self.complaint.is_none() && line.to_ascii_lowercase().contains("error") {
            self.complaint = Some(line.clone());
        }
        self.last = Some(line);
    }
}

fn pass_on(stream: impl Read, sender: &Sender<String>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    // Read to the end also when nobody listens: a program that cannot write waits.
    while stream.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said(text: &'static str) -> Said {
        Said::of([Box::new(text.as_bytes()) as Box<dyn Read + Send>])
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_line_is_found_among_others() {
        let mut said = said("starting\nready 17\n25.5\n");
        assert_eq!(
            said.wait_for(soon(), |line| line.strip_prefix("ready ")?.parse::<u32>().ok()).unwrap(),
            17
        );
        assert_eq!(said.wait_for(soon(), |line| line.parse::<f64>().ok()).unwrap(), 25.5);
    }

    #[test]
    fn the_reason_is_the_first_error_or_else_the_last_line() {
        let nothing = |_: &str| None::<()>;
        let reason = |text| said(text).wait_for(soon(), nothing).unwrap_err().to_string();
        assert_eq!(reason("error: no such option\n\nUsage: heaptap\n"), "ended: error: no such option");
        assert_eq!(reason("one\ntwo\n\n"), "ended: two");
        assert_eq!(reason(""), "ended without a word");
    }

    #[test]
    fn waiting_ends() {
        let (read, write) = std::io::pipe().unwrap();
        let mut said = Said::of([Box::new(read) as Box<dyn Read + Send>]);
        assert_eq!(said.wait_for(Instant::now(), |_| Some(())).unwrap_err().to_string(), "timeout");
        drop(write);
    }
}
