//! A service written in a language with a heap of its own, which works and keeps what it is told to outside of that.
//!
//! It listens for HTTP, says where, and answers with numbers: `guests/service.js`, `guests/service.py` and
//! `guests/Service.java`.

use std::process::Command;

use crate::compile::source;
use crate::guest::Guest;
use crate::http::get;

/// A service that is ready; it is killed when dropped.
#[derive(Debug)]
pub struct Service {
    program: Guest,
    url: String,
}

/// What the service says that it has by malloc, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All that it knows of.
    pub all: i64,
    /// What the program's own code has asked for.
    pub own: i64,
}

impl Service {
    /// In Node.
    pub fn node() -> Self {
        let mut node = Command::new("/usr/bin/node");
        node.arg("--expose-gc").arg(source("service.js"));
        Self::start("node", node)
    }

    /// In Python, each request on a thread of its own.
    pub fn python() -> Self {
        let mut python = Command::new("/usr/bin/python3");
        // Else the interpreter cuts small objects from blocks of its own, and few allocations are seen.
        python.arg(source("service.py")).env("PYTHONMALLOC", "malloc");
        Self::start("python3", python)
    }

    /// In Java, by a JVM with these options.
    pub fn java(options: &[&str]) -> Self {
        let mut java = Command::new("/usr/bin/java");
        java.args(["-XX:NativeMemoryTracking=summary", "-Xmx256M"]).args(options);
        java.arg(source("Service.java"));
        Self::start("java", java)
    }

    fn start(name: &str, command: Command) -> Self {
        let mut program = Guest::spawn_command(name, command);
        let port = program.line("ready ");
        let url = format!("http://127.0.0.1:{}", port.trim_start_matches("ready "));
        Self { program, url }
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Has it keep so many blocks of a MiB, fewer or more than before.
    #[track_caller]
    pub fn keep(&self, count: i64) {
        assert_eq!(ask(&self.url, "keep", count), [count]);
    }

    /// Panics unless it still has so many, and in each of them what it put there.
    #[track_caller]
    pub fn check_kept(&self, count: i64) {
        assert_eq!(ask(&self.url, "kept", 0), [count]);
    }

    /// What it has, without what is no longer used.
    #[track_caller]
    pub fn memory(&self) -> Memory {
        match ask(&self.url, "memory", 0)[..] {
            [all, own] => Memory { all, own },
            ref others => panic!("all and its own, not {others:?}"),
        }
    }
}

/// Has a service work, and panics unless it answers right.
#[track_caller]
pub fn check(url: &str, round: u64) {
    let seed = i64::try_from(round).expect("there are not so many rounds");
    let sum: i64 = (0..20000).map(|at| (at * seed) & 255).sum();
    assert_eq!(ask(url, "work", seed), [20000, sum], "round {round}");
}

/// The numbers that it answers.
#[track_caller]
fn ask(url: &str, what: &str, number: i64) -> Vec<i64> {
    let url = format!("{url}/{what}/{number}");
    let (status, body) = get(&url);
    assert_eq!(status, 200, "{url}");
    serde_json::from_slice(&body)
        .unwrap_or_else(|err| panic!("{url}: {err} in {}", String::from_utf8_lossy(&body)))
}
