//! The names in one mapped file, from everything there is about it.
//!
//! In this order, for each address: the DWARF of its debug file or its own, then the symbol tables of both, of its
//! mini debug information and of the dynamic linker.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};

use object::ReadRef;

use super::{
    dwarf::{self, Answer},
    error::SymbolizeError,
    line::Line,
    reader::Reader,
    symbols::{Search, Table},
};
use crate::target::{
    debug_file::DebugFile,
    image::{Cache, Image},
    maps::Module,
    mini,
};

/// A mapped file and its debug file.
pub(super) struct Sources<'sources> {
    pub(super) module: &'sources Module,
    pub(super) debug: Option<&'sources DebugFile>,
    /// Where the files that debug files share are looked for.
    pub(super) debug_dirs: &'sources [PathBuf],
    /// The program that reads debug information, if another process is to do it.
    pub(super) reader: Option<&'sources Path>,
}

/// What was looked up.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The lines at each offset, in the order of the offsets; empty where there is no name.
    pub(super) lines: Vec<Vec<Line>>,
    /// Why names are missing that there should be.
    pub(super) remark: Option<String>,
}

impl Sources<'_> {
    /// The lines at each of `offsets` in the file.
    pub(super) fn look_up(&self, offsets: &[u64]) -> Result<Found, SymbolizeError> {
        let Some(file) = self.module.file.as_deref() else { return Ok(Found::default()) };
        let cache = Cache::new(file);
        let image = Image::parse(&cache)?;
        let segments = image.segments();
        let places: Vec<Option<u64>> = offsets.iter().map(|offset| segments.address_at(*offset)).collect();
        let rising: BTreeSet<u64> = places.iter().copied().flatten().collect();
        let addresses: Vec<u64> = rising.into_iter().collect();
        let debug_cache = self.debug.map(|debug| Cache::new(&debug.file));
        let debug = debug_cache.as_ref().and_then(|cache| Image::parse(cache).ok());
        let Found { lines, remark } = self.lines(file, &image, debug.as_ref(), &addresses);
        let line_at = |place: Option<u64>| {
            let index = addresses.binary_search(&place?).ok()?;
            lines.get(index).cloned()
        };
        let lines = places.into_iter().map(|place| line_at(place).unwrap_or_default()).collect();
        Ok(Found { lines, remark })
    }

    fn lines<'data, R: ReadRef<'data>>(
        &self,
        file: &File,
        image: &Image<'data, R>,
        debug: Option<&Image<'data, R>>,
        addresses: &[u64],
    ) -> Found {
        // `prelink` moves a file to another address after its debug file was split off.
        let bias = debug
            .and_then(|debug| Some(image.segments().base()?.wrapping_sub(debug.segments().base()?)))
            .unwrap_or_default();
        let by_dwarf = match debug.filter(|debug| debug.has_dwarf()).zip(self.debug) {
            Some((image, DebugFile { file, is_ours, .. })) => {
                let addresses: Vec<u64> =
                    addresses.iter().map(|address| address.wrapping_sub(bias)).collect();
                self.by_dwarf(file, image, *is_ours, &addresses)
            }
            None => self.by_dwarf(file, image, false, addresses),
        };
        let (by_dwarf, remark) = match by_dwarf {
            Ok(answers) => (answers, None),
            Err(error) => (
                Vec::new(),
                Some(format!("{}: its debug information is not used: {error}", self.module.path)),
            ),
        };
        let mut answers = by_dwarf.into_iter();
        let mut answers: Vec<Answer> = addresses.iter().map(|_| answers.next().unwrap_or_default()).collect();
        let missing: Vec<usize> = answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| answer.lines.is_empty())
            .map(|(at, _)| at)
            .collect();
        let wanted: Vec<u64> = missing.iter().filter_map(|&at| addresses.get(at).copied()).collect();
        if !wanted.is_empty() {
            let names = self.by_symbols(image, debug, bias, &wanted);
            for (at, name) in missing.into_iter().zip(names) {
                if let (Some(answer), Some(name)) = (answers.get_mut(at), name) {
                    answer.lines = vec![Line::new(&name, std::mem::take(&mut answer.place))];
                }
            }
        }
        Found { lines: answers.into_iter().map(|answer| answer.lines).collect(), remark }
    }

    fn by_dwarf<'data, R: ReadRef<'data>>(
        &self,
        file: &File,
        image: &Image<'data, R>,
        is_ours: bool,
        addresses: &[u64],
    ) -> Result<Vec<Answer>, SymbolizeError> {
        if !image.has_dwarf() || addresses.is_empty() {
            return Ok(Vec::new());
        }
        let links = image.links();
        // blazesym would open what these name, as root and by names that the target chose; and where a debug link
        // leads to a wrong file it would give no names at all. Debug files in our own directories may share
        // another one, which is known by its build id.
        if links.debug_file || (links.common_file && !is_ours) {
            return Err(SymbolizeError::RefersElsewhere);
        }
        match self.reader {
            Some(program) => Reader::start(program, file, self.debug_dirs)
                .map_err(SymbolizeError::Start)?
                .look_up(addresses),
            None => dwarf::look_up(file, addresses, self.debug_dirs),
        }
    }

    fn by_symbols<'data, R: ReadRef<'data>>(
        &self,
        image: &Image<'data, R>,
        debug: Option<&Image<'data, R>>,
        bias: u64,
        wanted: &[u64],
    ) -> Vec<Option<std::sync::Arc<str>>> {
        let mut search = Search::new(wanted);
        if let Some(debug) = debug {
            search.look_through(debug, Table::Whole, bias);
        }
        search.look_through(image, Table::Whole, 0);
        match mini::unpack(image) {
            Ok(Some(bytes)) => match Image::parse(bytes.as_slice()) {
                Ok(mini) => search.look_through(&mini, Table::Whole, 0),
                Err(error) => {
                    tracing::warn!(file = self.module.path, "no names from mini debug information: {error}");
                }
            },
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(file = self.module.path, "no names from mini debug information: {error}");
            }
        }
        search.look_through(image, Table::Dynamic, 0);
        search.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use super::super::fixture::Guest;

    #[test]
    fn a_file_names_its_functions_by_its_own_debug_information() {
        let guest = Guest::library();
        let line = guest.lines("hidden_between", 1, &[]).pop().unwrap();
        assert_eq!((line.function.name.as_str(), line.number), ("hidden_between", 4));
    }

    #[test]
    fn compressed_debug_information_is_used() {
        for method in ["zlib", "zstd"] {
            let guest = Guest::library();
            guest.run("objcopy", &[&format!("--compress-debug-sections={method}"), "lib/guest"]);
            let line = guest.lines("hidden_between", 1, &[]).pop().unwrap();
            assert_eq!((line.function.name.as_str(), line.number), ("hidden_between", 4), "{method}");
        }
    }

    #[test]
    fn a_function_that_the_table_leaves_out_does_not_get_its_neighbours_name() {
        let guest = Guest::library();
        guest.strip();
        assert_eq!(guest.name("first_shared", 1, &[]), "first_shared");
        assert_eq!(guest.name("hidden_between", 1, &[]), "");
        assert_eq!(guest.name("last_shared", 1, &[]), "last_shared");
        assert_eq!(guest.name("by_hand", 1, &[]), "", "its size is not known");
    }

    #[test]
    fn code_without_a_size_is_named_up_to_the_next_symbol_and_not_far() {
        let guest = Guest::library();
        guest.run("strip", &["-g", "lib/guest"]);
        assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
        assert_eq!(guest.name("by_hand", 63, &[]), "by_hand");
        assert_eq!(guest.name("by_hand", 64, &[]), "after_hand");
        assert_eq!(guest.name("after_hand", 4095, &[]), "after_hand");
        assert_eq!(guest.name("after_hand", 4096, &[]), "");
    }

    #[test]
    fn a_symbol_table_that_a_stripped_file_has_packed_is_used() {
        let guest = Guest::library();
        guest.run("strip", &["-g", "-o", "mini", "whole"]);
        guest.run("objcopy", &["--only-keep-debug", "mini", "mini"]);
        guest.run("xz", &["mini"]);
        guest.strip();
        assert_eq!(guest.name("hidden_between", 1, &[]), "");
        guest.run("objcopy", &["--add-section", ".gnu_debugdata=mini.xz", "lib/guest"]);
        assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
        assert_eq!(guest.name("first_shared", 1, &[]), "first_shared");
    }

    #[test]
    fn a_packed_symbol_table_that_is_broken_or_endless_leaves_the_other_names() {
        let guest = Guest::library();
        guest.strip();
        let pack = |name: &str| {
            let section = format!(".gnu_debugdata={name}");
            guest.run("objcopy", &["--remove-section=.gnu_debugdata", "lib/guest"]);
            guest.run("objcopy", &["--add-section", &section, "lib/guest"]);
            assert_eq!(guest.name("first_shared", 1, &[]), "first_shared", "{name}");
            assert_eq!(guest.name("hidden_between", 1, &[]), "", "{name}");
        };
        fs::write(guest.root.path().join("garbage"), b"\xfd7zXZ\0garbage").unwrap();
        pack("garbage");
        fs::File::create(guest.root.path().join("zeros")).unwrap().set_len(65 << 20).unwrap();
        guest.run("xz", &["-0", "zeros"]);
        pack("zeros.xz");
    }

    #[test]
    fn a_file_that_wants_to_lie_elsewhere_has_its_names() {
        for options in [&["-Wl,-Ttext-segment=0x5500000000", "-shared", "-fPIC"][..], &["-no-pie"]] {
            let guest = Guest::build(options);
            assert!(guest.address("hidden_between") > 0x40_0000);
            assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
            guest.make_debug_file(&format!("given/{}", guest.build_id_name()));
            guest.strip();
            let given = guest.root.path().join("given");
            assert_eq!(guest.name("hidden_between", 1, &[&given]), "hidden_between");
            assert_eq!(guest.name("by_hand", 10, &[&given]), "by_hand");
        }
    }

    #[test]
    fn a_file_that_was_moved_after_its_debug_file_was_made_has_its_names() {
        // As prelink leaves it: the same code and build id, at another address.
        let id = "-Wl,--build-id=0x00112233445566778899aabbccddeeff";
        let before = Guest::build(&["-shared", "-fPIC", id]);
        let guest = Guest::build(&["-shared", "-fPIC", id, "-Wl,-Ttext-segment=0x5500000000"]);
        assert_ne!(before.address("hidden_between"), guest.address("hidden_between"));
        before.make_debug_file(&format!("given/{}", before.build_id_name()));
        guest.strip();
        let given = before.root.path().join("given");
        let line = guest.lines("hidden_between", 1, &[&given]).pop().unwrap();
        assert_eq!((line.function.name.as_str(), line.number), ("hidden_between", 4));
        assert_eq!(guest.name("by_hand", 10, &[&given]), "by_hand");
    }

    #[test]
    fn a_static_position_independent_program_has_its_names() {
        let guest = Guest::build(&["-static-pie", "-fPIE"]);
        assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
        guest.make_debug_file(&format!("given/{}", guest.build_id_name()));
        guest.strip();
        assert_eq!(guest.name("hidden_between", 1, &[]), "");
        assert_eq!(guest.name("hidden_between", 1, &[&guest.root.path().join("given")]), "hidden_between");
    }

    #[test]
    fn a_deleted_or_replaced_file_has_the_names_that_it_had() {
        let mut guest = Guest::library();
        guest.run("objcopy", &["--add-gnu-debuglink=lib/guest", "lib/guest"]);
        guest.run("strip", &["-g", "lib/guest"]);
        guest.hold();
        fs::remove_file(guest.file()).unwrap();
        assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
        fs::write(guest.file(), "something else").unwrap();
        assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
    }

    #[test]
    fn debug_information_that_is_broken_leaves_the_names_of_the_symbol_table() {
        let guest = Guest::library();
        fs::write(guest.root.path().join("garbage"), [0xa5; 300]).unwrap();
        guest.run("objcopy", &["--update-section", ".debug_info=garbage", "lib/guest"]);
        assert_eq!(guest.name("hidden_between", 1, &[]), "hidden_between");
        let file = fs::File::options().write(true).open(guest.file()).unwrap();
        // e_shoff: the section headers are said to lie outside.
        file.write_all_at(&u64::MAX.to_le_bytes(), 0x28).unwrap();
        assert!(crate::target::image::Image::parse(fs::read(guest.file()).unwrap().as_slice()).is_err());
    }
}
