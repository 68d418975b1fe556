//! Programs as Debian ships them, at work under `heaptap record`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::guest::Guest;
use crate::heaptap::{Recorded, Recording, path_str};
use crate::process::{Lines, PATIENCE, Process};

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

/// A configuration in which one process serves one folder, with filters that allocate.
fn nginx_configuration(folder: &str) -> String {
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

/// Talks to a server on a socket until what it says ends so.
fn converse(socket: &Path, say: &str, end: &str) -> String {
    let mut stream = UnixStream::connect(socket)
        .unwrap_or_else(|err| panic!("no connection to {}: {err}", socket.display()));
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    stream.write_all(say.as_bytes()).expect("the server reads");
    let mut heard = Vec::new();
    let mut piece = [0; 1 << 16];
    loop {
        match stream.read(&mut piece) {
            Ok(0) if end.is_empty() => break,
            Ok(0) => panic!("no `{end}` in {}", String::from_utf8_lossy(&heard)),
            Ok(count) => heard.extend_from_slice(&piece[..count]),
            Err(err) => panic!("{err} after {}", String::from_utf8_lossy(&heard)),
        }
        if !end.is_empty() && heard.ends_with(end.as_bytes()) {
            break;
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

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
    let folder = tempfile::tempdir().expect("a folder to serve");
    let configuration = folder.path().join("nginx.conf");
    fs::write(&configuration, nginx_configuration(path_str(folder.path()))).expect("it can be written");
    fs::write(folder.path().join("index.txt"), "<!--#echo var=\"arg_number\" --> and so on\n".repeat(100))
        .expect("it can be written");
    let mut nginx = Command::new("/usr/sbin/nginx");
    nginx.arg("-p").arg(folder.path()).arg("-c").arg(&configuration).args(["-e", "stderr"]);
    nginx.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::spawn(nginx);
    let mut log = Lines::of(process.child().stderr.take().expect("stderr is piped"));
    // It listens before it says what limits it has.
    log.find("nginx's limits", |line| line.contains("getrlimit"));
    let recording = Recording::attach_with(process.pid(), options);
    for number in 0..200 {
        let request = format!(
            "GET /page/{number} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
        );
        let answer = converse(&folder.path().join("socket"), &request, "");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    recording.finish()
}

/// A server that is ready, what it goes on to say, and its socket, which is in `folder`.
fn start_redis(folder: &Path) -> (Process, Lines, PathBuf) {
    let socket = folder.join("socket");
    let mut redis = Command::new("/usr/bin/redis-server");
    redis.args(["--port", "0", "--save", "", "--unixsocket", path_str(&socket), "--dir"]).arg(folder);
    redis.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::spawn(redis);
    let mut log = Lines::of(process.child().stdout.take().expect("stdout is piped"));
    log.find("redis to be ready", |line| line.contains("now ready to accept connections at"));
    (process, log, socket)
}

/// A server of data structures with some of each.
pub fn redis_server(options: &[&str]) -> Recorded {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let (process, _log, socket) = start_redis(folder.path());
    let recording = Recording::attach_with(process.pid(), options);
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
    converse(&socket, &commands, "+PONG\r\n");
    recording.finish()
}

/// A server that counts for itself what it has in use, by its allocator's sizes: what it says that it has taken in while it
/// was recorded, in bytes.
pub fn redis_server_with_its_own_count() -> (Recorded, i64) {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let (process, _log, socket) = start_redis(folder.path());
    let used = || {
        let info = converse(&socket, "INFO memory\r\nPING\r\n", "+PONG\r\n");
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        line.expect("redis says what it has").trim().parse::<i64>().expect("a number")
    };
    let before = used();
    let recording = Recording::attach(process.pid());
    let mut commands = String::new();
    for number in 0..5000 {
        commands += &format!("SET key:{number} {}\r\n", "value".repeat(100));
    }
    commands += "PING\r\n";
    converse(&socket, &commands, "+PONG\r\n");
    let recorded = recording.finish();
    let after = used();
    (recorded, after - before)
}

/// A program that comes with every JVM and works long enough that its own code is compiled, from its start.
pub fn java(options: &[&str]) -> Recorded {
    let folder = tempfile::tempdir().expect("a folder for the keys");
    let store = folder.path().join("store");
    let keytool = [
        options,
        // What the JVM compiles keeps frame pointers only when it is told to.
        &[
            "--",
            "/usr/bin/keytool",
            "-J-XX:+PreserveFramePointer",
            "-genkeypair",
            "-alias",
            "key",
            "-keyalg",
            "RSA",
            "-keysize",
            "2048",
        ],
        &["-dname", "CN=heaptap", "-storepass", "heaptap", "-keystore", path_str(&store)],
    ]
    .concat();
    let recorded = Recording::start(&keytool).wait();
    assert!(store.exists(), "keytool has made no keys: {:#?}", recorded.outcome);
    recorded
}
