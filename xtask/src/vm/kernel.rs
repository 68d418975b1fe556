//! Debian's kernels, fetched with apt and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::{output, run};

/// Where the kernels of a release come from. The security team's part has the newest ones.
fn sources(release: &str) -> String {
    let options = "[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let mirror = "http://deb.debian.org";
    format!(
        "deb {options} {mirror}/debian {release} main\ndeb {options} {mirror}/debian-security {release}-security main\n"
    )
}

/// Lists of packages of our own, apart from this machine's, which may be of another release and are root's.
#[derive(Debug)]
pub(super) struct Packages {
    folder: PathBuf,
}

impl Packages {
    /// Fetches what has changed since the last time.
    pub(super) fn update(folder: &Path, release: &str) -> Result<Self> {
        let packages = Self { folder: folder.join(release) };
        for part in ["lists/partial", "cache/archives/partial", "kernels"] {
            let part = packages.folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let sources = packages.folder.join("sources.list");
        fs::write(&sources, self::sources(release))
            .with_context(|| format!("cannot write {}", sources.display()))?;
        if let Err(err) = run(&mut packages.apt("apt-get", &["--quiet", "update"])) {
            eprintln!("xtask: going on with the lists of last time: {err:#}");
        }
        Ok(packages)
    }

    /// The newest kernel that a package without contents stands for.
    pub(super) fn kernel(&self, meta: &str) -> Result<PathBuf> {
        let depends = output(&mut self.apt("apt-cache", &["depends", meta]))?;
        let package = dependency(&depends).with_context(|| format!("`{meta}` names no kernel: {depends}"))?;
        let kernel = self.folder.join("kernels").join(package);
        if !kernel.exists() {
            self.unpack(package, &kernel)?;
        }
        Ok(kernel)
    }

    /// Fetches a package and takes the kernel out; its modules are not needed.
    fn unpack(&self, package: &str, kernel: &Path) -> Result<()> {
        let folder = self.folder.join("unpacked");
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        run(self.apt("apt-get", &["--quiet", "download", package]).current_dir(&folder))?;
        let archives = entries(&folder)?;
        ensure!(archives.len() == 1, "one package was to come, and there is {archives:?}");
        for archive in archives {
            run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&folder))?;
        }
        let version = package.trim_start_matches("linux-image-");
        let image = folder.join(format!("boot/vmlinuz-{version}"));
        fs::rename(&image, kernel).with_context(|| format!("`{package}` has no {}", image.display()))?;
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        for (option, part) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "none"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.folder.join(part).display()));
        }
        // Root's apt would change to a user who may not write here.
        command.args(["-o", "APT::Sandbox::User=", "-o", "APT::Architecture=amd64"]);
        command.args(arguments);
        command
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The kernel in what `apt-cache depends` says.
fn dependency(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_what_its_meta_package_depends_on() {
        let said = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        assert_eq!(dependency(said), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }
}
