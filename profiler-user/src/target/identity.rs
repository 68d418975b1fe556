//! As whom a command is started: under sudo, as the user who typed it.

use std::{ffi::CString, io, process::Command};

use nix::unistd::{Gid, Uid, User, getgrouplist};

/// Why the invoking user cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// sudo's variables hold no number.
    #[error("sudo's variable {variable}={value} is not a user or group number")]
    Number {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// The user database has no such user, or cannot be asked.
    #[error("cannot look up user {uid}")]
    Lookup {
        /// The user's number.
        uid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A user, with groups and surroundings.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
    user: User,
}

/// What sudo sets and a command started without it would not see (sudo(8), section ENVIRONMENT).
const SUDO_VARIABLES: [&str; 5] = ["SUDO_COMMAND", "SUDO_GID", "SUDO_HOME", "SUDO_UID", "SUDO_USER"];

impl Identity {
    /// The user who called sudo; `None` where sudo has no part in it, or root called it.
    pub fn behind_sudo() -> Result<Option<Self>, IdentityError> {
        let (Some(uid), Some(gid)) = (number("SUDO_UID")?, number("SUDO_GID")?) else {
            return Ok(None);
        };
        if !nix::unistd::geteuid().is_root() || uid == 0 {
            return Ok(None);
        }
        let lookup = |source| IdentityError::Lookup { uid, source };
        let user = User::from_uid(Uid::from_raw(uid)).map_err(|errno| lookup(errno.into()))?;
        let user = user.ok_or_else(|| lookup(io::ErrorKind::NotFound.into()))?;
        let gid = Gid::from_raw(gid);
        let name = CString::new(user.name.clone()).map_err(|error| lookup(error.into()))?;
        let groups = getgrouplist(&name, gid).map_err(|errno| lookup(errno.into()))?;
        Ok(Some(Self { uid: user.uid, gid, groups, user }))
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.user.name
    }

    /// Gives a command the user's surroundings in place of root's.
    pub(super) fn dress(&self, command: &mut Command) {
        command
            .env("HOME", &self.user.dir)
            .env("SHELL", &self.user.shell)
            .env("USER", &self.user.name)
            .env("LOGNAME", &self.user.name);
        for variable in SUDO_VARIABLES {
            command.env_remove(variable);
        }
    }
}

fn number(variable: &'static str) -> Result<Option<u32>, IdentityError> {
    let Some(value) = std::env::var_os(variable) else { return Ok(None) };
    let value = value.to_string_lossy();
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(IdentityError::Number { variable, value: value.into_owned() }),
    }
}
