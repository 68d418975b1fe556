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
    let may_throw = |name: &&String| family::may_throw(name) && !name.contains("nothrow");
    let Some(name) = hook.names.iter().find(may_throw) else { return Some(Throws::Never) };
    let (counterpart, arguments) = counterpart(name)?;
    let place = gated.iter().position(|(_, other)| {
        other.names.contains(&counterpart)
            && other.shape == hook.shape
            && other.names.iter().all(|name| !may_throw(&name))
    })?;
    Some(Throws::Unless { counterpart: place, arguments })
}

/// The name of the function that does the same and gives null instead of throwing, and the number of its arguments before the one
/// that says so (Itanium C++ ABI, 5.1.5; gperftools' src/gperftools/tcmalloc.h.in; mimalloc 2.0's include/mimalloc.h).
fn counterpart(name: &str) -> Option<(String, u8)> {
    const NOTHROW: &str = "RKSt9nothrow_t";
    match name {
        "_Znwm" | "_Znam" => Some((format!("{name}{NOTHROW}"), 1)),
        "_ZnwmSt11align_val_t" | "_ZnamSt11align_val_t" => Some((format!("{name}{NOTHROW}"), 2)),
        "tc_new" | "tc_newarray" => Some((format!("{name}_nothrow"), 1)),
        "tc_new_aligned" | "tc_newarray_aligned" => Some((format!("{name}_nothrow"), 2)),
        // Without the one more argument, which is not looked at then.
        "mi_new" => Some((format!("{name}_nothrow"), 1)),
        "mi_new_aligned" => Some((format!("{name}_nothrow"), 2)),
        "mi_new_n" => Some(("mi_mallocn".to_owned(), 2)),
        "mi_new_realloc" => Some(("mi_realloc".to_owned(), 2)),
        "mi_new_reallocn" => Some(("mi_reallocn".to_owned(), 3)),
        "mi_heap_alloc_new" => Some(("mi_heap_malloc".to_owned(), 2)),
        "mi_heap_alloc_new_n" => Some(("mi_heap_mallocn".to_owned(), 3)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counterparts_of_operators_are_operators_that_are_known_and_do_not_throw() {
        for name in ["_Znwm", "_Znam", "_ZnwmSt11align_val_t", "_ZnamSt11align_val_t"] {
            let (other, _) = counterpart(name).unwrap();
            assert!(
                family::FAMILIES.iter().any(|known| known.functions().any(|(known, _)| known == other)),
                "{other}"
            );
        }
        assert_eq!(counterpart("_Znwm12__hot_cold_t"), None);
        assert_eq!(counterpart("mi_new_of_the_future"), None);
    }

    #[test]
    fn all_of_mimalloc_that_throws_has_a_counterpart_of_the_same_shape() {
        let shapes: Vec<(String, Shape)> = family::FAMILIES
            .iter()
            .filter(|known| known.name == "mimalloc")
            .flat_map(|known| known.functions())
            .collect();
        let shape = |name: &str| shapes.iter().find(|(known, _)| known == name).map(|(_, shape)| *shape);
        let mut throwing = shapes.iter().filter(|(name, shape)| {
            family::may_throw(name) && !name.contains("nothrow") && takes_part(*shape)
        });
        assert!(throwing.clone().count() > 10);
        assert!(throwing.all(|(name, of)| {
            let (other, arguments) = counterpart(name).unwrap();
            let expected = of.convention().unwrap();
            let most = [expected.size_argument(), expected.count_argument()].into_iter().max().unwrap();
            shape(&other) == Some(*of) && u64::from(arguments) >= most
        }));
    }

    #[test]
    fn what_gives_or_takes_single_blocks_takes_part() {
        assert!(takes_part(Shape::Size) && takes_part(Shape::Free) && takes_part(Shape::Extend));
        assert!(!takes_part(Shape::Map) && !takes_part(Shape::Unmap) && !takes_part(Shape::Destroy));
    }
}
