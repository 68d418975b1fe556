//! Programs as Debian ships them, at work under `heaptap record`.

use std::process::Command;

use crate::guest::Guest;
use crate::heaptap::{Recorded, Recording, path_str};
use crate::{nginx, redis};

/// Containers, JSON, regular expressions, a compressor and a sort with callbacks into the interpreter.
const PYTHON: &str = r#"
import json, re, sys, zlib, decimal
print("ready", flush=True)
for line in sys.stdin:
    rows = [{"id": n, "name": "row %d" % n, "tags": [str(n % 7)] * 3} for n in range(1000)]
    text = json.dumps(rows)
    back = json.loads(text)
    back.sort(key=lambda row: (-len(row["name"]), row["name"]))
    found = re.findall(r'"name": "(row (\d+))"', text)
    packed = [zlib.compress(text[at:at + 2000].encode()) for at in range(0, len(text), 2000)]
    sums = sum(decimal.Decimal(row["id"]) / 7 for row in rows)
    print("done", len(found), len(packed), flush=True)
"#;

/// Allocates and frees all the time, on a thread of its own; keeps blocks when it is told to, and says what glibc has given.
const PYTHON_THAT_COUNTS: &str = r#"
import ctypes, sys, threading
NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo2
def taken():
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd
running = True
def load():
    while running:
        [bytes(1000) for _ in range(100)]
thread = threading.Thread(target=load)
thread.start()
before = taken()
print("ready", flush=True)
for line in sys.stdin:
    if line == "keep\n":
        kept = [bytes(500 + n % 1000) for n in range(20000)]
        kept += [bytes(1 << 20) for n in range(10)]
        print("done", flush=True)
    else:
        running = False
        thread.join()
        print("taken", taken() - before, flush=True)
"#;

/// Buffers outside of V8's heap, JSON, a compressor on other threads, and compiled code.
const NODE: &str = r#"
const zlib = require('zlib'), crypto = require('crypto');
const lines = require('readline').createInterface({ input: process.stdin });
lines.on('line', () => {
    const rows = Array.from({ length: 1000 }, (_, n) => ({ id: n, name: `row ${n}` }));
    const text = JSON.stringify(rows);
    let sum = 0;
    for (let round = 0; round < 200; round++) {
        sum += zlib.deflateSync(text).length + JSON.parse(text).length;
        sum += crypto.createHash('sha256').update(text).digest().length;
        sum += Buffer.alloc(20000 + round, 'x').length;
    }
    zlib.gzip(text, (error, packed) => console.log('done', sum, packed.length));
});
console.log('ready');
"#;

const SQL: &str = "
CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT, part INTEGER);
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
    INSERT INTO rows SELECT i, printf('the name of row %d', i), i % 13 FROM n;
CREATE INDEX names ON rows (part, name);
SELECT part, count(*), group_concat(name) FROM rows GROUP BY part ORDER BY 2 DESC;
SELECT a.name, json_object('id', b.id, 'name', b.name) FROM rows a JOIN rows b ON a.id = b.id + 7 WHERE a.part < 6;
UPDATE rows SET name = upper(name) || replace(name, 'row', 'line') WHERE part = 5;
.shell echo done
";

/// Records a program that says `ready`, works when it hears of it, and says `done`.
fn record(command: Command, work: &str, options: &[&str]) -> Recorded {
    let mut program = Guest::spawn_command(&format!("{command:?}"), command);
    program.line("ready");
    let recording = Recording::attach_with(program.pid(), options);
    program.send(work);
    program.line("done");
    recording.finish()
}

/// The interpreter at work on data.
pub fn python3(options: &[&str]) -> Recorded {
    let mut python = Command::new("/usr/bin/python3");
    // Else the interpreter cuts small objects from blocks of its own, and few allocations are seen.
    python.args(["-c", PYTHON]).env("PYTHONMALLOC", "malloc");
    record(python, "work", options)
}

/// The interpreter under load; also what glibc itself says that it has given since.
pub fn python3_with_its_own_count() -> (Recorded, i64) {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", PYTHON_THAT_COUNTS]).env("PYTHONMALLOC", "malloc");
    let mut program = Guest::spawn_command("python3", python);
    program.line("ready");
    let recording = Recording::attach(program.pid());
    program.send("keep");
    program.line("done");
    program.send("count");
    let line = program.line("taken ");
    let taken = line.trim_start_matches("taken ").parse().expect("a number");
    (recording.finish(), taken)
}

/// Node at work on data.
pub fn node(options: &[&str]) -> Recorded {
    let mut node = Command::new("/usr/bin/node");
    node.args(["-e", NODE]);
    record(node, "work", options)
}

