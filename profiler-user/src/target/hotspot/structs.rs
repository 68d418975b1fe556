//! Where the JVM keeps what: it has tables of its own fields for debuggers (src/hotspot/share/runtime/vmStructs.cpp of OpenJDK).
//!
//! They are found by symbols that every libjvm.so has: `gHotSpotVMStructs`, the fields, and `gHotSpotVMTypes`, the types' sizes;
//! and beside each, how its entries are laid out.

use std::{collections::HashMap, fs::File};

use crate::target::{elf, words::Words};

/// The variables that lead to the tables, by name: addresses as libjvm.so states them.
#[derive(Debug)]
pub(in crate::target) struct Variables(HashMap<String, u64>);

impl Variables {
    /// Those of a JVM; `None` where the file has none.
    pub(super) fn of(file: &File) -> Option<Self> {
        let found = elf::exported_addresses(file, "gHotSpotVM");
        let found = found.inspect_err(|error| tracing::debug!(%error, "no variables of the JVM's")).ok()?;
        (!found.is_empty()).then_some(Self(found))
    }
}

/// Entries that are read at once: some 3 KiB.
const ENTRIES_AT_ONCE: u64 = 64;

/// Entries have 48 bytes at most.
const LARGEST_ENTRY_BYTES: u64 = 256;

/// JDK 17 has 800 fields and types, JDK 25 has 600.
const ENTRIES_LIMIT: u64 = 10_000;

/// Where the fields are that it takes to find code: offsets in the type that has them, but for `heaps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Structs {
    /// The address of `CodeCache::_heaps`, a pointer to an array of pointers to the code heaps.
    pub(super) heaps: u64,
    /// `GrowableArrayBase::_len`, 32 bits.
    pub(super) array_length: u64,
    /// `GrowableArray<T>::_data`, a pointer.
    pub(super) array_data: u64,
    /// `CodeHeap::_memory`, a `VirtualSpace`.
    pub(super) memory: u64,
    /// `CodeHeap::_segmap`, a `VirtualSpace`.
    pub(super) map: u64,
    /// `CodeHeap::_log2_segment_size`, 32 bits.
    pub(super) segment_log2: u64,
    /// `VirtualSpace::_low`, a pointer.
    pub(super) low: u64,
    /// `VirtualSpace::_high`, a pointer.
    pub(super) high: u64,
    /// `HeapBlock::Header::_used`, a byte.
    pub(super) is_used: u64,
    /// The size of a `HeapBlock`, which a `CodeBlob` follows.
    pub(super) block_bytes: u64,
    /// `CodeBlob::_name`, a pointer.
    pub(super) name: u64,
    /// `CodeBlob::_frame_size`, 32 bits, in words.
    pub(super) frame_words: u64,
    /// What it takes to name a method.
    pub(super) methods: Option<MethodStructs>,
}

/// Where the fields are that it takes to name a method, as offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MethodStructs {
    /// `nmethod::_method`, a pointer; until JDK 22 of `CompiledMethod`.
    pub(super) method: u64,
    /// `Method::_constMethod`, a pointer.
    pub(super) constant: u64,
    /// `ConstMethod::_constants`, a pointer.
    pub(super) constants: u64,
    /// `ConstMethod::_name_index`, 16 bits.
    pub(super) name_index: u64,
    /// The size of a `ConstantPool`, which its constants follow.
    pub(super) pool_bytes: u64,
    /// `ConstantPool::_pool_holder`, a pointer to a `Klass`.
    pub(super) holder: u64,
    /// `Klass::_name`, a pointer to a `Symbol`.
    pub(super) class_name: u64,
    /// `Symbol::_length`, 16 bits.
    pub(super) symbol_length: u64,
    /// `Symbol::_body`, where the text is.
    pub(super) symbol_text: u64,
}

