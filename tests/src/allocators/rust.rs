//! The programs of the package in `guests/rust-allocators`, and what is built for them.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::Allocator;
use crate::cache::folder;
use crate::compile::source;

/// The program with this allocator.
pub(super) fn program(allocator: Allocator) -> PathBuf {
    let name = match allocator {
        Allocator::Glibc => "rust-system",
        Allocator::Jemalloc => "rust-jemalloc",
        Allocator::GoogleTcmalloc => "rust-google-tcmalloc",
        Allocator::Mimalloc => "rust-mimalloc",
        Allocator::Musl | Allocator::Tcmalloc | Allocator::TcmallocMinimal => {
            panic!("no Rust guest has {}", allocator.label())
        }
    };
    build();
    target().join("release").join(name)
}

/// Where the build script of a package left what it made.
pub(super) fn built_by(package: &str) -> PathBuf {
    let messages = build();
    let folder = messages.iter().find_map(|message| {
        let id = message["package_id"].as_str().filter(|_| message["reason"] == "build-script-executed")?;
        let is_it = id.contains(&format!("#{package}@"));
        is_it.then(|| message["out_dir"].as_str().map(PathBuf::from))?
    });
    folder.unwrap_or_else(|| panic!("cargo does not say where it built {package}"))
}

fn target() -> PathBuf {
    folder().join("rust-allocators")
}

/// Builds everything; what cargo says of it. Cargo knows what has changed, and locks the folder while it builds.
fn build() -> Vec<Value> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--release", "--message-format=json-render-diagnostics"]);
    cargo.arg("--manifest-path").arg(source("rust-allocators/Cargo.toml")).arg("--target-dir").arg(target());
    let output = cargo.output().unwrap_or_else(|err| panic!("cannot run cargo: {err}"));
    assert!(output.status.success(), "{cargo:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout);
    lines.lines().map(|line| serde_json::from_str(line).expect("cargo writes JSON")).collect()
}
