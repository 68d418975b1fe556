//! Debug information, read by a process of its own.
//!
//! What reads it maps the file and believes the sizes in it. A file that is cut short meanwhile ends the reader with
//! SIGBUS, one that claims endless sizes with all memory used, one that leads in circles never. It is the target's
//! file, at which the target may do so on purpose: that must cost heaptap some names, and no more than that.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit},
    system::sysinfo,
};

use super::{
    dwarf::{self, Dwarf},
    error::SymbolizeError,
    line::{Line, Place},
    message::{Answer, Function, Reply, Request, read, write},
};

/// The command by which heaptap starts itself as a reader.
pub const COMMAND: &str = "read-debug-information";

/// How much computing a file may cost. Chromium's debug file, the largest there is, takes half a minute.
const LIMIT_SECONDS: u64 = 180;

/// How long to wait for an answer: the machine may have other things to do.
const PATIENCE: Duration = Duration::from_secs(2 * LIMIT_SECONDS);

/// How much memory a file may cost, and the share of the machine's that it may be.
const LIMIT_BYTES: u64 = 8 << 30;
const LIMIT_SHARE: u64 = 2;

/// A process that reads the debug information of one file. It ends when this is dropped.
pub(super) struct Reader {
    child: Child,
    socket: UnixStream,
}

impl Reader {
    /// Starts `program`, which is heaptap, to read `file`.
    pub(super) fn start(program: &Path, file: &File, debug_dirs: &[PathBuf]) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut command = Command::new(program);
        command.arg(COMMAND);
        for directory in debug_dirs {
            command.arg("--debug-dir").arg(directory);
        }
        command.stdin(file.try_clone()?).stdout(OwnedFd::from(theirs)).stderr(Stdio::null());
        // Ctrl-C is for heaptap, which then ends it.
        command.process_group(0);
        Ok(Self { child: command.spawn()?, socket })
    }

    /// What the file's DWARF says of each of `addresses`, in the same order.
    pub(super) fn look_up(&mut self, addresses: &[u64]) -> Result<Vec<dwarf::Answer>, SymbolizeError> {
        let request = Request { addresses: addresses.to_vec() };
        let reply = write(&self.socket, &request).and_then(|()| read::<Reply>(&self.socket));
        match reply {
            Ok(Some(Reply { answers, error })) if error.is_empty() => {
                Ok(answers.into_iter().map(received).collect())
            }
            Ok(Some(Reply { error, .. })) => Err(SymbolizeError::Unreadable { error }),
            Ok(None) => Err(self.why_it_ended()),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                    self.why_it_ended()
                }
                io::ErrorKind::WouldBlock => SymbolizeError::Costly,
                _ => SymbolizeError::Broken,
            }),
        }
    }

    fn why_it_ended(&mut self) -> SymbolizeError {
        // Its side of the socket goes after its fate is sealed, so that this changes nothing, but for one that lives on
        // without.
        let _ = self.child.kill();
        self.child.wait().map_or(SymbolizeError::Broken, why)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Failing means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the way in which a reader ended says about its file.
fn why(status: ExitStatus) -> SymbolizeError {
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::BUS) => SymbolizeError::CutShort,
        Some(Signal::XCPU | Signal::KILL) => SymbolizeError::Costly,
        _ => SymbolizeError::ReaderEnded { status },
    }
}

fn received(answer: Answer) -> dwarf::Answer {
    let lines = answer
        .functions
        .into_iter()
        .map(|Function { name, file, line }| Line::new(&name, Place { file, number: line }))
        .collect();
    dwarf::Answer { lines, place: Place { file: answer.file, number: answer.line } }
}

/// Reads the file that is the standard input, for whoever asks through the socket that is the standard output, until
/// nobody does any more.
pub fn serve(debug_dirs: &[PathBuf]) -> io::Result<()> {
    limit()?;
    let socket = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let dwarf = Dwarf::of(&io::stdin(), debug_dirs);
    while let Some(Request { addresses }) = read(&socket)? {
        let reply = match dwarf.look_up(&addresses) {
            Ok(answers) => Reply { answers: answers.into_iter().map(sent).collect(), error: String::new() },
            Err(error) => Reply { answers: Vec::new(), error: format!("{error:#}") },
        };
        write(&socket, &reply)?;
    }
    Ok(())
}

fn sent(answer: dwarf::Answer) -> Answer {
    let functions = answer.lines.iter().map(|line| Function {
        name: line.function.system_name.clone(),
        file: line.function.file.clone(),
        line: line.number,
    });
    Answer { functions: functions.collect(), file: answer.place.file, line: answer.place.number }
}

/// Takes care that this process harms no other, whatever it comes to read.
fn limit() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let memory = sysinfo();
    let share = memory.totalram.saturating_mul(u64::from(memory.mem_unit)) / LIMIT_SHARE;
    for (resource, most) in
        [(Resource::Core, 0), (Resource::Cpu, LIMIT_SECONDS), (Resource::Data, share.min(LIMIT_BYTES))]
    {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    // Should memory run out all the same, it is this process that goes, as far as it may say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// What comes of a reader that does this.
    fn fake(script: &str) -> SymbolizeError {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("reader");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut reader = Reader::start(&program, &file, &[]).unwrap();
        reader.look_up(&[1]).unwrap_err()
    }

    #[test]
    fn how_a_reader_ended_says_what_is_wrong_with_the_file() {
        assert!(matches!(fake("kill -BUS $$"), SymbolizeError::CutShort));
        assert!(matches!(fake("kill -XCPU $$"), SymbolizeError::Costly));
        assert!(matches!(fake("kill -KILL $$"), SymbolizeError::Costly));
        let error = fake("kill -SEGV $$");
        assert!(error.to_string().contains("signal: 11"), "{error}");
        let error = fake("exit 101");
        assert!(error.to_string().contains("exit status: 101"), "{error}");
    }

    #[test]
    fn a_reader_that_talks_nonsense_is_ended() {
        let error = fake("printf '\\377\\377\\377\\377'; exec sleep 1000");
        assert!(matches!(error, SymbolizeError::Broken), "{error}");
        let error = fake("exec sleep 1000 >/dev/null");
        assert!(matches!(error, SymbolizeError::Costly), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        assert!(Reader::start(Path::new("/nonexistent"), &file, &[]).is_err());
    }
}