impl Structs {
    /// Reads them from a JVM whose libjvm.so is mapped `bias` behind the addresses that it states. `None` where they have not been
    /// written yet, or it keeps its code otherwise: before JDK 9 there was one heap only.
    pub(super) fn read(variables: &Variables, bias: u64, words: &Words) -> Option<Self> {
        let variable = |name: &str| words.word(bias.wrapping_add(*variables.0.get(name)?));
        let fields = fields(&variable, words)?;
        let field = |of: &str, name: &str| fields.get(&(of.into(), name.into())).copied();
        Some(Self {
            heaps: field("CodeCache", "_heaps")?,
            array_length: field("GrowableArrayBase", "_len")
                .or_else(|| field("GenericGrowableArray", "_len"))?,
            array_data: field("GrowableArray<int>", "_data")?,
            memory: field("CodeHeap", "_memory")?,
            map: field("CodeHeap", "_segmap")?,
            segment_log2: field("CodeHeap", "_log2_segment_size")?,
            low: field("VirtualSpace", "_low")?,
            high: field("VirtualSpace", "_high")?,
            is_used: field("HeapBlock", "_header")?.checked_add(field("HeapBlock::Header", "_used")?)?,
            block_bytes: size(&variable, words, b"HeapBlock")?,
            name: field("CodeBlob", "_name")?,
            frame_words: field("CodeBlob", "_frame_size")?,
            methods: MethodStructs::of(&field, size(&variable, words, b"ConstantPool")),
        })
    }
}

impl MethodStructs {
    fn of(field: &impl Fn(&str, &str) -> Option<u64>, pool_bytes: Option<u64>) -> Option<Self> {
        Some(Self {
            method: field("nmethod", "_method").or_else(|| field("CompiledMethod", "_method"))?,
            constant: field("Method", "_constMethod")?,
            constants: field("ConstMethod", "_constants")?,
            name_index: field("ConstMethod", "_name_index")?,
            pool_bytes: pool_bytes?,
            holder: field("ConstantPool", "_pool_holder")?,
            class_name: field("Klass", "_name")?,
            symbol_length: field("Symbol", "_length")?,
            symbol_text: field("Symbol", "_body")?,
        })
    }
}

/// An entry of a table.
struct Entry(Vec<u8>);

