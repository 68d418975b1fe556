//! MariaDB's server with a database of its own, and its clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::compile;
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

/// How glibc's own count is asked for, from inside the server.
const FUNCTION: &str = "CREATE FUNCTION taken RETURNS INTEGER SONAME 'libmallinfo.so'";

/// How long the value of a variable is: none is so short that it needs no block of its own.
const fn length(number: i64) -> i64 {
    100 + number % 1000
}

/// What [`Client::keep`] has the server keep, at least.
pub const KEPT_BYTES: i64 = 20_000_000;

/// The number of its small blocks, at least.
pub const KEPT_OBJECTS: i64 = 5000;

impl Server {
    /// Makes a database and starts its server.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the database");
        install(&folder.path().join("data"));
        let mut server = Command::new("/usr/sbin/mariadbd");
        server.args(["--no-defaults", "--user=root", "--skip-networking"]);
        server.arg(format!("--datadir={}", path_str(&folder.path().join("data"))));
        server.arg(format!("--socket={}", path_str(&socket(folder.path()))));
        server.arg(format!("--plugin-dir={}", path_str(&compile::mariadb_plugins())));
        server.args(["--innodb-buffer-pool-size=32M", "--max-heap-table-size=64M"]);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(server);
        let mut log = Lines::of(process.child().stderr.take().expect("stderr is piped"));
        log.find("MariaDB to be ready", |line| line.ends_with("ready for connections."));
        let server = Self { process, _log: log, folder };
        server.connect().ask(FUNCTION);
        server
    }

    /// The server's process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A client with a connection of its own.
    pub fn connect(&self) -> Client {
        let mut client = Command::new("/usr/bin/mariadb");
        client.args(["--no-defaults", "--user=root", "--batch", "--skip-column-names", "--unbuffered"]);
        client.arg(format!("--socket={}", path_str(&socket(self.folder.path()))));
        Client(Guest::spawn_command("mariadb", client))
    }

    /// Has it end as an administrator does; panics unless it ends well.
    pub fn shut_down(mut self) {
        let mut client = self.connect();
        client.0.send("SHUTDOWN;");
        let status = self.process.wait();
        assert!(status.success(), "MariaDB ended with {status}");
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

/// Makes the tables that a server has to have.
fn install(data: &Path) {
    let mut install = Command::new("/usr/bin/mariadb-install-db");
    install.args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal"]);
    install.args(["--skip-test-db", "--skip-name-resolve"]);
    install.arg(format!("--datadir={}", path_str(data)));
    let output = install.output().expect("mariadb-server-core is installed");
    assert!(output.status.success(), "{install:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A count of bytes in use, by who counts.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// glibc, for the whole process.
    pub by_glibc: i64,
    /// The server, for what it allocates by its own functions.
    pub by_itself: i64,
}

/// A connection.
#[derive(Debug)]
pub struct Client(Guest);

impl Client {
    /// The lines that the server answers to some statements.
    #[track_caller]
    pub fn ask(&mut self, statements: &str) -> Vec<String> {
        // The client ends at an error; then there is no such line.
        self.0.command(&format!("{statements}; SELECT 'done';"))
    }

    /// What the server has taken from its allocator.
    #[track_caller]
    pub fn taken(&mut self) -> Taken {
        Taken {
            by_glibc: self.number("SELECT taken()"),
            by_itself: self.number("SHOW GLOBAL STATUS LIKE 'Memory_used'"),
        }
    }

    /// The number that it answers, in the last column.
    #[track_caller]
    fn number(&mut self, statement: &str) -> i64 {
        let answer = self.ask(statement);
        let number = answer.first().and_then(|line| line.rsplit('\t').next()?.parse().ok());
        number.unwrap_or_else(|| panic!("MariaDB answers {answer:?} to `{statement}`"))
    }

    /// Makes a table of its own, in a database of this name.
    #[track_caller]
    pub fn fill(&mut self, database: &str) {
        self.ask(&format!(
            "CREATE DATABASE {database};
             CREATE TABLE {database}.items (id INTEGER PRIMARY KEY, part INTEGER, name VARCHAR(100), INDEX (part, name));
             INSERT INTO {database}.items SELECT seq, seq % 13, CONCAT('row ', seq) FROM mysql.seq_1_to_{ROWS};
             USE {database}"
        ));
    }

    /// Has the server keep [`KEPT_BYTES`] in large blocks, the rows of a table, and [`KEPT_OBJECTS`] small ones.
    #[track_caller]
    pub fn keep(&mut self) {
        self.ask(&format!(
            "CREATE DATABASE kept;
             CREATE TABLE kept.items (name CHAR(250) CHARACTER SET latin1) ENGINE=MEMORY;
             INSERT INTO kept.items SELECT REPEAT('x', 250) FROM mysql.seq_1_to_{}",
            KEPT_BYTES / 250
        ));
        let variables: Vec<String> = (0..KEPT_OBJECTS)
            .map(|number| format!("@kept{number} = REPEAT('x', {})", length(number)))
            .collect();
        // A statement has a largest size.
        for some in variables.chunks(500) {
            self.ask(&format!("SET {}", some.join(", ")));
        }
    }

    /// Panics unless all that [`Self::keep`] keeps is as it was.
    #[track_caller]
    pub fn check_kept(&mut self) {
        let rows = KEPT_BYTES / 250;
        let right = "SELECT COUNT(*), SUM(name = REPEAT('x', 250)) FROM kept.items";
        assert_eq!(self.ask(right), [format!("{rows}\t{rows}")]);
        for number in [0, 1, KEPT_OBJECTS / 2, KEPT_OBJECTS - 1] {
            assert_eq!(self.number(&format!("SELECT LENGTH(@kept{number})")), length(number));
        }
    }

    /// Reads and changes the rows of its table, and panics unless each answer is right.
    #[track_caller]
    pub fn check(&mut self, round: u64) {
        sql::check(|statements| self.ask(statements), round);
    }
}