/// A database in memory.
pub fn sqlite3(options: &[&str]) -> Recorded {
    let mut sqlite = Command::new("/usr/bin/sqlite3");
    // Both words are said by another process, for sqlite keeps its own back until there are more.
    sqlite.args(["-batch", "-cmd", ".shell echo ready", ":memory:"]);
    record(sqlite, SQL, options)
}

/// A web server with some requests.
pub fn nginx(options: &[&str]) -> Recorded {
    let server = nginx::Server::start();
    let recording = Recording::attach_with(server.pid(), options);
    for number in 0..200 {
        let answer = server.socket().connect().get_packed(&format!("/page/{number}"));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    }
    recording.finish()
}

/// A server of data structures with some of each.
pub fn redis_server(options: &[&str]) -> Recorded {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let server = redis::Server::start(folder.path());
    let recording = Recording::attach_with(server.pid(), options);
    let mut commands = String::new();
    for number in 0..1000 {
        let part = number % 10;
        commands += &format!("SET key:{number} {}\r\n", "value".repeat(number % 30));
        commands += &format!("RPUSH list:{part} {number}\r\nHSET hash:{part} field:{number} {number}\r\n");
        commands += &format!("ZADD sorted:{part} {number} member:{number}\r\nSADD set:{part} m{number}\r\n");
    }
    commands +=
        "SORT list:1 BY nosort\r\nLRANGE list:2 0 -1\r\nEVAL \"return redis.call('get', 'key:7')\" 0\r\n";
    commands += "FLUSHALL\r\nPING\r\n";
    server.socket().converse(&commands, "+PONG\r\n");
    recording.finish()
}

/// A server that counts for itself what it has in use, by its allocator's sizes, while others keep it busy: what it says that it
/// has taken in while it was recorded, in bytes.
pub fn redis_server_with_its_own_count() -> (Recorded, i64) {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let server = redis::Server::start(folder.path());
    let socket = server.socket();
    let before = socket.used_memory();
    let mut load = redis::Benchmark::start(&socket);
    load.advance();
    let recording = Recording::attach(server.pid());
    let mut commands = String::new();
    for number in 0..5000 {
        commands += &format!("SET key:{number} {}\r\n", "value".repeat(100));
    }
    commands += "PING\r\n";
    socket.converse(&commands, "+PONG\r\n");
    load.advance();
    load.stop();
    let after = socket.used_memory_alone();
    let recorded = recording.finish();
    let value = format!("$500\r\n{}\r\n", "value".repeat(100));
    for number in 0..5000 {
        socket.converse(&format!("GET key:{number}\r\n"), &value);
    }
    (recorded, after - before)
}

/// A server that writes what it has to a file by a child process, which has it all as its parent had it: the recording of both, and
/// the child's PID.
pub fn redis_server_that_saves() -> (Recorded, u32) {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let mut server = redis::Server::start(folder.path());
    let mut recording = Recording::attach_with(server.pid(), &["--follow-forks"]);
    let mut commands = String::new();
    for number in 0..5000 {
        commands += &format!("SET key:{number} {}\r\n", "value".repeat(100));
    }
    commands += "BGSAVE\r\nPING\r\n";
    server.socket().converse(&commands, "+PONG\r\n");
    let line = server.log("Background saving started by pid ");
    let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a PID at the end");
    server.log("Background saving terminated with success");
    assert!(folder.path().join("dump.rdb").exists());
    recording.stderr_line("heaptap: wrote ");
    let recorded = recording.finish();
    drop(server);
    let server = redis::Server::start(folder.path());
    server.socket().converse("DBSIZE\r\n", ":5000\r\n");
    (recorded, pid)
}

/// A program that comes with every JVM and works long enough that its own code is compiled, from its start.
///
/// `jvm_options` are the JVM's.
pub fn java(options: &[&str], jvm_options: &[&str]) -> Recorded {
    let folder = tempfile::tempdir().expect("a folder for the keys");
    let store = folder.path().join("store");
    let jvm_options: Vec<String> = jvm_options.iter().map(|option| format!("-J{option}")).collect();
    let keytool = [
        options,
        &["--", "/usr/bin/keytool"],
        &jvm_options.iter().map(String::as_str).collect::<Vec<_>>(),
        &["-genkeypair", "-alias", "key", "-keyalg", "RSA", "-keysize", "2048"],
        &["-dname", "CN=heaptap", "-storepass", "heaptap", "-keystore", path_str(&store)],
    ]
    .concat();
    let recorded = Recording::start(&keytool).wait();
    assert!(store.exists(), "keytool has made no keys: {:#?}", recorded.outcome);
    recorded
}
