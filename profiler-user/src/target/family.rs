//! The allocators that are known: by what they are recognised, and which functions they have.

use profiler_common::call::Shape;

/// The functions that C and POSIX name, and a few that most allocators add.
const STANDARD: &[(&str, Shape)] = &[
    ("malloc", Shape::Size),
    ("calloc", Shape::CountSize),
    ("realloc", Shape::Resize),
    ("reallocarray", Shape::ResizeCount),
    ("reallocf", Shape::ResizeOrFree),
    ("posix_memalign", Shape::OutAlignSize),
    ("aligned_alloc", Shape::AlignSize),
    ("memalign", Shape::AlignSize),
    ("valloc", Shape::Size),
    ("pvalloc", Shape::Size),
    ("free", Shape::Free),
    ("cfree", Shape::Free),
    ("free_sized", Shape::Free),
    ("free_aligned_sized", Shape::Free),
];

/// jemalloc's own (jemalloc(3), "Non-standard API").
const EXTENDED: &[(&str, Shape)] = &[
    ("mallocx", Shape::Size),
    ("rallocx", Shape::Resize),
    ("xallocx", Shape::Extend),
    ("dallocx", Shape::Free),
    ("sdallocx", Shape::Free),
];

/// Behind `tc_` (gperftools 2.10, src/gperftools/tcmalloc.h.in).
const TCMALLOC: &[(&str, Shape)] = &[
    ("malloc_skip_new_handler", Shape::Size),
    ("new", Shape::Size),
    ("new_nothrow", Shape::Size),
    ("newarray", Shape::Size),
    ("newarray_nothrow", Shape::Size),
    ("new_aligned", Shape::Size),
    ("new_aligned_nothrow", Shape::Size),
    ("newarray_aligned", Shape::Size),
    ("newarray_aligned_nothrow", Shape::Size),
    ("delete", Shape::Free),
    ("delete_sized", Shape::Free),
    ("delete_nothrow", Shape::Free),
    ("delete_aligned", Shape::Free),
    ("delete_sized_aligned", Shape::Free),
    ("delete_aligned_nothrow", Shape::Free),
    ("deletearray", Shape::Free),
    ("deletearray_sized", Shape::Free),
    ("deletearray_nothrow", Shape::Free),
    ("deletearray_aligned", Shape::Free),
    ("deletearray_sized_aligned", Shape::Free),
    ("deletearray_aligned_nothrow", Shape::Free),
];

