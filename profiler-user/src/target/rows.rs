//! How to go on from any pc of a process: by what its file says, by frame pointer, or not at all.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt, sync::Arc};

use profiler_common::{
    target::is_hijacked,
    unwind::{Row, WalkEnd},
};

use super::{
    cfi::{self, CfiError, UnwindInfo},
    go_entry::GoEntry,
    hotspot::{self, HotSpot},
    maps::{AddressSpace, Content, Module, Range},
    separate::Places,
    specimen::Specimen,
};

/// What a gate's file is called where it is mapped.
const GATE: &str = "/memfd:heaptap-gate";

/// Rows for the pcs of one process, with the unwind information of the files seen so far.
pub struct RowSource {
    pid: u32,
    places: Places,
    files: HashMap<usize, FileRows>,
    /// The JVM, if it was found.
    hotspot: Option<HotSpot>,
    /// How much memory may be taken for unwind information, and how much of it may still be.
    limit_bytes: usize,
    left_bytes: usize,
}

/// What a file says about its code.
#[derive(Default)]
struct FileRows {
    /// The rules of its functions; `None` where it has none at all.
    own: Option<UnwindInfo>,
    /// Those in its debug file, once they were looked for.
    separate: Option<Option<UnwindInfo>>,
    /// Where C calls into it, if it is Go's.
    go_entry: Option<GoEntry>,
    /// What leads to the JVM's own records, if it is one.
    jvm: Option<hotspot::Variables>,
}

/// `mov $15, %rax; syscall`, which is rt_sigreturn.
const SIGNAL_RETURN_BYTES: usize = 9;

/// For who does not say otherwise. A JVM's files take 5 MiB, a browser's 40; a process can map any number of files that claim to
/// have 256 each.
const INFO_LIMIT_BYTES: usize = 1 << 30;

impl RowSource {
    /// Rows of the process `pid`, whose debug files are looked for in `places`.
    pub fn new(pid: u32, places: Places) -> Self {
        Self {
            pid,
            places,
            files: HashMap::new(),
            hotspot: None,
            limit_bytes: INFO_LIMIT_BYTES,
            left_bytes: INFO_LIMIT_BYTES,
        }
    }

    /// The same, with so many bytes for unwind information.
    #[must_use]
    pub fn within(self, bytes: u64) -> Self {
        let limit_bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(INFO_LIMIT_BYTES);
        Self { limit_bytes, left_bytes: limit_bytes, ..self }
    }

    /// Rows of another process, whose debug files are where those of this one are.
    #[must_use]
    pub fn of_another(&self, pid: u32) -> Self {
        Self::new(pid, self.places.clone()).within(self.limit_bytes as u64)
    }

    /// Where debug files are looked for.
    pub const fn places(&self) -> &Places {
        &self.places
    }

    /// Reads the unwind information of every file that is mapped now, and of its debug file: there is no time for it while
    /// stacks are coming.
    pub fn prepare(&mut self, space: &AddressSpace) {
        for range in space.current() {
            let Content::Module(index) = range.content else { continue };
            if self.is_wholly_read(index) {
                continue;
            }
            if let Some(specimen) = space.modules().get(index).and_then(Specimen::of) {
                self.prepare_file(index, &specimen);
            }
        }
    }

    /// The same for a file that others are looking through, by its place in [`AddressSpace::modules`].
    pub(crate) fn prepare_file(&mut self, index: usize, specimen: &Specimen<'_>) {
        self.load(index, specimen);
        self.look_beside(index, specimen);
    }

    fn is_wholly_read(&self, index: usize) -> bool {
        self.files.get(&index).is_some_and(|rows| rows.separate.is_some())
    }

    fn load(&mut self, index: usize, specimen: &Specimen<'_>) {
        if self.files.contains_key(&index) {
            return;
        }
        let (path, file) = (&specimen.module.path, specimen.content.file());
        // Of a gate it is told otherwise.
        let read = if path == GATE { Ok(None) } else { UnwindInfo::load_from(&specimen.content) };
        let own = self.keep(path, read);
        let go_entry = own.as_ref().filter(|own| own.is_go()).and_then(|_| GoEntry::find(file));
        let jvm = hotspot::variables(path, file);
        self.files.insert(index, FileRows { own, separate: None, go_entry, jvm });
    }

