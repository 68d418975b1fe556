//! nginx with a folder to serve, and connections to it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::heaptap::path_str;
use crate::http::Connection;
use crate::process::{Lines, PATIENCE, Process};

/// A server that is ready; it is killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    /// What it goes on to say is read, so that it can say it.
    _log: Lines,
    folder: TempDir,
    large: Arc<[u8]>,
}

/// A configuration in which one process serves one folder, with filters that allocate.
fn configuration(folder: &str) -> String {
    format!(
        "daemon off; master_process off; pid {folder}/pid; error_log stderr notice;
        events {{ worker_connections 64; }}
        http {{
            access_log {folder}/access.log;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; uwsgi_temp_path {folder}/uwsgi;
            fastcgi_temp_path {folder}/fastcgi; scgi_temp_path {folder}/scgi;
            gzip on; gzip_types *; gzip_min_length 1;
            server {{
                listen unix:{folder}/socket; root {folder}; ssi on; ssi_types *;
                rewrite ^/page/(.*)$ /index.txt?number=$1 last;
            }}
        }}"
    )
}

/// Lines of every page.
const LINES: usize = 100;

/// What is in a file of more than one buffer, which is hardly smaller when it is packed.
fn large_file() -> Arc<[u8]> {
    (0..25_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

impl Server {
    /// Starts one.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder to serve");
        let large = large_file();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("nginx.conf"), configuration(path_str(folder.path()))).expect("it can be written");
        fs::write(file("index.txt"), "<!--#echo var=\"arg_number\" --> and so on\n".repeat(LINES))
            .expect("it can be written");
        fs::write(file("large"), &large).expect("it can be written");
        let mut nginx = Command::new("/usr/sbin/nginx");
        nginx.arg("-p").arg(folder.path()).arg("-c").arg(file("nginx.conf")).args(["-e", "stderr"]);
        nginx.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(nginx);
        let mut log = Lines::of(process.child().stderr.take().expect("stderr is piped"));
        // It listens before it says what limits it has.
        log.find("nginx's limits", |line| line.contains("getrlimit"));
        Self { process, _log: log, folder, large }
    }

    /// The server's process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it listens.
    pub fn socket(&self) -> Socket {
        Socket { path: self.folder.path().join("socket"), large: Arc::clone(&self.large) }
    }

    /// Has it end when it has answered what it was asked; panics unless it ends well.
    pub fn shut_down(mut self) {
        self.process.signal(rustix::process::Signal::QUIT);
        let status = self.process.wait();
        assert!(status.success(), "nginx ended with {status}");
    }
}

/// Where a server listens, and what it serves there.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    large: Arc<[u8]>,
}

impl Socket {
    /// Opens a connection.
    #[track_caller]
    pub fn connect(&self) -> Connection<UnixStream> {
        let stream = UnixStream::connect(&self.path)
            .unwrap_or_else(|err| panic!("no connection to {}: {err}", self.path.display()));
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        Connection::over(stream)
    }

    /// Asks for some pages and files over one connection, and panics unless each answer is right, to the byte.
    #[track_caller]
    pub fn check(&self, round: u64) {
        let mut connection = self.connect();
        for number in 0..10 {
            let name = format!("{round}.{number}");
            let page = format!("{name} and so on\n").repeat(LINES);
            connection.get_packed(&format!("/page/{name}")).assert_is(200, page.as_bytes());
            connection.get(&format!("/page/{name}")).assert_is(200, page.as_bytes());
        }
        connection.get_packed("/large").assert_is(200, &self.large);
        connection.get("/large").assert_is(200, &self.large);
        assert_eq!(connection.get("/missing").status, 404);
    }
}
