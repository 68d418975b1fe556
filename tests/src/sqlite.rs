//! SQLite's own program with a database in memory.

use std::process::Command;

use crate::guest::Guest;
use crate::sql::{self, ROWS};

/// A program with its database; it is killed when dropped.
#[derive(Debug)]
pub struct Database(Guest);

/// Rows of a kilobyte that [`Database::keep`] adds.
const KEPT: u64 = 20_000;

impl Database {
    /// Starts one that has a table of its own.
    pub fn start() -> Self {
        // It keeps back what it says until there is more, unless it is told not to.
        let mut sqlite = Command::new("/usr/bin/stdbuf");
        sqlite.args(["--output=L", "/usr/bin/sqlite3", "-batch", "-bail", "-separator", "\t", ":memory:"]);
        let mut database = Self(Guest::spawn_command("sqlite3", sqlite));
        database.ask(&format!(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, part INTEGER, name TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
                INSERT INTO items SELECT i, i % 13, 'row ' || i FROM n;
             CREATE INDEX parts ON items (part, name)"
        ));
        database
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// The lines that it answers to some statements.
    #[track_caller]
    pub fn ask(&mut self, statements: &str) -> Vec<String> {
        // It ends at an error; then there is no such line.
        self.0.command(&format!("{statements};\nSELECT 'done';"))
    }

    /// What it says that it has in use, in bytes.
    #[track_caller]
    pub fn taken(&mut self) -> i64 {
        let answer = self.0.command(".stats on\nSELECT 'counted';\n.stats off\nSELECT 'done';");
        let line = answer.iter().find_map(|line| line.strip_prefix("Memory Used:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("SQLite does not say what it uses, but {answer:#?}"))
    }

    /// Has it keep 20 MB.
    #[track_caller]
    pub fn keep(&mut self) {
        self.ask(&format!(
            "CREATE TABLE kept (id INTEGER PRIMARY KEY, text TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {KEPT})
                INSERT INTO kept SELECT i, printf('%01000d', i) FROM n"
        ));
    }

    /// Panics unless it has that still.
    #[track_caller]
    pub fn check_kept(&mut self) {
        let sum = KEPT * (KEPT + 1) / 2;
        assert_eq!(
            self.ask("SELECT COUNT(*), SUM(LENGTH(text)), SUM(CAST(text AS INTEGER)) FROM kept"),
            [format!("{KEPT}\t{}\t{sum}", KEPT * 1000)]
        );
        assert_eq!(self.ask("PRAGMA integrity_check"), ["ok"]);
    }

    /// Reads and changes its table, and panics unless each answer is right.
    #[track_caller]
    pub fn check(&mut self, round: u64) {
        sql::check(|statements| self.ask(statements), round);
    }
}
