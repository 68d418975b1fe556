//! Redis as Debian ships it, and those who talk to it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::heaptap::path_str;
use crate::process::{Lines, PATIENCE, Process};

/// A server that is ready; it is killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    /// What it goes on to say is read, so that it can say it.
    log: Lines,
    socket: Socket,
}

impl Server {
    /// Starts one with its socket and its data in a folder.
    pub fn start(folder: &Path) -> Self {
        let socket = Socket(folder.join("socket"));
        let mut redis = Command::new("/usr/bin/redis-server");
        redis.args(["--port", "0", "--save", "", "--unixsocket", path_str(&socket.0), "--dir"]).arg(folder);
        redis.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::spawn(redis);
        let log = Lines::of(process.child().stdout.take().expect("stdout is piped"));
        let mut server = Self { process, log, socket };
        server.log("now ready to accept connections at");
        server
    }

    /// The server's process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it listens.
    pub fn socket(&self) -> Socket {
        self.socket.clone()
    }

    /// Waits for a line of its log that has this in it.
    pub fn log(&mut self, part: &str) -> String {
        self.log.find(format_args!("`{part}` from redis"), |line| line.contains(part))
    }

    /// Has it write what it has to its folder, by a child process; the next server there begins with it.
    pub fn save(&mut self) {
        self.socket.converse("BGSAVE\r\n", "+Background saving started\r\n");
        self.log("Background saving terminated with success");
    }

    /// Has it end; panics unless it ends well.
    pub fn shut_down(mut self) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait();
        assert!(status.success(), "redis ended with {status}");
    }
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Socket(PathBuf);

/// What [`Socket::keep`] puts into the server.
const KEPT: usize = 20_000;

/// Keys of each kind that a round is about.
const KEYS: usize = 50;

impl Socket {
    /// Talks to the server until what it says ends so.
    #[track_caller]
    pub fn converse(&self, say: &str, end: &str) -> String {
        let mut stream = UnixStream::connect(&self.0)
            .unwrap_or_else(|err| panic!("no connection to {}: {err}", self.0.display()));
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        stream.write_all(say.as_bytes()).expect("the server reads");
        let mut heard = Vec::new();
        let mut piece = [0; 1 << 16];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => panic!("no `{end}` in {}", String::from_utf8_lossy(&heard)),
                Ok(count) => heard.extend_from_slice(&piece[..count]),
                Err(err) => panic!("{err} after {}", String::from_utf8_lossy(&heard)),
            }
            if heard.ends_with(end.as_bytes()) {
                break;
            }
        }
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// What it says that it has in use, in bytes, by its allocator's sizes.
    #[track_caller]
    pub fn used_memory(&self) -> i64 {
        self.says("memory", "used_memory:")
    }

    /// The same, once all other connections have ended.
    #[track_caller]
    pub fn used_memory_alone(&self) -> i64 {
        while self.says("clients", "connected_clients:") > 1 {}
        self.used_memory()
    }

    /// A number that the server says of itself.
    #[track_caller]
    fn says(&self, section: &str, name: &str) -> i64 {
        let info = self.converse(&format!("INFO {section}\r\nPING\r\n"), "+PONG\r\n");
        let number = info.lines().find_map(|line| line.strip_prefix(name));
        number.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {info}"))
    }

    /// Has it keep a value of a kilobyte for each of many keys.
    #[track_caller]
    pub fn keep(&self) {
        let commands: String =
            (0..KEPT).map(|number| format!("SET kept:{number} {}\r\n", kept(number))).collect();
        assert_eq!(
            self.converse(&(commands + "PING\r\n"), "+PONG\r\n"),
            "+OK\r\n".repeat(KEPT) + "+PONG\r\n"
        );
    }

    /// Panics unless it has all of these still.
    #[track_caller]
    pub fn check_kept(&self) {
        let commands: String = (0..KEPT).map(|number| format!("GET kept:{number}\r\n")).collect();
        let answer: String = (0..KEPT).map(|number| bulk(&kept(number))).collect();
        let heard = self.converse(&(commands + "PING\r\n"), "+PONG\r\n");
        assert!(heard == answer + "+PONG\r\n", "what was kept has changed");
    }

    /// Writes and reads values, lists and hashes under names of its own, and panics unless each answer is right.
    #[track_caller]
    pub fn check(&self, name: &str, round: u64) {
        let value = |number: usize| format!("{round}.{number}.").repeat(1 + (number * 7) % 60);
        let (mut say, mut answer) = (String::new(), String::new());
        for number in 0..KEYS {
            say += &format!("SET {name}:{number} {}\r\n", value(number));
            say += &format!("RPUSH {name}:list {}\r\n", value(number));
            say += &format!("HSET {name}:hash field:{number} {}\r\n", value(number));
            answer += &format!("+OK\r\n:{}\r\n:1\r\n", number + 1);
        }
        for number in 0..KEYS {
            say += &format!("GET {name}:{number}\r\nHGET {name}:hash field:{number}\r\n");
            answer += &bulk(&value(number)).repeat(2);
        }
        say += &format!("LRANGE {name}:list 0 -1\r\nDEL {name}:list {name}:hash\r\nPING\r\n");
        answer += &format!("*{KEYS}\r\n");
        answer.extend((0..KEYS).map(|number| bulk(&value(number))));
        answer += ":2\r\n+PONG\r\n";
        assert_eq!(self.converse(&say, "+PONG\r\n"), answer, "round {round}");
    }
}

fn kept(number: usize) -> String {
    format!("{number:010}").repeat(100)
}

/// A text as the server says it.
fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// redis-benchmark, which does the same over and over.
#[derive(Debug)]
pub struct Benchmark {
    process: Process,
    said: Lines,
}

impl Benchmark {
    /// Starts it.
    pub fn start(socket: &Socket) -> Self {
        let mut benchmark = Command::new("/usr/bin/redis-benchmark");
        // Of these, nothing is left but one value, one number and one hash.
        benchmark
            .args(["-l", "-q", "-c", "10", "-n", "2000", "-t", "set,get,incr,hset,spop", "-s"])
            .arg(&socket.0);
        benchmark.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::spawn(benchmark);
        let said = Lines::of(process.child().stdout.take().expect("stdout is piped"));
        Self { process, said }
    }

    /// Waits until it has done everything at least once.
    pub fn advance(&mut self) {
        for what in ["SET: ", "GET: ", "INCR: ", "HSET: ", "SPOP: ", "SET: "] {
            self.said.find(what, |line| line.contains(what) && line.contains("requests per second"));
        }
    }

    /// Ends it.
    pub fn stop(mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait();
    }
}
