//! Programs that are attached to many places at once: they go in within milliseconds, and come out as fast, where
//! one by one each would take the kernel a tenth of a second.
//!
//! From Linux 6.12 on. Earlier kernels have such links from 6.6 on, but let them run for the wrong threads: the filter by process was
//! wrong until 6.10 (46ba0e49b642), and went by the memory of its first thread until 6.12 (900f362e2062), which has none once
//! it has ended.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{Ebpf, maps::Map, programs::ProgramError, util::KernelVersion};
use aya_obj::{
    Object, VerifierLog,
    generated::{
        BPF_DW, BPF_F_UPROBE_MULTI_RETURN, BPF_IMM, BPF_LD, BPF_PSEUDO_MAP_FD, bpf_attach_type, bpf_insn,
    },
};
use nix::errno::Errno;

use super::{
    bpf_call::{self, Code, Places},
    kernel::{KernelError, refused},
    loading::{self, CALL, RETURNS},
    run_counts::RunCounts,
    seen_through::see_through,
};

/// Since when links to many places run for the process that they are meant for, whatever its threads do.
const RELIABLE_SINCE: KernelVersion = KernelVersion::new(6, 12, 0);

/// `BPF_TRACE_UPROBE_MULTI` and `BPF_TRACE_UPROBE_SESSION` of include/uapi/linux/bpf.h (v6.13).
const MULTI: u32 = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
const SESSION: u32 = 57;

/// What the kernel says of a program that cannot be proved takes less.
const LOG_BYTES: usize = 1 << 20;

/// The map of programs that is empty for ever, as it is called in the object.
const NO_PROGRAMS: &str = "NO_PROGRAMS";

/// A program that does nothing.
pub(super) const NOTHING: &str = "nothing";

/// The programs of the object as they are attached to many places, each loaded when it is first needed.
pub(super) struct Multi {
    object: Object,
    btf: OwnedFd,
    /// What the programs refer to by number.
    maps: HashMap<String, OwnedFd>,
    /// What stands for `NO_PROGRAMS` in programs that are attached in one way: the kernel lets only those share such a map.
    no_programs: HashMap<u32, OwnedFd>,
    has_sessions: bool,
    loaded: Mutex<HashMap<&'static str, Arc<OwnedFd>>>,
    run_counts: Arc<RunCounts>,
}

/// The programs of an ELF file, for [`Multi::of`]; `None` where this kernel has no links that serve.
pub(super) fn parse(object: &[u8]) -> Result<Option<Object>, KernelError> {
    if KernelVersion::current().is_ok_and(|version| version < RELIABLE_SINCE) {
        return Ok(None);
    }
    let parsed = Object::parse(object);
    let mut parsed = parsed.map_err(|error| KernelError::Object { reason: error.to_string() })?;
    // Those of all types are in the kernel by way of aya, and of each function there is room for the lines of its whole section.
    (parsed.btf, parsed.btf_ext) = (None, None);
    for function in parsed.functions.values_mut() {
        function.line_info.line_info.shrink_to_fit();
        function.func_info.func_info.shrink_to_fit();
    }
    Ok(Some(parsed))
}