impl Entry {
    /// The 64 bits at an offset in it.
    fn word(&self, offset: u64) -> Option<u64> {
        let bytes = self.0.get(usize::try_from(offset).ok()?..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    /// The 32 bits at an offset in it.
    fn half(&self, offset: u64) -> Option<u32> {
        let bytes = self.0.get(usize::try_from(offset).ok()?..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }
}

/// The entries of a table, each with a pointer to a name at its `key`; the last one has none.
fn entries(table: u64, stride: u64, key: u64, words: &Words) -> impl Iterator<Item = (Entry, u64)> {
    // A table that lies at 0 has not been written.
    let is_one = table != 0 && (1..=LARGEST_ENTRY_BYTES).contains(&stride);
    let part_bytes = usize::try_from(stride * if is_one { ENTRIES_AT_ONCE } else { 0 }).unwrap_or_default();
    let parts = (0..ENTRIES_LIMIT / ENTRIES_AT_ONCE).map_while(move |part| {
        let bytes = words.bytes(table.checked_add(part * part_bytes as u64)?, part_bytes)?;
        (!bytes.is_empty()).then_some(bytes)
    });
    let entries = parts.flat_map(move |bytes| {
        let entries = bytes.chunks_exact(usize::try_from(stride).unwrap_or(1).max(1));
        entries.map(|entry| Entry(entry.to_vec())).collect::<Vec<_>>()
    });
    entries.map_while(move |entry| {
        let name = entry.word(key)?;
        (name != 0).then_some((entry, name))
    })
}

/// Where fields are, by their type and name.
type Fields = HashMap<(Box<str>, Box<str>), u64>;

/// Every field: its address where it is static, else its offset.
fn fields(variable: &impl Fn(&str) -> Option<u64>, words: &Words) -> Option<Fields> {
    let part = |name: &str| variable(&format!("gHotSpotVMStructEntry{name}"));
    let (table, stride) = (variable("gHotSpotVMStructs")?, part("ArrayStride")?);
    let (of, name) = (part("TypeNameOffset")?, part("FieldNameOffset")?);
    let (is_static, offset, address) =
        (part("IsStaticOffset")?, part("OffsetOffset")?, part("AddressOffset")?);
    // Types are named once for each of their fields.
    let mut names: HashMap<u64, Option<Box<str>>> = HashMap::new();
    let mut named = |at: u64| {
        names.entry(at).or_insert_with(|| Some(String::from_utf8(words.name(at)?).ok()?.into())).clone()
    };
    let mut fields = HashMap::new();
    for (entry, of) in entries(table, stride, of, words) {
        let is_static = entry.half(is_static)? != 0;
        let place = entry.word(if is_static { address } else { offset })?;
        // Names that are too long are none of those that are looked for.
        if let (Some(of), Some(name)) = (named(of), entry.word(name).and_then(&mut named)) {
            fields.insert((of, name), place);
        }
    }
    Some(fields)
}

/// The size of a type, in bytes.
fn size(variable: &impl Fn(&str) -> Option<u64>, words: &Words, wanted: &[u8]) -> Option<u64> {
    let part = |name: &str| variable(&format!("gHotSpotVMTypeEntry{name}"));
    let (table, stride) = (variable("gHotSpotVMTypes")?, part("ArrayStride")?);
    let (name, size) = (part("TypeNameOffset")?, part("SizeOffset")?);
    let (entry, _) = entries(table, stride, name, words)
        .find(|(_, name)| words.name(*name).is_some_and(|name| name == wanted))?;
    entry.word(size)
}

#[cfg(test)]
mod tests {
    use super::{super::fixture::Image, *};

    const STRIDE: u64 = 48;

    /// The variables that say how the tables are laid out, as JDK 17 and 25 have them; both tables lie at 0x1000.
    fn variable(name: &str) -> Option<u64> {
        let parts = ["TypeName", "FieldName", "TypeString", "IsStatic", "Offset", "Address"];
        let part = |name: &str| parts.iter().position(|part| *part == name).map(|at| 8 * at as u64);
        match name {
            "gHotSpotVMStructs" | "gHotSpotVMTypes" => Some(0x1000),
            "gHotSpotVMStructEntryArrayStride" | "gHotSpotVMTypeEntryArrayStride" => Some(STRIDE),
            "gHotSpotVMTypeEntrySizeOffset" => Some(8),
            _ => {
                let name = name.strip_prefix("gHotSpotVMStructEntry");
                part(name.unwrap_or("TypeNameOffset").strip_suffix("Offset")?)
            }
        }
    }

    fn image() -> Image {
        let image = Image::empty();
        image.bytes(0x100, b"CodeHeap\0_segmap\0CodeCache\0_heaps\0");
        image.words(0x1000, &[0x100, 0x109, 0, 0, 0x78, 0]);
        image.words(0x1000 + STRIDE, &[0x111, 0x11b, 0, 1, 0, 0x7777]);
        image.words(0x1000 + 2 * STRIDE, &[0; 6]);
        image
    }

    #[test]
    fn fields_have_an_offset_or_an_address() {
        let fields = fields(&variable, &image().read()).unwrap();
        assert_eq!(fields.len(), 2);
        assert_eq!(fields.get(&("CodeHeap".into(), "_segmap".into())), Some(&0x78));
        assert_eq!(fields.get(&("CodeCache".into(), "_heaps".into())), Some(&0x7777));
    }

    #[test]
    fn types_have_a_size() {
        let words = image().read();
        assert_eq!(size(&variable, &words, b"CodeCache"), Some(0x11b));
        assert_eq!(size(&variable, &words, b"HeapBlock"), None);
    }

    #[test]
    fn a_name_that_does_not_end_is_none() {
        let image = image();
        image.bytes(0x100, &[b'x'; 0x200]);
        assert_eq!(fields(&variable, &image.read()), Some(HashMap::new()));
    }

    #[test]
    fn a_table_that_does_not_end_is_read_so_far() {
        let image = image();
        for entry in 0..2 * ENTRIES_LIMIT {
            image.words(0x1000 + STRIDE * entry, &[0x100, 0x109, 0, 0, entry, 0]);
        }
        let fields = fields(&variable, &image.read()).unwrap();
        let read = ENTRIES_LIMIT / ENTRIES_AT_ONCE * ENTRIES_AT_ONCE;
        assert_eq!(fields.get(&("CodeHeap".into(), "_segmap".into())), Some(&(read - 1)));
    }

    #[test]
    fn what_was_not_written_yet_is_no_table() {
        let unwritten = |name: &str| variable(name).filter(|_| !name.ends_with('s')).or(Some(0));
        assert_eq!(fields(&unwritten, &image().read()), Some(HashMap::new()));
        let misses = |name: &str| variable(name).filter(|_| !name.ends_with("Stride"));
        assert_eq!(fields(&misses, &image().read()), None);
    }
}
