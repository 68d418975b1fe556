//! The compiler and the linker that build for the kernel's virtual machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{self, BPF_RUST_SRC, BPF_RUSTC};
use crate::tools;
use crate::workspace::{cargo, output, run};

/// A compiler that has the sources of `core`, and the linker.
#[derive(Debug)]
pub(crate) struct Toolchain {
    rustc: PathBuf,
    /// Where the compiler's library sources lie, as it names them in what it builds.
    library: PathBuf,
}

/// The linker's version: another one makes another object.
const LINKER_VERSION: &str = "0.10.3";

/// What separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

impl Toolchain {
    /// A rustup nightly with `rust-src` where there is one, else Debian's compiler; installs what is missing where
    /// that can be done.
    pub(crate) fn find() -> Result<Self> {
        tools::ensure_installed("bpf-linker", LINKER_VERSION)?;
        if let Some(nightly) = nightly() {
            return Ok(nightly);
        }
        packages::ensure_installed(&[BPF_RUSTC, BPF_RUST_SRC])?;
        match Self::of(Path::new("/usr/bin/rustc"))? {
            Some(debian) => Ok(debian),
            None => bail!(
                "/usr/bin/rustc comes without the sources of `core`, which `{}` has",
                BPF_RUST_SRC.package()
            ),
        }
    }

    fn of(rustc: &Path) -> Result<Option<Self>> {
        let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        Ok(library.join("library/core").exists().then(|| Self { rustc: rustc.to_owned(), library }))
    }

    /// The compiler, as it names itself.
    pub(crate) fn compiler(&self) -> Result<String> {
        Ok(output(Command::new(&self.rustc).arg("--version"))?.trim().to_owned())
    }

    /// The linker, as it names itself.
    pub(crate) fn linker(&self) -> Result<String> {
        Ok(output(Command::new("bpf-linker").arg("--version"))?.trim().to_owned())
    }

    /// Builds `profiler-ebpf`, with `features`, and gives the object, with its debugging information.
    pub(crate) fn build(&self, root: &Path, features: &[&str]) -> Result<Vec<u8>> {
        let package = root.join("profiler-ebpf");
        let target = package.join("target");
        run(cargo()?
            .current_dir(&package)
            .args([
                "build",
                "--locked",
                "--release",
                "--target",
                "bpfel-unknown-none",
                "-Z",
                "build-std=core",
                "--features",
                &features.join(","),
            ])
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTC", &self.rustc)
            // The standard library is built from source for a target that has none built.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(root)?.join(SEPARATOR))
            .env_remove("RUSTFLAGS"))?;
        let object = target.join("bpfel-unknown-none/release/heaptap");
        fs::read(&object).with_context(|| format!("cargo has built no {}", object.display()))
    }

    fn flags(&self, root: &Path) -> Result<Vec<String>> {
        let mut flags: Vec<String> = [
            "-Clinker=bpf-linker",
            // The type information (BTF) is made of it.
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            "-Ctarget-cpu=v3",
            r#"--cfg=bpf_target_arch="x86_64""#,
        ]
        .map(str::to_owned)
        .to_vec();
        let mut remap =
            |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        // The object must not depend on where it was built.
        remap(root, "/heaptap");
        remap(&self.library, "/rust");
        remap(&self.library.canonicalize()?, "/rust");
        let registry = cargo_home()?.join("registry/src");
        for index in fs::read_dir(&registry).into_iter().flatten().flatten() {
            remap(&index.path(), "/crates");
        }
        Ok(flags)
    }
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    Ok(PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"))
}

fn nightly() -> Option<Toolchain> {
    let rustc = output(Command::new("rustup").args(["which", "rustc", "--toolchain", "nightly"])).ok()?;
    Toolchain::of(Path::new(rustc.trim())).ok().flatten()
}
