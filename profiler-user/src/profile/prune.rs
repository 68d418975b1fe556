//! Takes frames out of a profile that nobody wants to see, as the profile itself asks.
//!
//! The rules are those of pprof (`RemoveUninteresting` in its `profile/prune.go`): a frame whose
//! function matches `drop_frames`, and not `keep_frames`, goes away together with all that it calls. The
//! allocator's own frames disappear in this way. A stack's outermost frames stay: only what lies below
//! the first frame that does not match can go.

use std::collections::{HashMap, HashSet};

use regex::{Regex, RegexBuilder};

use super::{checked::CheckedProfile, proto};

/// A bound on a compiled pattern: ten times what the longest known `drop_frames` takes.
const PATTERN_SIZE_LIMIT_BYTES: usize = 1 << 20;

/// Why a profile's wish cannot be granted.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Not a regular expression, or one that is too large.
    #[error("profile's {field} is not a usable regular expression")]
    Pattern {
        /// Which of the two patterns.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<regex::Error>,
    },
}

/// What becomes of a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It goes, and so does all that it calls.
    Drop,
    /// Its outer lines stay, but what it calls goes.
    KeepOuter,
}

/// Removes the frames that match the profile's `drop_frames`, and all that they call.
///
/// # Errors
///
/// Fails, with the profile unchanged, if a pattern is not a regular expression.
pub fn drop_frames(profile: &mut CheckedProfile) -> Result<(), PruneError> {
    let Some(drop) = pattern(profile, "drop_frames", profile.proto().drop_frames)? else { return Ok(()) };
    let keep = pattern(profile, "keep_frames", profile.proto().keep_frames)?;
    let dropped = matching_functions(profile, &drop, keep.as_ref());

    let mut fates: HashMap<u64, Fate> = HashMap::new();
    let (locations, samples) = profile.prunable();
    for location in locations {
        let proto::Location { id, line, mapping_id: _, address: _, is_folded: _ } = location;
        // The outermost match decides: it takes the lines inlined into it along.
        let Some(at) = line.iter().rposition(|line| dropped.contains(&line.function_id)) else { continue };
        if at.saturating_add(1) == line.len() {
            fates.insert(*id, Fate::Drop);
        } else {
            line.drain(..=at);
            fates.insert(*id, Fate::KeepOuter);
        }
    }
    for sample in samples {
        prune_stack(&mut sample.location_id, &fates);
    }
    Ok(())
}

/// Shortens a stack, leaf first, below its outermost location that has to go.
fn prune_stack(stack: &mut Vec<u64>, fates: &HashMap<u64, Fate>) {
    // Without this a stack that starts with a dropped frame would have nothing left.
    let Some(first_kept) = stack.iter().rposition(|id| !fates.contains_key(id)) else { return };
    let below = stack.iter().take(first_kept).enumerate().rev();
    let cut = below.filter_map(|(at, id)| Some((at, *fates.get(id)?))).next();
    match cut {
        Some((at, Fate::Drop)) => drop(stack.drain(..=at)),
        Some((at, Fate::KeepOuter)) => drop(stack.drain(..at)),
        None => {}
    }
}

/// Returns the ids of the functions to drop.
fn matching_functions(profile: &CheckedProfile, drop: &Regex, keep: Option<&Regex>) -> HashSet<u64> {
    let mut verdicts: HashMap<i64, bool> = HashMap::new();
    let mut matching = HashSet::new();
    for function in &profile.proto().function {
        let verdict = *verdicts.entry(function.name).or_insert_with(|| {
            let name = profile.string(function.name);
            let short = simplified(name);
            !name.is_empty() && drop.is_match(short) && !keep.is_some_and(|keep| keep.is_match(short))
        });
        if verdict {
            matching.insert(function.id);
        }
    }
    matching
}

/// Returns the pattern that matches whole names, if the profile has one.
fn pattern(profile: &CheckedProfile, field: &'static str, index: i64) -> Result<Option<Regex>, PruneError> {
    let text = profile.string(index);
    if text.is_empty() {
        return Ok(None);
    }
    RegexBuilder::new(&format!("^({text})$"))
        .size_limit(PATTERN_SIZE_LIMIT_BYTES)
        .dfa_size_limit(PATTERN_SIZE_LIMIT_BYTES)
        .build()
        .map(Some)
        .map_err(|source| PruneError::Pattern { field, source: Box::new(source) })
}