impl Multi {
    /// Those of `object`, which `ebpf` has made the maps of and of which it has loaded a program; `None` where this kernel has no
    /// links that serve. Those that are loaded are added to `run_counts`.
    pub(super) fn of(
        mut object: Object,
        ebpf: &Ebpf,
        run_counts: Arc<RunCounts>,
    ) -> Result<Option<Self>, KernelError> {
        let failed = |error: &dyn std::error::Error| KernelError::Object { reason: error.to_string() };
        let described = std::mem::take(&mut object.maps);
        let mut maps = HashMap::new();
        let mut referred = Vec::new();
        for (name, map) in &described {
            let made = ebpf.map(name).and_then(descriptor_of);
            let made = made.ok_or_else(|| KernelError::Object { reason: format!("no map {name}") })?;
            // Others may close theirs before the last program is loaded.
            let own = made.try_clone_to_owned().map_err(|error| failed(&error))?;
            referred.push((name.as_str(), own.as_raw_fd(), map));
            maps.insert(name.clone(), own);
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(referred.into_iter(), &sections).map_err(|error| failed(&error))?;
        object.relocate_calls(&sections).map_err(|error| failed(&error))?;
        // The kernel has the types of one program, which are those of all.
        let info = ebpf.programs().find_map(|(_, program)| program.info().ok());
        let btf = info.and_then(|info| info.btf_id()).and_then(|id| bpf_call::btf(id).ok());
        let Some(btf) = btf else { return Ok(None) };
        let array =
            |attach_type| Ok((attach_type, bpf_call::program_array().map_err(|error| failed(&error))?));
        let no_programs = [MULTI, SESSION].into_iter().map(array).collect::<Result<_, _>>()?;
        let loaded = Mutex::default();
        let mut multi = Self { object, btf, maps, no_programs, has_sessions: false, loaded, run_counts };
        if !multi.is_known(MULTI) {
            return Ok(None);
        }
        multi.has_sessions = multi.is_known(SESSION);
        Ok(Some(multi))
    }

    /// Whether the kernel knows such links: then it looks for the file, and finds a folder.
    fn is_known(&self, attach_type: u32) -> bool {
        let places = Places { path: c"/", offsets: &[0], cookies: &[0], flags: 0, pid: 0 };
        let program = self.load_as(NOTHING, attach_type);
        let linked = program.and_then(|program| {
            let linked = bpf_call::link_multi(program.as_fd(), attach_type, &places);
            linked.map_err(|source| refused(NOTHING, source.into()))
        });
        let Err(KernelError::Program { source, .. }) = linked else { return false };
        match *source {
            ProgramError::IOError(error) => error.raw_os_error() == Some(Errno::EBADF as i32),
            _ => false,
        }
    }

    /// Whether one program can see both the entry and the return of a function.
    pub(super) const fn has_sessions(&self) -> bool {
        self.has_sessions
    }

    /// Loads a program unless it is loaded; the kernel takes tens of milliseconds to prove that one does no harm.
    pub(super) fn load(&self, name: &'static str) -> Result<Arc<OwnedFd>, KernelError> {
        if let Some(program) = self.programs().get(name) {
            return Ok(Arc::clone(program));
        }
        let program = Arc::new(self.load_as(name, attach_type(name))?);
        Ok(match self.programs().entry(name) {
            // Somebody was faster.
            Entry::Occupied(loaded) => Arc::clone(loaded.get()),
            Entry::Vacant(place) => {
                if name != NOTHING {
                    self.run_counts.add(name, program.as_fd());
                }
                Arc::clone(place.insert(program))
            }
        })
    }

    fn load_as(&self, name: &'static str, attach_type: u32) -> Result<OwnedFd, KernelError> {
        let program = self.object.programs.get(name).ok_or(KernelError::Missing { name })?;
        let function = self.object.functions.get(&program.function_key());
        let mut function = function.ok_or(KernelError::Missing { name })?.clone();
        if let (Some(shared), Some(own)) = (self.maps.get(NO_PROGRAMS), self.no_programs.get(&attach_type)) {
            replace_map(&mut function.instructions, shared.as_fd(), own.as_fd());
        }
        let code =
            Code { name, function: &function, license: &program.license, btf: self.btf.as_fd(), attach_type };
        loading::load(name, || {
            bpf_call::load_program(&code, &mut []).or_else(|io_error| {
                let mut log = vec![0; LOG_BYTES];
                bpf_call::load_program(&code, &mut log).map_err(|_| {
                    log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(log.len()));
                    let verifier_log = VerifierLog::new(String::from_utf8_lossy(&log).into_owned());
                    ProgramError::LoadError { io_error, verifier_log }
                })
            })
        })
    }

    /// Has a program run at places in a file, each with what it is told there, for the process `pid`, until what is given is closed.
    pub(super) fn link(
        &self,
        name: &'static str,
        path: &Path,
        places: &[(u64, u64)],
        pid: u32,
    ) -> Result<OwnedFd, KernelError> {
        let flags = if name == RETURNS { BPF_F_UPROBE_MULTI_RETURN } else { 0 };
        self.link_with(name, path, places, pid, flags)
    }

    /// The same for a program that does nothing, at a place or, with `is_return`, at the returns from there.
    pub(super) fn link_nothing(
        &self,
        path: &Path,
        offset: u64,
        is_return: bool,
        pid: u32,
    ) -> Result<OwnedFd, KernelError> {
        let flags = if is_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 };
        self.link_with(NOTHING, path, &[(offset, 0)], pid, flags)
    }

    fn link_with(
        &self,
        name: &'static str,
        path: &Path,
        places: &[(u64, u64)],
        pid: u32,
        flags: u32,
    ) -> Result<OwnedFd, KernelError> {
        let program = self.load(name)?;
        let path = CString::new(path.as_os_str().as_bytes());
        let path = path.map_err(|error| refused(name, io::Error::from(error).into()))?;
        let (offsets, cookies): (Vec<u64>, Vec<u64>) = places.iter().copied().unzip();
        let places = Places { path: &path, offsets: &offsets, cookies: &cookies, flags, pid };
        see_through(|| bpf_call::link_multi(program.as_fd(), attach_type(name), &places))
            .flatten()
            .map_err(|error| refused(name, error.into()))
    }

    /// Each is whole between two calls, whatever happened to the thread that made the last one.
    fn programs(&self) -> MutexGuard<'_, HashMap<&'static str, Arc<OwnedFd>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has a program refer to another map, of the same shape.
fn replace_map(instructions: &mut [bpf_insn], from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    /// The instruction that loads a map (`BPF_LD_MAP_FD` in include/linux/filter.h).
    const LOAD: u8 = (BPF_LD | BPF_DW | BPF_IMM) as u8;
    for instruction in instructions {
        if instruction.code == LOAD
            && instruction.src_reg() == BPF_PSEUDO_MAP_FD as u8
            && instruction.imm == from.as_raw_fd()
        {
            instruction.imm = to.as_raw_fd();
        }
    }
}

/// How a program is attached.
fn attach_type(name: &str) -> u32 {
    if name == CALL { SESSION } else { MULTI }
}

/// The descriptor of a map, of those kinds that the object has.
fn descriptor_of(map: &Map) -> Option<BorrowedFd<'_>> {
    let (Map::Array(map)
    | Map::HashMap(map)
    | Map::PerCpuArray(map)
    | Map::ProgramArray(map)
    | Map::RingBuf(map)
    | Map::StackTraceMap(map)) = map
    else {
        return None;
    };
    Some(map.fd().as_fd())
}
