//! A browser without a window, and pages that it opens.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::compile::source;
use crate::heaptap::path_str;
use crate::http::Connection;
use crate::process::{Lines, PATIENCE, Process};

/// A browser that is ready; it is killed when dropped.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    /// What it goes on to say is read, so that it can say it.
    _log: Lines,
    address: String,
    /// What it knows of its user.
    _folder: TempDir,
}

impl Browser {
    /// Starts one.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the user");
        let mut chromium = Command::new("/usr/bin/chromium");
        // Root is refused the sandbox.
        chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]);
        chromium.arg(format!("--user-data-dir={}", path_str(folder.path()))).arg("about:blank");
        chromium.env("HOME", folder.path());
        chromium.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(chromium);
        let mut log = Lines::of(process.child().stderr.take().expect("stderr is piped"));
        let line = log.find("chromium to be ready", |line| line.starts_with("DevTools listening on ws://"));
        let address = line.split('/').nth(2).expect("an address follows").to_owned();
        Self { process, _log: log, address, _folder: folder }
    }

    /// The process ID of the browser itself, whose children show the pages.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it takes orders.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Has it end; panics unless it ends well.
    pub fn shut_down(mut self) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait();
        assert!(status.success(), "chromium ended with {status}");
    }
}

/// Has a browser open a page that computes, and close it; panics unless the page computes right.
#[track_caller]
pub fn check(address: &str, round: u64) {
    let stream =
        TcpStream::connect(address).unwrap_or_else(|err| panic!("no connection to {address}: {err}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
    let mut connection = Connection::over(stream);
    let page = source("page.html");
    let answer = connection.put(&format!("/json/new?file://{}%23{round}", path_str(&page)));
    let tab: Value = serde_json::from_slice(&answer.body).expect("chromium answers in JSON");
    let id = tab["id"].as_str().unwrap_or_else(|| panic!("no page but {tab}")).to_owned();
    let sum: u64 = (0..20000).map(|at| at * round + at % 5 * 4).sum();
    assert_eq!(title(&mut connection, &id), format!("sum {sum}"), "round {round}");
    assert_eq!(connection.get(&format!("/json/close/{id}")).status, 200, "round {round}");
}

/// The title of a page when it has computed.
fn title(connection: &mut Connection<TcpStream>, id: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = connection.get("/json/list");
        let tabs: Value = serde_json::from_slice(&answer.body).expect("chromium answers in JSON");
        let tab = tabs.as_array().and_then(|tabs| tabs.iter().find(|tab| tab["id"] == id));
        let title = tab.and_then(|tab| tab["title"].as_str()).unwrap_or_default();
        if title.starts_with("sum ") {
            return title.to_owned();
        }
        assert!(Instant::now() < deadline, "page {id} has computed nothing within {PATIENCE:?}: {tabs:#}");
    }
}