/// Returns a function's name without its argument list, and without the dot of the PowerPC ABI.
fn simplified(name: &str) -> &str {
    const NOT_ARGUMENTS: [&str; 2] = ["(anonymous namespace)", "operator()"];
    let name = name.strip_prefix('.').unwrap_or(name);
    let mut from = 0;
    while let Some(rest) = name.get(from..) {
        let Some(at) = rest.find('(') else { break };
        let open = from.saturating_add(at);
        let reserved = NOT_ARGUMENTS.iter().find_map(|reserved| {
            // Where the reserved word would start so that its parenthesis is this one.
            let start = open.checked_sub(reserved.find('(')?)?;
            name.get(start..)?.starts_with(reserved).then(|| start.saturating_add(reserved.len()))
        });
        match reserved {
            Some(end) => from = end,
            None => return name.get(..open).unwrap_or(name),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{fixture, view};

    /// Returns the stacks, root first, that are left.
    fn pruned(stacks: &[&str], drop: &str, keep: &str) -> Vec<String> {
        let stacks: Vec<_> = stacks.iter().map(|stack| (*stack, 1)).collect();
        let mut proto = fixture::stacks(&stacks).into_proto();
        proto.drop_frames = i64::try_from(proto.string_table.len()).unwrap();
        proto.keep_frames = proto.drop_frames + 1;
        proto.string_table.extend([drop.to_owned(), keep.to_owned()]);
        let mut profile = CheckedProfile::new(proto).unwrap();
        drop_frames(&mut profile).unwrap();
        let folded = view::folded::FoldedStacks::new(&profile, 0, view::Granularity::Functions);
        let mut text = Vec::new();
        folded.write(&mut text).unwrap();
        String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_dropped_frame_takes_what_it_calls_along() {
        assert_eq!(pruned(&["main;malloc;brk"], "malloc", ""), ["main 1"]);
    }

    #[test]
    fn the_pattern_matches_whole_names() {
        assert_eq!(pruned(&["main;my_malloc"], "malloc", ""), ["main;my_malloc 1"]);
        assert_eq!(pruned(&["main;malloc(unsigned long)"], "malloc", ""), ["main 1"]);
    }

    #[test]
    fn kept_frames_are_kept() {
        assert_eq!(pruned(&["main;new_user;new_x"], "new_.*", "new_user"), ["main;new_user 1"]);
    }

    #[test]
    fn the_outermost_frames_stay() {
        assert_eq!(pruned(&["malloc;main;malloc"], "malloc", ""), ["malloc;main 1"]);
        assert_eq!(pruned(&["malloc;brk"], "malloc|brk", ""), ["malloc;brk 1"]);
    }

    #[test]
    fn an_inlined_frame_goes_without_its_caller() {
        assert_eq!(pruned(&["main;alloc<parse;brk"], "alloc", ""), ["main;parse 1"]);
        assert_eq!(pruned(&["main;vec<alloc<parse"], "alloc", ""), ["main;parse 1"]);
    }

    #[test]
    fn argument_lists_are_not_part_of_a_name() {
        assert_eq!(simplified("operator new(unsigned long)"), "operator new");
        assert_eq!(simplified("(anonymous namespace)::grow(int)"), "(anonymous namespace)::grow");
        assert_eq!(simplified("Cmp::operator()(int) const"), "Cmp::operator()");
        assert_eq!(simplified(".main"), "main");
        assert_eq!(simplified("größe(int)"), "größe");
    }

    #[test]
    fn a_pattern_made_to_exhaust_memory_is_refused() {
        let mut proto = fixture::stacks(&[("main", 1)]).into_proto();
        proto.drop_frames = i64::try_from(proto.string_table.len()).unwrap();
        proto.string_table.push("((((a{100}){100}){100}){100})".to_owned());
        let mut profile = CheckedProfile::new(proto).unwrap();
        let error = drop_frames(&mut profile).unwrap_err();
        assert_eq!(error.to_string(), "profile's drop_frames is not a usable regular expression");
    }
}