    /// Looks for the file's debug file, once.
    fn look_beside(&mut self, index: usize, specimen: &Specimen<'_>) {
        if self.files.get(&index).is_none_or(|rows| rows.separate.is_some()) {
            return;
        }
        let info = specimen.separate(&self.places).and_then(|separate| {
            let read = UnwindInfo::load_separate_from(separate, &specimen.content);
            self.keep(&specimen.module.path, read)
        });
        if let Some(rows) = self.files.get_mut(&index) {
            rows.separate = Some(info);
        }
    }

    /// What was read, as far as there is room for it.
    fn keep(&mut self, path: &str, read: Result<Option<UnwindInfo>, CfiError>) -> Option<UnwindInfo> {
        let info = read
            .inspect_err(|error| {
                let error: &dyn std::error::Error = error;
                tracing::warn!(path, error, "no unwind information");
            })
            .ok()??;
        let Some(left) = self.left_bytes.checked_sub(info.size_bytes()) else {
            tracing::warn!(
                path,
                "no unwind information: that of other files takes all the memory there is for it"
            );
            return None;
        };
        self.left_bytes = left;
        Some(info)
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
                // It could not be read, or it would be held like a file.
                "[vdso]" => Row::stop(WalkEnd::NoUnwindInfo),
                // Code made at run time, which keeps frame pointers where nobody says otherwise.
                _ => self.jvm_row(pc, space).unwrap_or(Row::FRAME_POINTER),
            },
        }
    }

    fn jvm_row(&mut self, pc: u64, space: &AddressSpace) -> Option<Row> {
        if self.hotspot.is_none() {
            let files = &self.files;
            let variables = |module: usize| files.get(&module)?.jvm.as_ref();
            self.hotspot = HotSpot::find(self.pid, space, variables);
        }
        self.hotspot.as_mut()?.row(pc)
    }

    /// What code made at run time is called, where who made it says so: the return addresses of which rows were given since the
    /// last time, each with a name.
    pub fn take_names(&mut self) -> Vec<(u64, Arc<str>)> {
        self.hotspot.as_mut().map(HotSpot::take_names).unwrap_or_default()
    }

    /// Forgets what belongs to a program that was replaced.
    pub fn program_has_gone(&mut self) {
        self.hotspot = None;
    }

    /// The pcs of code made at run time that has gone since their rows were given, which may be others' now.
    pub fn take_back(&mut self) -> Vec<u64> {
        self.hotspot.as_mut().map(HotSpot::take_back).unwrap_or_default()
    }

    fn file_row(&mut self, index: usize, module: &Module, range: &Range, call: u64) -> Row {
        let Some(file) = module.file.as_deref() else { return Row::stop(WalkEnd::NoUnwindInfo) };
        let Some(offset) = (call - range.start).checked_add(range.offset) else {
            return Row::stop(WalkEnd::NoUnwindInfo);
        };
        let specimen = if self.is_wholly_read(index) { None } else { Specimen::of(module) };
        if let Some(specimen) = &specimen {
            self.load(index, specimen);
        }
        if let Some(row) = self.files.get(&index).and_then(|rows| rows.told(offset)) {
            return row;
        }
        if is_signal_return(file, offset) {
            return Row::SIGNAL;
        }
        if let Some(specimen) = &specimen {
            self.look_beside(index, specimen);
        }
        self.files.get(&index).map_or(Row::stop(WalkEnd::NoUnwindInfo), |rows| rows.row(offset))
    }
}

impl FileRows {
    fn infos(&self) -> impl Iterator<Item = &UnwindInfo> {
        self.own.iter().chain(self.separate.iter().flatten())
    }

    /// What is said about the byte at an offset in the file: by the file itself if it can, since exceptions are thrown by
    /// that, so that somebody has noticed when it was wrong.
    fn told(&self, offset: u64) -> Option<Row> {
        self.infos().find_map(|info| info.told(info.svma_of(offset)?))
    }

    /// The row at the byte at an offset in the file, about which nothing may be said.
    fn row(&self, offset: u64) -> Row {
        if let Some(row) = self.told(offset) {
            return row;
        }
        let Some(info) = self.infos().next() else { return Row::FRAME_POINTER };
        let nothing = Row::stop(WalkEnd::NoUnwindInfo);
        let Some(svma) = info.svma_of(offset) else { return nothing };
        // The outermost function is `_start`, or one that is returned to at its first byte and so was never called: that of
        // a coroutine.
        let row = info.row(svma);
        if row != nothing || offset.checked_add(1).and_then(|next| self.told(next)).is_some() {
            return Row::END;
        }
        if let Some(row) = self.go_entry.as_ref().and_then(|entry| entry.row(offset)) {
            return row;
        }
        // Code that its file says nothing about, in V8 all but the C, mostly keeps frame pointers; where it does not, the
        // walk goes astray at once and says so.
        if info.is_go() { Row::GO } else { Row::FRAME_POINTER }
    }
}

