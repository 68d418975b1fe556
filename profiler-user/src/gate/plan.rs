//! Which functions of an allocator are gated, and whether it can be at all.

use std::fmt;

use profiler_common::call::{Outcome, Shape};

use super::code::{Function, Throws};
use crate::target::{
    allocator::Allocator,
    cover::Refusal,
    family,
    hooks::Hook,
    maps::{AddressSpace, Content},
};

/// Why an allocator is not gated: a block that one of its functions gives in the sample has to be known when another one frees it, so that
/// it is all of them or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// One of its functions cannot be.
    Function {
        /// Its names.
        names: String,
        /// Why.
        reason: Refusal,
    },
    /// One of its functions is mapped nowhere: the file has changed since.
    NotMapped {
        /// Its names.
        names: String,
    },
    /// One may throw, and has no counterpart that does not.
    Throws {
        /// Its names.
        names: String,
    },
    /// One cannot even be probed.
    Unprobed {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function { names, reason } => write!(out, "{names} {reason}"),
            Self::NotMapped { names } => write!(out, "{names} is not mapped where its file has it"),
            Self::Throws { names } => {
                write!(out, "{names} may throw, and no function does the same and does not")
            }
            Self::Unprobed { name, reason } => write!(out, "{name} {reason}"),
        }
    }
}

/// The functions of an allocator that are gated, each with its place among the hooks; or all that stands in the way.
pub fn of(allocator: &Allocator, space: &AddressSpace) -> Result<Vec<(usize, Function)>, Vec<Obstacle>> {
    let mut obstacles: Vec<Obstacle> = allocator
        .unhooked
        .iter()
        .filter(|(name, _)| allocator.hooks.iter().all(|hook| !hook.names.contains(name)))
        .map(|(name, reason)| Obstacle::Unprobed { name: name.clone(), reason: reason.clone() })
        .collect();
    let gated: Vec<(usize, &Hook)> =
        allocator.hooks.iter().enumerate().filter(|(_, hook)| takes_part(hook.shape)).collect();
    let mut functions = Vec::new();
    for (place, hook) in &gated {
        match function(hook, &gated, allocator.module, space) {
            Ok(function) => functions.push((*place, function)),
            Err(obstacle) => obstacles.push(obstacle),
        }
    }
    if obstacles.is_empty() { Ok(functions) } else { Err(obstacles) }
}

/// Whether functions of this shape give or take blocks one by one.
pub fn takes_part(shape: Shape) -> bool {
    match shape.convention() {
        Some(convention) => !Outcome::is_mapping(convention.outcome()),
        None => shape == Shape::Free,
    }
}

fn function(
    hook: &Hook,
    gated: &[(usize, &Hook)],
    module: usize,
    space: &AddressSpace,
) -> Result<Function, Obstacle> {
    let names = || hook.names.join(", ");
    let cover = hook.cover.clone().map_err(|reason| Obstacle::Function { names: names(), reason })?;
    let range = space.current().find(|range| {
        range.content == Content::Module(module)
            && cover.offset >= range.offset
            && cover.end() - range.offset <= range.end - range.start
    });
    let range = range.ok_or_else(|| Obstacle::NotMapped { names: names() })?;
    let address = range.start + (cover.offset - range.offset);
    let throws = throws(hook, gated).ok_or_else(|| Obstacle::Throws { names: names() })?;
    Ok(Function { shape: hook.shape, address, cover, jumps: hook.jumps, throws })
}

/// Whether a function may throw; `None` where it may, and there is no other to be called instead.
fn throws(hook: &Hook, gated: &[(usize, &Hook)]) -> Option<Throws> {
    let Some(name) = hook.names.iter().find(|name| may_throw(name)) else { return Some(Throws::Never) };
    let Counterpart { name, arguments, gives_size } = Counterpart::of(name)?;
    let counterpart = gated.iter().position(|(_, other)| {
        other.names.contains(&name)
            && other.shape == hook.shape
            && !other.names.iter().any(|name| may_throw(name))
    })?;
    Some(Throws::Unless { counterpart, arguments, gives_size })
}

fn may_throw(name: &str) -> bool {
    family::may_throw(name) && !name.to_ascii_lowercase().contains("nothrow")
}

