//! `cargo xtask ebpf`: builds the kernel object that the repository holds, or checks it.
//!
//! The object is committed because building it takes a compiler that few users have: one that comes with the
//! sources of `core`. Beside it lies a record of what it was built from and by.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use object::build::elf::SectionData;
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bpf_toolchain::Toolchain;
use crate::workspace::root;

/// Arguments of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct EbpfArgs {
    /// Build, and fail where the committed object is not what its sources make; change nothing
    #[arg(long)]
    check: bool,
}

/// What an object was built from and by.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The compiler, as it names itself.
    compiler: String,
    /// The linker, as it names itself.
    linker: String,
    /// Digest of the sources and the lock file.
    sources_sha256: String,
    /// Digest of the object.
    object_sha256: String,
    /// Instructions of each program.
    instructions: BTreeMap<String, u64>,
}

/// The object that the repository holds, in the workspace.
pub(crate) const OBJECT: &str = "profiler-user/bpf/heaptap.bpf.o";
const RECORD: &str = "profiler-user/bpf/heaptap.bpf.json";

/// What the object is built from.
const SOURCES: [&str; 5] = [
    "profiler-ebpf/Cargo.toml",
    "profiler-ebpf/Cargo.lock",
    "profiler-ebpf/src",
    "profiler-common/Cargo.toml",
    "profiler-common/src",
];

/// Runs the command.
pub(crate) fn run(args: &EbpfArgs) -> Result<()> {
    let root = root()?;
    let (object_path, record_path) = (root.join(OBJECT), root.join(RECORD));
    let committed: Option<Record> = match fs::read(&record_path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).with_context(|| format!("{RECORD} is no record"))?),
        Err(_) => None,
    };
    let sources_sha256 = digest_of_sources(root)?;
    if args.check {
        let committed = committed.as_ref().with_context(|| format!("there is no {RECORD}"))?;
        ensure!(
            committed.sources_sha256 == sources_sha256,
            "{OBJECT} was built from other sources: run `cargo xtask ebpf` and commit what it writes"
        );
        let object = fs::read(&object_path).with_context(|| format!("cannot read {OBJECT}"))?;
        ensure!(
            committed.object_sha256 == hex(&Sha256::digest(&object)),
            "{OBJECT} is not the one that {RECORD} speaks of: run `cargo xtask ebpf` and commit both"
        );
    }
    let toolchain = Toolchain::find()?;
    let object = strip(&toolchain.build(root, &[])?)?;
    let record = Record {
        compiler: toolchain.compiler()?,
        linker: toolchain.linker()?,
        sources_sha256,
        object_sha256: hex(&Sha256::digest(&object)),
        instructions: instructions(&object)?,
    };
    print_instructions(&record, committed.as_ref());
    if args.check {
        return compare(&record, committed.as_ref().context("checked above")?);
    }
    fs::create_dir_all(object_path.parent().context("the object's path has a folder")?)?;
    fs::write(&object_path, &object).with_context(|| format!("cannot write {OBJECT}"))?;
    let text = serde_json::to_string_pretty(&record)? + "\n";
    fs::write(&record_path, text).with_context(|| format!("cannot write {RECORD}"))?;
    println!("{OBJECT}: {} bytes, built by {}", object.len(), record.compiler);
    Ok(())
}

/// The object with other features, built for the occasion.
pub(crate) fn object(features: &[&str]) -> Result<Vec<u8>> {
    strip(&Toolchain::find()?.build(root()?, features)?)
}

/// Holds a fresh build against the committed one.
fn compare(fresh: &Record, committed: &Record) -> Result<()> {
    if fresh.object_sha256 == committed.object_sha256 {
        println!("{OBJECT} is what its sources make, byte for byte");
        return Ok(());
    }
    if (&fresh.compiler, &fresh.linker) == (&committed.compiler, &committed.linker) {
        bail!("{OBJECT} is not what its sources make: run `cargo xtask ebpf` and commit what it writes");
    }
    println!(
        "{OBJECT} is of these sources; not compared byte for byte, because it was built by {} and {}, \
         and here are {} and {}",
        committed.compiler, committed.linker, fresh.compiler, fresh.linker
    );
    Ok(())
}

/// Growth is seen here and in review, rather than at the verifier.
fn print_instructions(fresh: &Record, committed: Option<&Record>) {
    for (program, count) in &fresh.instructions {
        let before = committed.and_then(|record| record.instructions.get(program));
        let change = match before {
            Some(before) => format!("{:+}", count.cast_signed() - before.cast_signed()),
            None => "new".to_owned(),
        };
        println!("{program:<20} {count:>6} ({change})");
    }
}

fn digest_of_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        let content = fs::read(&file).with_context(|| format!("cannot read {name}"))?;
        // Lengths in between, so that no two sets of files look the same.
        digest.update(format!("{name}\n{}\n", content.len()));
        digest.update(content);
    }
    Ok(hex(&digest.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

/// The object without its debugging information, of which the type information (BTF) has been made.
fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder =
        object::build::elf::Builder::read(object).context("the linker's output is no ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug") || name.starts_with(".rel.debug");
    }
    builder.delete_orphans();
    // LLVM keeps the sections' names among the symbols'; the writer wants them apart.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = object::elf::SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    // Mangled names tell one build folder from another; readable ones do not.
    for symbol in &mut builder.symbols {
        let name = String::from_utf8_lossy(&symbol.name).into_owned();
        if let Ok(readable) = rustc_demangle::try_demangle(&name) {
            symbol.name = format!("{readable:#}").into_bytes().into();
        }
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped object")?;
    if let Some(name) = mangled(&stripped) {
        bail!(
            "the type information names `{name}` after the folder that it was built in: give the static \
             `#[unsafe(no_mangle)]`"
        );
    }
    Ok(stripped)
}

/// A name that is still mangled. Its crate's number is made of the folder's path, so that the object would not be the
/// same elsewhere.
fn mangled(object: &[u8]) -> Option<String> {
    let names = object.split(|&byte| byte == 0).filter_map(|name| str::from_utf8(name).ok());
    names.filter(|name| name.starts_with("_R") || name.starts_with("_ZN")).find_map(|name| {
        let readable = rustc_demangle::try_demangle(name).ok()?;
        Some(format!("{readable:#}"))
    })
}

/// Instructions of every program: the functions that are seen from outside and lie in a program's section.
fn instructions(object: &[u8]) -> Result<BTreeMap<String, u64>> {
    let file = object::File::parse(object).context("the stripped object is no ELF file")?;
    let mut counts = BTreeMap::new();
    for symbol in file.symbols() {
        let Some(section) = symbol.section_index() else { continue };
        if symbol.kind() != SymbolKind::Text {
            continue;
        }
        let section = file.section_by_index(section)?;
        // Callbacks of the helpers lie in .text.
        let name = match section.name()? {
            ".text" => ".text (callbacks)".to_owned(),
            _ => symbol.name()?.to_owned(),
        };
        // BPF instructions have eight bytes (RFC 9669).
        *counts.entry(name).or_default() += symbol.size() / 8;
    }
    Ok(counts)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