/// Whether a signal handler returns to the byte behind that at an offset in the file. musl says so in its code only.
fn is_signal_return(file: &File, offset: u64) -> bool {
    let mut code = [0; SIGNAL_RETURN_BYTES];
    let next = offset.checked_add(1);
    next.is_some_and(|next| file.read_exact_at(&mut code, next).is_ok()) && cfi::is_signal_return(&code)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        symbolize::fixture::Guest,
        target::{given::Given, root::Root},
    };

    /// No `.eh_frame`, and a base address other than 0.
    fn guest(options: &[&str]) -> Guest {
        let always =
            ["-shared", "-fPIC", "-nostdlib", "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer"];
        Guest::build(&[&always, options].concat())
    }

    /// The row at a function, with what is found beside the file in these directories.
    fn row(guest: &Guest, function: &str, debug_dirs: &[&Path]) -> Row {
        let directories = debug_dirs.iter().map(|path| path.to_path_buf()).collect();
        let given = Given { directories, ..Given::default() };
        let mut source = RowSource::new(u32::MAX, Places::of(u32::MAX, given));
        source.places.in_root(Root::at(guest.root.path()).ok());
        let module = guest.module();
        let (offset, _) = guest.place(function, 1);
        let range = Range { start: 0x7000_0000, end: 0x7100_0000, offset: 0, content: Content::Module(0) };
        source.file_row(0, &module, &range, range.start + offset)
    }

    #[test]
    fn a_file_that_says_nothing_is_walked_by_what_its_debug_file_says() {
        let guest = guest(&["-Wl,-Ttext-segment=0x5500000000"]);
        let whole = row(&guest, "hidden_between", &[]);
        assert!(![Row::FRAME_POINTER, Row::END].contains(&whole), "its own .debug_frame: {whole:?}");
        guest.make_debug_file(&format!("given/{}", guest.build_id_name()));
        guest.strip();
        let given = guest.root.path().join("given");
        assert_eq!(row(&guest, "hidden_between", &[]), Row::FRAME_POINTER, "it is not found");
        assert_eq!(row(&guest, "hidden_between", &[&given]), whole);
        assert_eq!(row(&guest, "by_hand", &[&given]), Row::FRAME_POINTER, "nothing is said about that");
    }

    #[test]
    fn a_debug_file_is_used_by_the_name_that_the_file_has_for_it() {
        let guest = guest(&[]);
        let whole = row(&guest, "hidden_between", &[]);
        let debug = guest.make_debug_file("lib/.debug/guest.debug");
        guest.strip();
        guest.run("objcopy", &["--add-gnu-debuglink=lib/.debug/guest.debug", "lib/guest"]);
        assert_eq!(row(&guest, "hidden_between", &[]), whole);
        fs::write(debug, "another one").unwrap();
        assert_eq!(row(&guest, "hidden_between", &[]), Row::FRAME_POINTER);
    }

    #[test]
    fn a_file_that_was_moved_after_its_debug_file_was_made_is_walked() {
        let id = "-Wl,--build-id=0x00112233445566778899aabbccddeeff";
        let before = guest(&[id]);
        let after = guest(&[id, "-Wl,-Ttext-segment=0x5500000000"]);
        let whole = row(&after, "hidden_between", &[]);
        before.make_debug_file(&format!("given/{}", before.build_id_name()));
        after.strip();
        assert_eq!(row(&after, "hidden_between", &[&before.root.path().join("given")]), whole);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let guest = guest(&[]);
        let mut source = RowSource::new(u32::MAX, Places::default());
        source.left_bytes = 1;
        let module = guest.module();
        let loaded = UnwindInfo::load(module.file.as_deref().unwrap());
        assert!(loaded.as_ref().is_ok_and(|info| info.as_ref().is_some_and(|info| info.size_bytes() > 1)));
        assert!(source.keep(&module.path, loaded).is_none());
    }
}
