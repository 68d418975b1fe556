//! What the fuzz targets do with what gives names.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use object::{Object, ObjectSymbol, ReadRef};

use super::{
    demangle::{READABLE_LIMIT_BYTES, demangle as readable},
    module::{Found, Sources},
    perf_map::{self, Told},
    symbols::{Search, Table},
};
use crate::{
    fuzzing::Input,
    target::{
        elf,
        image::{Cache, DebugLink, Image},
        maps::Module,
        mini,
    },
};

/// How many of a file's symbols are asked about.
const SYMBOLS_LIMIT: usize = 16;

/// How many addresses are looked up one by one, to compare with all at once.
const SINGLES_LIMIT: usize = 4;

/// Names in an ELF file.
pub(crate) fn elf(file: &File) {
    let cache = Cache::new(file);
    let Ok(image) = Image::parse(&cache) else { return };
    assert_eq!(image.build_id(), elf::build_id(file).ok().flatten());
    image.links();
    if let Some(DebugLink { name, .. }) = image.debug_link() {
        assert_eq!(Path::new(&name).file_name(), Some(OsStr::new(&name)), "the name of another directory");
    }
    let addresses = addresses(&image);
    let unpacked = mini::unpack(&image).ok().flatten();
    let mini = unpacked.as_deref().and_then(|bytes| Image::parse(bytes).ok());
    let all = by_symbols(&image, mini.as_ref(), &addresses);
    assert_eq!(all.len(), addresses.len());
    for (address, name) in addresses.iter().zip(&all).take(SINGLES_LIMIT) {
        let alone = by_symbols(&image, mini.as_ref(), &[*address]);
        assert_eq!(alone.first(), Some(name), "{address:#x} has another name alone");
    }
    check_lines(file, &image);
}

/// Where symbols begin and end.
fn addresses<'data>(image: &Image<'data, &'data Cache<'data>>) -> Vec<u64> {
    let symbols = image.elf.symbols().chain(image.elf.dynamic_symbols());
    let bounds = symbols.take(SYMBOLS_LIMIT).flat_map(|symbol| {
        let end = symbol.address().wrapping_add(symbol.size());
        [symbol.address(), end.wrapping_sub(1), end]
    });
    bounds.collect::<BTreeSet<u64>>().into_iter().collect()
}

fn by_symbols<'data, R: ReadRef<'data>>(
    image: &Image<'data, &'data Cache<'data>>,
    mini: Option<&Image<'data, R>>,
    addresses: &[u64],
) -> Vec<Option<Arc<str>>> {
    let mut search = Search::new(addresses);
    search.look_through(image, Table::Whole, 0);
    if let Some(mini) = mini {
        search.look_through(mini, Table::Whole, 0);
    }
    search.look_through(image, Table::Dynamic, 0);
    search.finish()
}

/// From offsets in the file to lines.
fn check_lines<'data>(file: &File, image: &Image<'data, &'data Cache<'data>>) {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let offsets: Vec<u64> =
        (0..SINGLES_LIMIT as u64).map(|part| length / SINGLES_LIMIT as u64 * part).collect();
    let segments = image.segments();
    for offset in &offsets {
        let address = elf::address_at(file, *offset).ok().flatten();
        assert_eq!(segments.address_at(*offset), address, "offset {offset:#x}");
    }
    if image.has_dwarf() {
        // That is read by another process, because blazesym may do anything with it.
        return;
    }
    let module = Module::held("/lib/libc.so.6".to_owned(), file.try_clone().expect("a descriptor"));
    let sources = Sources { module: &module, debug: None, debug_dirs: &[], reader: None };
    let Found { lines, .. } = sources.look_up(&offsets).expect("the file was read before");
    assert_eq!(lines.len(), offsets.len());
    assert!(lines.iter().flatten().all(|line| !line.function.system_name.is_empty()), "{lines:?}");
}

/// A perf map.
pub fn perf_map(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let wanted: BTreeSet<u64> = (0..input.byte()).map(|_| u64::from(input.half())).collect();
    let wanted: Vec<u64> = wanted.into_iter().collect();
    let map = input.rest();
    let read = |map: &mut dyn Read, wanted: &[u64]| perf_map::read(map, wanted).expect("memory can be read");
    let Told { names, malformed, is_cut } = read(&mut &*map, &wanted);
    assert_eq!(names.len(), wanted.len());
    assert!(!is_cut, "cut after {} bytes", map.len());
    assert!(malformed <= map.len() as u64);
    let byte_by_byte = read(&mut Slowly(map), &wanted);
    assert_eq!((byte_by_byte.names, byte_by_byte.malformed), (names.clone(), malformed));
    for (address, name) in wanted.iter().zip(&names).take(SINGLES_LIMIT) {
        let alone = read(&mut &*map, &[*address]);
        assert_eq!(alone.names.first(), Some(name), "{address:#x} has another name alone");
    }
    // A last line for every address, behind one that is finished.
    let covered = [map, b"\n0 ffffffffffffffff everything\n"].concat();
    let told = read(&mut covered.as_slice(), &wanted);
    assert!(told.names.iter().flatten().all(|name| &**name == "everything"), "{:?}", told.names);
    assert!(told.names.iter().all(Option::is_some), "{:?}", told.names);
}

/// Gives a byte at a time.
struct Slowly<'bytes>(&'bytes [u8]);

impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let one = buffer.len().min(1);
        let (buffer, _) = buffer.split_at_mut(one);
        Read::read(&mut self.0, buffer)
    }
}

/// A function's name, mangled or not.
pub fn demangle(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    if let Some(readable) = readable(&name) {
        assert!(readable.len() <= READABLE_LIMIT_BYTES, "{} bytes", readable.len());
    }
}
