//! How to go on from any pc of a process: by what its file says, by frame pointer, or not at all.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt};

use profiler_common::{
    target::is_hijacked,
    unwind::{Row, WalkEnd},
};

use super::{
    cfi::{self, UnwindInfo},
    maps::{AddressSpace, Content, Module, Range},
};

/// Rows for the pcs of one process, with the unwind information of the files seen so far.
pub struct RowSource {
    pid: u32,
    files: HashMap<usize, FileRows>,
    vdso: Option<Option<UnwindInfo>>,
}

/// What a file says about its code.
enum FileRows {
    /// The rules of its functions.
    Info(UnwindInfo),
    /// Nothing at all, as Go programs do; they keep frame pointers.
    Nothing,
}

/// `mov $15, %rax; syscall`, which is rt_sigreturn.
const SIGNAL_RETURN_BYTES: usize = 9;

/// The vDSO has two pages or three; nothing of that name is longer than this.
const VDSO_LIMIT_BYTES: u64 = 1 << 20;

impl RowSource {
    /// Rows of the process `pid`.
    pub fn new(pid: u32) -> Self {
        Self { pid, files: HashMap::new(), vdso: None }
    }

    /// Reads the unwind information of every file that is mapped now.
    pub fn prepare(&mut self, space: &AddressSpace) {
        for range in space.current() {
            let Content::Module(index) = range.content else { continue };
            let Some(module) = space.modules().get(index) else { continue };
            if let Some(file) = module.file.as_deref() {
                self.files.entry(index).or_insert_with(|| FileRows::of(file, &module.path));
            }
        }
    }

    /// The row at a pc, which is a return address.
    ///
    /// Looks at the process's mappings where the pc lies in none that is known.
    pub fn row(&mut self, pc: u64, space: &mut AddressSpace) -> Row {
        let Some(call) = pc.checked_sub(1) else { return Row::stop(WalkEnd::NoCode) };
        if space.find(call).is_none() {
            space.look_again(self.pid);
        }
        // Nothing returns to its first byte but what the kernel has hijacked: what lies below is not what called.
        if space.trampoline().is_some_and(|page| is_hijacked(pc, page)) {
            return Row::stop(WalkEnd::Trampoline);
        }
        let Some(range) = space.find(call).and_then(|index| space.ranges().get(index)) else {
            return Row::stop(WalkEnd::NoCode);
        };
        match &range.content {
            Content::Module(index) => {
                let Some(module) = space.modules().get(*index) else { return Row::stop(WalkEnd::NoCode) };
                self.file_row(*index, module, range, call)
            }
            Content::Unnamed(name) => match name.as_str() {
                "[vdso]" => self.vdso_row(range, call),
                // Code made at run time.
                _ => Row::FRAME_POINTER,
            },
        }
    }

    fn file_row(&mut self, index: usize, module: &Module, range: &Range, call: u64) -> Row {
        let Some(file) = module.file.as_deref() else { return Row::stop(WalkEnd::NoUnwindInfo) };
        let rows = self.files.entry(index).or_insert_with(|| FileRows::of(file, &module.path));
        let FileRows::Info(info) = rows else { return Row::FRAME_POINTER };
        let Some(svma) =
            (call - range.start).checked_add(range.offset).and_then(|offset| info.svma_of(offset))
        else {
            return Row::stop(WalkEnd::NoUnwindInfo);
        };
        let nothing = Row::stop(WalkEnd::NoUnwindInfo);
        let mut row = info.row(svma);
        if row == nothing && is_signal_return(file, range, call) {
            return Row::SIGNAL;
        }
        if row == nothing && info.row(svma.saturating_add(1)) != nothing {
            // A function that is returned to at its first byte was never called: the outermost one of a coroutine.
            row = Row::END;
        }
        // Code that its file says nothing about, in a Go program or in V8 all but the C, mostly keeps frame pointers; where
        // it does not, the walk goes astray at once and says so.
        if row == nothing { Row::FRAME_POINTER } else { row }
    }

    fn vdso_row(&mut self, range: &Range, call: u64) -> Row {
        let pid = self.pid;
        let info = self.vdso.get_or_insert_with(|| read_vdso(pid, range));
        let row = info.as_mut().and_then(|info| Some(info.row(info.svma_of(call - range.start)?)));
        row.unwrap_or(Row::stop(WalkEnd::NoUnwindInfo))
    }
}

impl FileRows {
    fn of(file: &File, path: &str) -> Self {
        match UnwindInfo::load(file) {
            Ok(Some(info)) => Self::Info(info),
            Ok(None) => Self::Nothing,
            Err(error) => {
                tracing::warn!(path, %error, "no unwind information");
                Self::Nothing
            }
        }
    }
}

/// Whether a signal handler returns to the byte behind `call`. musl says so in its code only.
fn is_signal_return(file: &File, range: &Range, call: u64) -> bool {
    let mut code = [0; SIGNAL_RETURN_BYTES];
    let offset = (call - range.start).checked_add(range.offset).and_then(|offset| offset.checked_add(1));
    offset.is_some_and(|offset| file.read_exact_at(&mut code, offset).is_ok()) && cfi::is_signal_return(&code)
}

/// The vDSO is in no file: it is read out of the process, in which it is the same from beginning to end.
fn read_vdso(pid: u32, range: &Range) -> Option<UnwindInfo> {
    let length = range.end.checked_sub(range.start).filter(|length| *length <= VDSO_LIMIT_BYTES)?;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    let thread = super::process::live_thread(pid)?;
    File::open(format!("/proc/{thread}/mem")).ok()?.read_exact_at(&mut bytes, range.start).ok()?;
    UnwindInfo::from_image(bytes).ok().flatten()
}
