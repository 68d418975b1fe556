//! PostgreSQL's server with a database of its own, and its clients.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::guest::Guest;
use crate::heaptap::path_str;
use crate::process::{Lines, Process};
use crate::sql::{self, ROWS};

/// A server that is ready; it is killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    /// What it goes on to say is read, so that it can say it.
    _log: Lines,
    folder: TempDir,
}

/// Rows of a kilobyte that [`Client::keep`] has its backend keep.
const KEPT: u64 = 20_000;

/// Accounts between which money goes to and fro.
const ACCOUNTS: u64 = 1000;

impl Server {
    /// Makes a database and starts its server.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the database");
        let (uid, gid) = owner();
        chown(folder.path(), Some(uid), Some(gid)).expect("root may give it away");
        let data = folder.path().join("data");
        let mut init = as_owner("initdb");
        init.args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C"]);
        init.arg("-D").arg(&data).current_dir(folder.path());
        let output = init.output().expect("postgresql is installed");
        assert!(output.status.success(), "{init:?}: {}", String::from_utf8_lossy(&output.stderr));
        let mut server = as_owner("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(folder.path()).args(["-h", "", "-c", "fsync=off"]);
        server.current_dir(folder.path());
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(server);
        let mut log = Lines::of(process.child().stderr.take().expect("stderr is piped"));
        log.find("PostgreSQL to be ready", |line| line.contains("ready to accept connections"));
        let server = Self { process, _log: log, folder };
        server.connect().fill();
        server
    }

    /// The process ID of the postmaster, from which a backend forks for each client.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A client with a connection of its own.
    pub fn connect(&self) -> Client {
        connect(self.folder.path())
    }

    /// Where clients connect.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Has it end its backends and itself; panics unless it ends well.
    pub fn shut_down(mut self) {
        self.process.signal(Signal::INT);
        let status = self.process.wait();
        assert!(status.success(), "PostgreSQL ended with {status}");
    }
}

/// A client of the server that listens there.
pub fn connect(folder: &Path) -> Client {
    let mut psql = Command::new("/usr/bin/psql");
    psql.args(["-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]);
    psql.args(["-d", "postgres", "-h", path_str(folder)]);
    Client { program: Guest::spawn_command("psql", psql), total: 0 }
}

/// Whom the server has to run as: it refuses root.
fn owner() -> (u32, u32) {
    let home = fs::metadata("/var/lib/postgresql").expect("postgresql is installed");
    (home.uid(), home.gid())
}

/// A command of the server's, which Debian has in a folder for each version.
fn as_owner(name: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("postgresql is installed");
    let folders = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let program = folders.map(|folder| folder.join(name)).filter(|path| path.exists()).max();
    let mut command = Command::new(program.unwrap_or_else(|| panic!("postgresql has no {name}")));
    let (uid, gid) = owner();
    command.uid(uid).gid(gid);
    command
}

/// A connection, which has a backend of its own.
#[derive(Debug)]
pub struct Client {
    program: Guest,
    /// What it has moved so far.
    total: u64,
}

impl Client {
    /// The lines that the server answers to some statements.
    #[track_caller]
    pub fn ask(&mut self, statements: &str) -> Vec<String> {
        // The client ends at an error; then there is no such line.
        self.program.command(&format!("{statements}; SELECT 'done';"))
    }

    /// The number that it answers.
    #[track_caller]
    fn number<T: std::str::FromStr>(&mut self, statement: &str) -> T {
        let answer = self.ask(statement);
        let number = answer.first().and_then(|line| line.parse().ok());
        number.unwrap_or_else(|| panic!("PostgreSQL answers {answer:?} to `{statement}`"))
    }

    fn fill(&mut self) {
        self.ask(&format!(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, part INTEGER, name TEXT);
             INSERT INTO items SELECT id, id % 13, 'row ' || id FROM generate_series(1, {ROWS}) id;
             CREATE INDEX parts ON items (part, name);
             CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance BIGINT NOT NULL);
             INSERT INTO accounts SELECT id, 0 FROM generate_series(1, {ACCOUNTS}) id;
             CREATE TABLE history (client INTEGER, account INTEGER, amount BIGINT, time TIMESTAMP);
             VACUUM ANALYZE"
        ));
    }

    /// The process ID of its backend.
    #[track_caller]
    pub fn backend(&mut self) -> u32 {
        self.number("SELECT pg_backend_pid()")
    }

    /// What the backend says that its memory contexts have taken, in bytes.
    #[track_caller]
    pub fn taken(&mut self) -> i64 {
        self.number("SELECT SUM(total_bytes) FROM pg_backend_memory_contexts")
    }

    /// Has the backend keep some 20 MB or more.
    #[track_caller]
    pub fn keep(&mut self) {
        self.ask(&format!(
            "SET work_mem = '256MB';
             DECLARE kept SCROLL CURSOR WITH HOLD FOR
                SELECT repeat(lpad(number::text, 10, '0'), 100) FROM generate_series(1, {KEPT}) number"
        ));
    }

    /// Panics unless it has that still.
    #[track_caller]
    pub fn check_kept(&mut self) {
        for number in [1, 2, KEPT / 3, KEPT - 1, KEPT] {
            let row = format!("{number:010}").repeat(100);
            assert_eq!(self.ask(&format!("FETCH ABSOLUTE {number} FROM kept")), [row]);
        }
    }

    /// Reads and changes rows, and moves money as pgbench does; panics unless each answer is right.
    #[track_caller]
    pub fn check(&mut self, round: u64) {
        sql::check(|statements| self.ask(statements), round);
        for number in 0..10 {
            let (account, amount) = ((round * 7919 + number * 104_729) % ACCOUNTS + 1, round + number);
            self.ask(&format!(
                "BEGIN;
                 UPDATE accounts SET balance = balance + {amount} WHERE id = {account};
                 SELECT balance FROM accounts WHERE id = {account};
                 INSERT INTO history VALUES (pg_backend_pid(), {account}, {amount}, CURRENT_TIMESTAMP);
                 END"
            ));
            self.total += amount;
        }
        let sums = "SELECT SUM(amount) FROM history WHERE client = pg_backend_pid();
                    SELECT (SELECT SUM(balance) FROM accounts) = (SELECT SUM(amount) FROM history)";
        assert_eq!(self.ask(sums), [self.total.to_string(), "t".to_owned()], "round {round}");
        // Sorts and sums in memory, in blocks that the backend takes for this and gives back.
        let long = "SELECT COUNT(*), SUM(LENGTH(all_names)) FROM
                (SELECT string_agg(repeat(name, 20), ',' ORDER BY name DESC) all_names FROM items GROUP BY part) parts";
        let length: u64 = (1..=ROWS).map(|id| 20 * format!("row {id}").len() as u64 + 1).sum();
        assert_eq!(self.ask(long), [format!("13\t{}", length - 13)], "round {round}");
    }
}