/// A function that does the same as one that throws, and gives null instead.
struct Counterpart {
    name: String,
    /// The number of arguments before the one that says that it is not to throw, or that a function has which never does.
    arguments: u8,
    /// Whether the one that throws gives the block's size as well, and this one does not.
    gives_size: bool,
}

impl Counterpart {
    /// That of a function that throws (Itanium C++ ABI, 5.1.5; gperftools' src/gperftools/tcmalloc.h.in; mimalloc 2.0's
    /// include/mimalloc.h; Google's tcmalloc/malloc_extension.h and tcmalloc/new_extension.h).
    fn of(name: &str) -> Option<Self> {
        let (name, arguments, gives_size) = match name {
            "_Znwm" | "_Znam" => (format!("{name}RKSt9nothrow_t"), 1, false),
            "_ZnwmSt11align_val_t" | "_ZnamSt11align_val_t" => (format!("{name}RKSt9nothrow_t"), 2, false),
            "tc_new" | "tc_newarray" | "mi_new" => (format!("{name}_nothrow"), 1, false),
            "tc_new_aligned" | "tc_newarray_aligned" | "mi_new_aligned" => {
                (format!("{name}_nothrow"), 2, false)
            }
            "mi_new_n" => ("mi_mallocn".to_owned(), 2, false),
            "mi_new_realloc" => ("mi_realloc".to_owned(), 2, false),
            "mi_new_reallocn" => ("mi_reallocn".to_owned(), 3, false),
            "mi_heap_alloc_new" => ("mi_heap_malloc".to_owned(), 2, false),
            "mi_heap_alloc_new_n" => ("mi_heap_mallocn".to_owned(), 3, false),
            "TCMallocInternalNew" | "TCMallocInternalNewArray" => (format!("{name}Nothrow"), 1, false),
            "TCMallocInternalNewAligned" | "TCMallocInternalNewArrayAligned" => {
                (format!("{name}Nothrow"), 2, false)
            }
            // How often the block will be used is a hint, by which it gets its place.
            "_Znwm12__hot_cold_t" | "_Znam12__hot_cold_t" => ("_ZnwmRKSt9nothrow_t".to_owned(), 1, false),
            "_ZnwmSt11align_val_t12__hot_cold_t" | "_ZnamSt11align_val_t12__hot_cold_t" => {
                ("_ZnwmSt11align_val_tRKSt9nothrow_t".to_owned(), 2, false)
            }
            "__size_returning_new"
            | "__size_returning_new_hot_cold"
            | "tcmalloc_size_returning_operator_new"
            | "tcmalloc_size_returning_operator_new_hot_cold" => ("_ZnwmRKSt9nothrow_t".to_owned(), 1, true),
            "__size_returning_new_aligned"
            | "__size_returning_new_aligned_hot_cold"
            | "tcmalloc_size_returning_operator_new_aligned"
            | "tcmalloc_size_returning_operator_new_aligned_hot_cold" => {
                ("_ZnwmSt11align_val_tRKSt9nothrow_t".to_owned(), 2, true)
            }
            _ => return None,
        };
        Some(Self { name, arguments, gives_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_throws_has_a_counterpart_that_is_known_does_not_and_takes_the_same() {
        let mut throwing = 0;
        for family in family::FAMILIES {
            let shapes: Vec<(String, Shape)> = family.functions().collect();
            for (name, shape) in shapes.iter().filter(|(name, _)| may_throw(name)) {
                throwing += 1;
                let Counterpart { name: other, arguments, .. } = Counterpart::of(name).unwrap();
                assert!(!may_throw(&other), "{name}: {other}");
                assert!(shapes.contains(&(other.clone(), *shape)), "{name}: {other}");
                let convention = shape.convention().unwrap();
                let most = convention.size_argument().max(convention.count_argument());
                assert!(u64::from(arguments) >= most, "{name}: {other}");
            }
        }
        assert!(throwing > 30, "{throwing}");
        assert!(Counterpart::of("mi_new_of_the_future").is_none());
    }

    #[test]
    fn what_gives_or_takes_single_blocks_takes_part() {
        assert!(takes_part(Shape::Size) && takes_part(Shape::Free) && takes_part(Shape::Extend));
        assert!(!takes_part(Shape::Map) && !takes_part(Shape::Unmap) && !takes_part(Shape::Destroy));
    }
}