/// Google's own tcmalloc, which is not gperftools' (tcmalloc/tcmalloc.h and tcmalloc/tcmalloc.cc, as in Rust's crate
/// libtcmalloc-sys 0.1.14, and before).
///
/// The standard names and the operators are other names of the first ones. Where it is built to replace nothing, as in that
/// crate, there are only these.
const GOOGLE: &[(&str, Shape)] = &[
    ("TCMallocInternalMalloc", Shape::Size),
    ("TCMallocInternalCalloc", Shape::CountSize),
    ("TCMallocInternalRealloc", Shape::Resize),
    ("TCMallocInternalReallocArray", Shape::ResizeCount),
    ("TCMallocInternalPosixMemalign", Shape::OutAlignSize),
    ("TCMallocInternalAlignedAlloc", Shape::AlignSize),
    ("TCMallocInternalMemalign", Shape::AlignSize),
    ("TCMallocInternalValloc", Shape::Size),
    ("TCMallocInternalPvalloc", Shape::Size),
    ("TCMallocInternalFree", Shape::Free),
    ("TCMallocInternalCfree", Shape::Free),
    ("TCMallocInternalFreeSized", Shape::Free),
    ("TCMallocInternalFreeAlignedSized", Shape::Free),
    ("TCMallocInternalSdallocx", Shape::Free),
    ("TCMallocInternalNew", Shape::Size),
    ("TCMallocInternalNewAligned", Shape::Size),
    ("TCMallocInternalNewNothrow", Shape::Size),
    ("TCMallocInternalNewAlignedNothrow", Shape::Size),
    ("TCMallocInternalNewArray", Shape::Size),
    ("TCMallocInternalNewArrayAligned", Shape::Size),
    ("TCMallocInternalNewArrayNothrow", Shape::Size),
    ("TCMallocInternalNewArrayAlignedNothrow", Shape::Size),
    ("TCMallocInternalDelete", Shape::Free),
    ("TCMallocInternalDeleteAligned", Shape::Free),
    ("TCMallocInternalDeleteSized", Shape::Free),
    ("TCMallocInternalDeleteSizedAligned", Shape::Free),
    ("TCMallocInternalDeleteNothrow", Shape::Free),
    ("TCMallocInternalDeleteAlignedNothrow", Shape::Free),
    ("TCMallocInternalDeleteArray", Shape::Free),
    ("TCMallocInternalDeleteArrayAligned", Shape::Free),
    ("TCMallocInternalDeleteArraySized", Shape::Free),
    ("TCMallocInternalDeleteArraySizedAligned", Shape::Free),
    ("TCMallocInternalDeleteArrayNothrow", Shape::Free),
    ("TCMallocInternalDeleteArrayAlignedNothrow", Shape::Free),
    ("sdallocx", Shape::Free),
    // The block and its size are returned, the block where it would be by itself.
    ("__size_returning_new", Shape::Size),
    ("__size_returning_new_aligned", Shape::Size),
    ("__size_returning_new_hot_cold", Shape::Size),
    ("__size_returning_new_aligned_hot_cold", Shape::Size),
    ("tcmalloc_size_returning_operator_new", Shape::Size),
    ("tcmalloc_size_returning_operator_new_aligned", Shape::Size),
    ("tcmalloc_size_returning_operator_new_hot_cold", Shape::Size),
    ("tcmalloc_size_returning_operator_new_aligned_hot_cold", Shape::Size),
    ("tcmalloc_size_returning_operator_new_nothrow", Shape::Size),
    ("tcmalloc_size_returning_operator_new_aligned_nothrow", Shape::Size),
    ("tcmalloc_size_returning_operator_new_hot_cold_nothrow", Shape::Size),
    ("tcmalloc_size_returning_operator_new_aligned_hot_cold_nothrow", Shape::Size),
    // Operators new that are told how often the block will be used.
    ("_Znwm12__hot_cold_t", Shape::Size),
    ("_Znam12__hot_cold_t", Shape::Size),
    ("_ZnwmRKSt9nothrow_t12__hot_cold_t", Shape::Size),
    ("_ZnamRKSt9nothrow_t12__hot_cold_t", Shape::Size),
    ("_ZnwmSt11align_val_t12__hot_cold_t", Shape::Size),
    ("_ZnamSt11align_val_t12__hot_cold_t", Shape::Size),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t12__hot_cold_t", Shape::Size),
    ("_ZnamSt11align_val_tRKSt9nothrow_t12__hot_cold_t", Shape::Size),
    // That crate's own, into which a compiler may have put what it calls.
    ("BridgeTCMallocInternalNewAlignedNothrow", Shape::Size),
    // Where the block moves, the caller then frees the old one, which is gone already: a free that is not known.
    ("BridgePrepareReallocAligned", Shape::Resize),
];

/// Behind `mi_` (mimalloc 2.0, include/mimalloc.h).
const MIMALLOC: &[(&str, Shape)] = &[
    ("malloc_small", Shape::Size),
    ("zalloc_small", Shape::Size),
    ("zalloc", Shape::Size),
    ("mallocn", Shape::CountSize),
    ("reallocn", Shape::ResizeCount),
    ("rezalloc", Shape::Resize),
    ("recalloc", Shape::ResizeCount),
    ("expand", Shape::Expand),
    ("malloc_aligned", Shape::Size),
    ("malloc_aligned_at", Shape::Size),
    ("zalloc_aligned", Shape::Size),
    ("zalloc_aligned_at", Shape::Size),
    ("calloc_aligned", Shape::CountSize),
    ("calloc_aligned_at", Shape::CountSize),
    ("realloc_aligned", Shape::Resize),
    ("realloc_aligned_at", Shape::Resize),
    ("rezalloc_aligned", Shape::Resize),
    ("rezalloc_aligned_at", Shape::Resize),
    ("recalloc_aligned", Shape::ResizeCount),
    ("recalloc_aligned_at", Shape::ResizeCount),
    ("heap_malloc", Shape::AlignSize),
    ("heap_malloc_small", Shape::AlignSize),
    ("heap_zalloc", Shape::AlignSize),
    ("heap_calloc", Shape::HeapCountSize),
    ("heap_mallocn", Shape::HeapCountSize),
    ("heap_realloc", Shape::HeapResize),
    ("heap_reallocn", Shape::HeapResizeCount),
    ("heap_reallocf", Shape::HeapResizeOrFree),
    ("heap_rezalloc", Shape::HeapResize),
    ("heap_recalloc", Shape::HeapResizeCount),
    ("heap_malloc_aligned", Shape::AlignSize),
    ("heap_malloc_aligned_at", Shape::AlignSize),
    ("heap_zalloc_aligned", Shape::AlignSize),
    ("heap_zalloc_aligned_at", Shape::AlignSize),
    ("heap_calloc_aligned", Shape::HeapCountSize),
    ("heap_calloc_aligned_at", Shape::HeapCountSize),
    ("heap_realloc_aligned", Shape::HeapResize),
    ("heap_realloc_aligned_at", Shape::HeapResize),
    ("heap_rezalloc_aligned", Shape::HeapResize),
    ("heap_rezalloc_aligned_at", Shape::HeapResize),
    ("heap_recalloc_aligned", Shape::HeapResizeCount),
    ("heap_recalloc_aligned_at", Shape::HeapResizeCount),
    ("heap_destroy", Shape::Destroy),
    ("strdup", Shape::Unsized),
    ("strndup", Shape::Unsized),
    ("realpath", Shape::Unsized),
    ("heap_strdup", Shape::Unsized),
    ("heap_strndup", Shape::Unsized),
    ("heap_realpath", Shape::Unsized),
    ("wcsdup", Shape::Unsized),
    ("mbsdup", Shape::Unsized),
    ("dupenv_s", Shape::Unsized),
    ("wdupenv_s", Shape::Unsized),
    ("new", Shape::Size),
    ("new_aligned", Shape::Size),
    ("new_nothrow", Shape::Size),
    ("new_aligned_nothrow", Shape::Size),
    ("new_n", Shape::CountSize),
    ("new_realloc", Shape::Resize),
    ("new_reallocn", Shape::ResizeCount),
    ("heap_alloc_new", Shape::AlignSize),
    ("heap_alloc_new_n", Shape::HeapCountSize),
    ("free_size", Shape::Free),
    ("free_size_aligned", Shape::Free),
    ("free_aligned", Shape::Free),
];

