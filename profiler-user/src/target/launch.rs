//! Starting a command and holding it before any of its own code has run.
//!
//! The command is traced for as long as it is held, by the thread that started it, and stopped with the
//! processor's breakpoint registers: nothing is written into its memory. Should heaptap die while it holds the
//! command, the kernel ends the command, which has not begun yet.

use std::{
    ffi::OsString,
    fs::File,
    io,
    mem::offset_of,
    os::unix::{
        fs::FileExt,
        process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, setgid, setgroups, setuid},
};

use super::{
    identity::Identity,
    loader::{self, Loader, RT_CONSISTENT},
    maps::AddressSpace,
};

/// Why a command could not be started and held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// It could not be started.
    #[error("cannot start `{command}`")]
    Start {
        /// The command.
        command: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended before its own code began.
    #[error("`{command}` ended while it was being loaded ({status})")]
    Ended {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It could not be held.
    #[error("cannot hold `{command}` until the probes are in: {step} failed")]
    Hold {
        /// The command.
        command: String,
        /// What failed.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A command that is loaded, with its libraries, and stands still.
#[derive(Debug)]
pub struct Held {
    command: String,
    child: Child,
    pid: Pid,
}

impl Held {
    /// Starts a command, as `identity` where one is given, and holds it.
    ///
    /// It stands where the loader has mapped all its libraries and runs none of their constructors yet, or, without
    /// a loader, at its first instruction. Only the calling thread can let it go.
    pub fn start(
        program: &OsString,
        arguments: &[OsString],
        identity: Option<&Identity>,
    ) -> Result<Self, LaunchError> {
        let name = program.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(identity) = identity {
            identity.dress(&mut command);
        }
        let user = identity.map(|identity| (identity.uid, identity.gid, identity.groups.clone()));
        let before_exec = move || {
            if let Some((uid, gid, groups)) = &user {
                setgroups(groups)?;
                setgid(*gid)?;
                setuid(*uid)?;
            }
            ptrace::traceme()?;
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made, on memory prepared beforehand.
        unsafe { command.pre_exec(before_exec) };
        let child = command.spawn().map_err(|source| LaunchError::Start { command: name.clone(), source })?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let mut held = Self { command: name, child, pid };
        match held.run_to_start() {
            Ok(()) => Ok(held),
            Err(error) => {
                held.kill();
                Err(error)
            }
        }
    }

    /// The command's PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the command run.
    pub fn release(self) -> Result<Child, LaunchError> {
        ptrace::detach(self.pid, None).map_err(self.failed("letting it go"))?;
        Ok(self.child)
    }

    /// Ends the command, which has done nothing yet.
    pub fn kill(mut self) {
        // Failing means that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn run_to_start(&mut self) -> Result<(), LaunchError> {
        // A traced command stops by itself when its program has been loaded.
        self.wait_for_trap()?;
        ptrace::setoptions(self.pid, ptrace::Options::PTRACE_O_EXITKILL)
            .map_err(self.failed("tying it to us"))?;
        let vector = procfs::process::Process::new(self.pid.as_raw()).and_then(|entry| entry.auxv());
        let vector =
            vector.map_err(|source| self.hold("reading its auxiliary vector", io::Error::other(source)))?;
        let value = |kind: libc::c_ulong| vector.get(&kind).copied().unwrap_or_default();
        let (base, entry) = (value(libc::AT_BASE), value(libc::AT_ENTRY));
        if base == 0 {
            return Ok(());
        }
        let mut space = AddressSpace::default();
        space
            .refresh(self.pid())
            .map_err(|error| self.hold("reading its mappings", io::Error::other(error)))?;
        let Some(loader) = loader::find(&space) else {
            tracing::warn!(
                command = self.command,
                "unknown loader: constructors of libraries run unrecorded"
            );
            return self.run_to(&[entry]).map(drop);
        };
        // Both are watched, so that a loader that does not announce itself is stopped before the program.
        while self.run_to(&[loader.announcement_address, entry])? == loader.announcement_address {
            if is_consistent(&loader, self.pid)
                .map_err(|source| self.hold("reading the loader's state", source))?
            {
                break;
            }
        }
        Ok(())
    }

    /// Runs until one of at most four addresses is reached, and gives it.
    fn run_to(&mut self, addresses: &[u64]) -> Result<u64, LaunchError> {
        let set = |index: usize, value: u64| {
            let register = offset_of!(libc::user, u_debugreg) + index * size_of::<u64>();
            ptrace::write_user(self.pid, register as ptrace::AddressType, value.cast_signed())
        };
        // Intel SDM, volume 3B, section 18.2: DR0 to DR3 hold addresses, bit 2n of DR7 switches number n on.
        let mut enabled = 0;
        for (index, &address) in addresses.iter().enumerate() {
            set(index, address).map_err(self.failed("setting a breakpoint register"))?;
            enabled |= 1 << (2 * index);
        }
        set(7, enabled).map_err(self.failed("switching breakpoint registers on"))?;
        loop {
            ptrace::cont(self.pid, None).map_err(self.failed("running its loader"))?;
            self.wait_for_trap()?;
            let at = ptrace::getregs(self.pid).map_err(self.failed("reading its registers"))?.rip;
            if addresses.contains(&at) {
                let set = |value: u64| {
                    let register = offset_of!(libc::user, u_debugreg) + 7 * size_of::<u64>();
                    ptrace::write_user(self.pid, register as ptrace::AddressType, value.cast_signed())
                };
                set(0).map_err(self.failed("switching breakpoint registers off"))?;
                return Ok(at);
            }
        }
    }

    /// Waits until the command stops by a trap; other signals go on to it.
    fn wait_for_trap(&mut self) -> Result<(), LaunchError> {
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => return Ok(()),
                Ok(WaitStatus::Stopped(_, signal)) => {
                    ptrace::cont(self.pid, signal).map_err(self.failed("passing a signal on"))?;
                }
                Ok(WaitStatus::Exited(_, code)) => return Err(self.ended(ExitStatus::from_raw(code << 8))),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return Err(self.ended(ExitStatus::from_raw(signal as i32)));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(self.failed("waiting for it")(error)),
            }
        }
    }

    fn ended(&self, status: ExitStatus) -> LaunchError {
        LaunchError::Ended { command: self.command.clone(), status }
    }

    fn hold(&self, step: &'static str, source: io::Error) -> LaunchError {
        LaunchError::Hold { command: self.command.clone(), step, source }
    }

    fn failed(&self, step: &'static str) -> impl Fn(Errno) -> LaunchError + use<> {
        let command = self.command.clone();
        move |errno| LaunchError::Hold { command: command.clone(), step, source: errno.into() }
    }
}

/// Whether the loader is done with what it announces.
fn is_consistent(loader: &Loader, pid: Pid) -> io::Result<bool> {
    let Some(state_address) = loader.state_address else { return Ok(true) };
    let mut state = [0; 4];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut state, state_address)?;
    Ok(u32::from_ne_bytes(state) == RT_CONSISTENT)
}
