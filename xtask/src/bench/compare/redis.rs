//! redis-server under redis-benchmark.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::target::{Work, streams};
use crate::bench::said::Said;

/// Requests by which the speed is estimated at first: 50 connections have 40 each.
const FIRST_REQUESTS: f64 = 2000.0;

/// A server that listens on a port of its own.
#[derive(Debug)]
pub(super) struct Redis {
    port: u16,
    pipeline: u32,
    folder: PathBuf,
    /// How many requests it has answered in a second when it was last at work.
    requests_s: Cell<Option<f64>>,
}

impl Redis {
    pub(super) fn new(pipeline: u32, folder: &Path) -> Result<Self> {
        // Free again at once, and not given to anybody else so soon.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        Ok(Self { port, pipeline, folder: folder.to_path_buf(), requests_s: Cell::new(None) })
    }

    /// The command that starts it: it keeps nothing on disk.
    pub(super) fn server(&self) -> Vec<OsString> {
        let port = self.port.to_string();
        let options = ["/usr/bin/redis-server", "--port", &port, "--bind", "127.0.0.1", "--save", ""];
        let mut command: Vec<OsString> = options.map(OsString::from).into();
        command.extend(["--appendonly", "no", "--loglevel", "warning", "--dir"].map(OsString::from));
        command.push(self.folder.clone().into());
        command
    }

    /// Waits until it answers, and gives its PID.
    pub(super) fn wait_until_ready(&self, until: Instant) -> Result<u32> {
        loop {
            if let Ok(pid) = self.ask_pid() {
                return Ok(pid);
            }
            ensure!(Instant::now() < until, "redis-server does not answer");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask_pid(&self) -> Result<u32> {
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        // The last answer is the end of what is to be read.
        server.write_all(b"INFO server\r\nQUIT\r\n")?;
        let mut answer = String::new();
        server.read_to_string(&mut answer)?;
        process_id(&answer).context("redis-server does not say its PID")
    }

    /// Has it answer requests for about so many seconds.
    pub(super) fn work(&self, seconds: f64, until: Instant) -> Result<Work> {
        let requests_s = match self.requests_s.get() {
            Some(requests_s) => requests_s,
            None => self.benchmark(FIRST_REQUESTS, until)?.requests_s,
        };
        let requests = (requests_s * seconds).max(FIRST_REQUESTS).round();
        let found = self.benchmark(requests, until)?;
        self.requests_s.set(Some(found.requests_s));
        Ok(Work { operation_ns: 1e9 / found.requests_s, operations: requests, p99_ms: Some(found.p99_ms) })
    }

    fn benchmark(&self, requests: f64, until: Instant) -> Result<Found> {
        let mut benchmark = Benchmark(self.start(requests, Stdio::piped)?);
        let mut said = Said::of(streams(&mut benchmark.0)?);
        said.wait_for(until, found).context("redis-benchmark")
    }

    /// Has it answer requests until it ends, or what is given.
    pub(super) fn keep_busy(&self) -> Result<Child> {
        self.start(1e9, Stdio::null)
    }

    fn start(&self, requests: f64, output: fn() -> Stdio) -> Result<Child> {
        Command::new("redis-benchmark")
            .args(["-p", &self.port.to_string(), "-P", &self.pipeline.to_string()])
            .args([
                "-n",
                &format!("{requests:.0}"),
                "-c",
                "50",
                "-t",
                "set",
                "-r",
                "10000",
                "-d",
                "100",
                "--csv",
            ])
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .spawn()
            .context("cannot start redis-benchmark")
    }
}

/// The benchmark, which ends when this does.
struct Benchmark(Child);

impl Drop for Benchmark {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the benchmark has found.
#[derive(Debug, PartialEq)]
struct Found {
    requests_s: f64,
    p99_ms: f64,
}

/// Understands a line of redis-benchmark's table; its first line says what the columns are, which is the same since 6.2.
fn found(line: &str) -> Option<Found> {
    let fields: Vec<&str> = line.split(',').map(|field| field.trim_matches('"')).collect();
    let [_, requests_s, _average, _least, _p50, _p95, p99_ms, _most] = fields.as_slice() else { return None };
    Some(Found { requests_s: requests_s.parse().ok()?, p99_ms: p99_ms.parse().ok()? })
}

/// The PID in what the server says of itself.
fn process_id(answer: &str) -> Option<u32> {
    answer.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmarks_table_is_understood() {
        let head = r#""test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms""#;
        assert_eq!(found(head), None);
        let line = r#""SET","70921.98","0.416","0.096","0.367","0.703","1.031","2.207""#;
        assert_eq!(found(line), Some(Found { requests_s: 70921.98, p99_ms: 1.031 }));
        assert_eq!(found("WARNING: Could not fetch server CONFIG"), None);
    }

    #[test]
    fn the_servers_pid_is_found() {
        assert_eq!(process_id("$400\r\n# Server\r\nprocess_id:17210\r\nrun_id:5\r\n"), Some(17210));
        assert_eq!(process_id("+OK"), None);
    }
}