/// C++'s operators, by their mangled names (Itanium C++ ABI, 5.1.5): plain, array, and each with nothrow, alignment, both, and
/// for delete with the size.
const OPERATORS: &[(&str, Shape)] = &[
    ("_Znwm", Shape::Size),
    ("_Znam", Shape::Size),
    ("_ZnwmRKSt9nothrow_t", Shape::Size),
    ("_ZnamRKSt9nothrow_t", Shape::Size),
    ("_ZnwmSt11align_val_t", Shape::Size),
    ("_ZnamSt11align_val_t", Shape::Size),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", Shape::Size),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", Shape::Size),
    ("_ZdlPv", Shape::Free),
    ("_ZdaPv", Shape::Free),
    ("_ZdlPvm", Shape::Free),
    ("_ZdaPvm", Shape::Free),
    ("_ZdlPvRKSt9nothrow_t", Shape::Free),
    ("_ZdaPvRKSt9nothrow_t", Shape::Free),
    ("_ZdlPvSt11align_val_t", Shape::Free),
    ("_ZdaPvSt11align_val_t", Shape::Free),
    ("_ZdlPvmSt11align_val_t", Shape::Free),
    ("_ZdaPvmSt11align_val_t", Shape::Free),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", Shape::Free),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", Shape::Free),
];

/// How a program asks the kernel for memory by itself (mmap(2), mremap(2), brk(2)); sbrk calls brk.
const KERNEL: &[(&str, Shape)] = &[
    ("mmap", Shape::Map),
    ("mmap64", Shape::Map),
    ("mremap", Shape::Remap),
    ("munmap", Shape::Unmap),
    ("brk", Shape::Break),
];

/// A kind of allocator.
#[derive(Debug)]
pub struct Family {
    /// Its name, for people and labels.
    pub name: &'static str,
    /// What its functions' names begin with, besides nothing where `has_standard`.
    pub prefix: &'static str,
    /// Symbols by any of which it is recognised.
    pub marks: &'static [&'static str],
    /// Whether functions with the standard names are its own.
    pub has_standard: bool,
    /// Functions behind the prefix, besides the standard ones.
    extended: &'static [(&'static str, Shape)],
    /// Whether C++'s operators are its own too, and need not call malloc.
    pub has_operators: bool,
    /// Whether it is the kernel, which gives no blocks but mappings.
    pub gives_mappings: bool,
    /// Whether it is a part of a C library, which calls some of the same functions for others as well.
    pub is_in_c_library: bool,
    /// Whether a shared library that has it has nothing else.
    pub fills_libraries: bool,
}

const FAMILY: Family = Family {
    name: "",
    prefix: "",
    marks: &[],
    has_standard: true,
    extended: &[],
    has_operators: false,
    gives_mappings: false,
    is_in_c_library: false,
    fills_libraries: false,
};

/// Every kind that is recognised. An earlier one has the functions that a later one has too: C libraries come last, whose
/// functions a linker leaves out where a program brings its own.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "mimalloc",
        prefix: "mi_",
        // One of these is in every program, of which the linker leaves out what is not used.
        marks: &["mi_malloc", "mi_malloc_aligned", "mi_free"],
        extended: MIMALLOC,
        has_operators: true,
        fills_libraries: true,
        ..FAMILY
    },
    Family {
        name: "tcmalloc",
        prefix: "tc_",
        marks: &["tc_malloc"],
        extended: TCMALLOC,
        has_operators: true,
        fills_libraries: true,
        ..FAMILY
    },
    Family {
        name: "tcmalloc",
        marks: &["TCMallocInternalMalloc", "MallocExtension_Internal_GetStats"],
        extended: GOOGLE,
        has_operators: true,
        fills_libraries: true,
        ..FAMILY
    },
    Family {
        name: "jemalloc",
        marks: &["mallctl"],
        extended: EXTENDED,
        has_operators: true,
        fills_libraries: true,
        ..FAMILY
    },
    Family { marks: &["je_mallctl"], prefix: "je_", ..PREFIXED_JEMALLOC },
    // Rust's crates tikv-jemalloc-sys and jemalloc-sys.
    Family { marks: &["_rjem_mallctl"], prefix: "_rjem_", ..PREFIXED_JEMALLOC },
    Family { marks: &["jemalloc_mallctl"], prefix: "jemalloc_", ..PREFIXED_JEMALLOC },
    Family {
        name: "glibc",
        marks: &["gnu_get_libc_version", "_int_malloc", "__libc_mallopt", "__malloc_info"],
        is_in_c_library: true,
        ..FAMILY
    },
    Family {
        name: "musl",
        marks: &["__optreset", "__libc_malloc_impl", "__simple_malloc"],
        is_in_c_library: true,
        ..FAMILY
    },
];

/// The kernel itself, as the C library leads to it.
pub const MAPPINGS: Family = Family {
    name: "mmap",
    marks: &["munmap"],
    extended: KERNEL,
    has_standard: false,
    gives_mappings: true,
    ..FAMILY
};

const PREFIXED_JEMALLOC: Family =
    Family { name: "jemalloc", extended: EXTENDED, has_standard: false, ..FAMILY };

/// What implements the standard functions and is none of the others: a wrapper, perhaps, or an allocator that nobody told us of.
pub const OTHER: Family = Family { name: "other", has_operators: true, ..FAMILY };

impl Family {
    /// Its functions, by name.
    pub fn functions(&self) -> impl Iterator<Item = (String, Shape)> {
        let plain = if self.has_standard { STANDARD } else { &[] };
        let behind = if self.prefix.is_empty() { &[] } else { STANDARD };
        let operators = if self.has_operators { OPERATORS } else { &[] };
        let prefixed = behind
            .iter()
            .chain(self.extended)
            .map(|(name, shape)| (format!("{}{name}", self.prefix), *shape));
        plain.iter().chain(operators).map(|(name, shape)| ((*name).to_owned(), *shape)).chain(prefixed)
    }

    /// Whether it is recognised by its own functions, so that a file may have its functions for itself alone.
    pub fn has_marks(&self) -> bool {
        !self.marks.is_empty()
    }
}

/// Whether a function may throw: C++'s operators that do, and what they call. No return probe goes on them.
///
/// Those that promise not to throw are taken to: what they call may.
pub fn may_throw(name: &str) -> bool {
    const NEW: [&str; 8] = [
        "_Zn",
        "tc_new",
        "mi_new",
        "mi_heap_alloc_new",
        "TCMallocInternalNew",
        "BridgeTCMallocInternalNew",
        "__size_returning_new",
        "tcmalloc_size_returning_operator_new",
    ];
    NEW.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn every_form_of_the_operators_is_known_and_only_new_throws() {
        assert_eq!(OPERATORS.len(), 20);
        for (name, shape) in OPERATORS {
            assert_eq!(may_throw(name), *shape == Shape::Size, "{name}");
        }
        assert!(may_throw("tc_newarray_aligned") && may_throw("mi_new_n") && may_throw("mi_heap_alloc_new"));
        assert!(!may_throw("malloc") && !may_throw("mi_malloc") && !may_throw("tc_delete"));
        for (name, shape) in GOOGLE {
            let is_operator = name.contains("New") || name.contains("new") || name.starts_with("_Zn");
            assert_eq!(may_throw(name), is_operator && *shape == Shape::Size, "{name}");
        }
    }

    #[test]
    fn no_family_has_a_function_twice() {
        for family in FAMILIES.iter().chain([&OTHER]) {
            let mut seen = HashMap::new();
            for (name, shape) in family.functions() {
                assert_eq!(seen.insert(name.clone(), shape), None, "{}: {name}", family.name);
            }
            assert!(seen.values().any(|shape| *shape == Shape::Free), "{}", family.name);
        }
    }
}
