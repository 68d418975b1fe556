//! Which functions of an allocator are probed, where, and how they are seen to come back.

use std::collections::{BTreeSet, HashMap};

use profiler_common::call::Shape;

use super::{
    cover::{self, Cover, Refusal},
    family::{self, Family},
    functions::{Function, Functions},
    returns::{self, Destination},
    site::{self, Site},
    text::Text,
};

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its names: aliases stand at the same place.
    pub names: Vec<String>,
    /// How it takes its arguments.
    pub shape: Shape,
    /// Where the probe goes.
    pub site: Site,
    /// How it is seen to come back.
    pub back: Back,
    /// Whether it may come back through another function that is probed, to which it jumps.
    pub jumps: bool,
    /// What a jump into a gate would cover of it.
    pub cover: Result<Cover, Refusal>,
    /// How far behind the probe the variable lies that the function goes by, in bytes; `None` for most, which go by none.
    pub state_distance: Option<i64>,
}

/// How a function is seen to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// Not at all: it gives nothing.
    Unseen,
    /// By a return probe, as it throws nothing.
    ReturnProbe,
    /// By probes on these `ret` instructions, offsets in the file, as it may throw.
    Rets(BTreeSet<u64>),
}

/// Functions that cannot be probed, with the reason.
pub(super) type Unhooked = Vec<(String, String)>;

/// The functions of a family that can be probed, and those that cannot. The places of the first are `taken`.
pub(super) fn find(
    family: &Family,
    functions: &Functions,
    text: &mut Text<'_, '_>,
    taken: &mut BTreeSet<u64>,
) -> (Vec<Hook>, Unhooked) {
    let mut found: Vec<(String, Shape, Place)> = Vec::new();
    let mut hooks: Vec<(u64, Hook)> = Vec::new();
    let mut unhooked = Vec::new();
    for (name, shape) in family.functions() {
        for function in chosen(functions, &name) {
            let place = match place(function, shape, functions, text) {
                Ok(place) => place,
                Err(reason) => {
                    unhooked.push((name.clone(), reason));
                    continue;
                }
            };
            if !taken.contains(&place.offset) {
                found.push((name.clone(), shape, place));
            }
        }
    }
    let places: HashMap<u64, (Shape, Place)> =
        found.iter().map(|(_, shape, place)| (place.offset, (*shape, place.clone()))).collect();
    for (name, shape, mut place) in found {
        // What does nothing but jump to another one of the same kind is that one by another name.
        for _ in 0..JUMPS_LIMIT {
            let next =
                place.leads_to.and_then(|offset| places.get(&offset)).filter(|(next, _)| *next == shape);
            let Some((_, next)) = next else { break };
            place = next.clone();
        }
        let Place { offset, site, .. } = place;
        match hooks.iter_mut().find(|(_, hook)| hook.site.offset == site.offset) {
            Some((_, hook)) if hook.names.contains(&name) => {}
            Some((_, hook)) if hook.shape == shape => hook.names.push(name),
            Some((_, hook)) => {
                unhooked.push((name, format!("shares its code with {}", hook.names.join(", "))));
            }
            None => {
                let hook = Hook {
                    names: vec![name],
                    shape,
                    site,
                    back: Back::Unseen,
                    jumps: false,
                    cover: cover(offset, shape, functions, text),
                    state_distance: None,
                };
                hooks.push((offset, hook));
            }
        }
    }
    taken.extend(hooks.iter().map(|(offset, _)| *offset));
    let entries: BTreeSet<u64> = hooks.iter().map(|(offset, _)| *offset).collect();
    for (offset, hook) in &mut hooks {
        if hook.shape.convention().is_none() {
            continue;
        }
        hook.back = Back::ReturnProbe;
        let found = rets(*offset, functions, text, &entries);
        hook.jumps = found.leads_to_probed || !found.unfollowed.is_empty();
        if hook.names.iter().any(|name| family::may_throw(name)) {
            if !found.unfollowed.is_empty() {
                let reason = "is not always seen to come back: it jumps to code whose end is not known";
                unhooked.push((hook.names.join(", "), reason.to_owned()));
            }
            hook.back = Back::Rets(found.offsets);
        }
    }
    (hooks.into_iter().map(|(_, hook)| hook).collect(), unhooked)
}

/// Which of the functions that have a name are meant: those for all to use, else the only one.
fn chosen<'found>(functions: &'found Functions, name: &str) -> Vec<&'found Function> {
    let public: Vec<_> = functions.get(name).filter(|function| !function.is_local).collect();
    if !public.is_empty() {
        return public;
    }
    let mut local: Vec<_> = functions.get(name).collect();
    local.dedup_by_key(|function| function.address);
    if local.len() == 1 { local } else { Vec::new() }
}

/// A function in the file.
#[derive(Clone)]
struct Place {
    /// Where it begins.
    offset: u64,
    /// Where the probe goes.
    site: Site,
    /// Where it jumps, if it does nothing else.
    leads_to: Option<u64>,
}

/// Names for the same function, each of which jumps to the next, but not any number of them.
const JUMPS_LIMIT: usize = 4;

/// Where the function is in the file, and where in it the probe goes; or why there is none.
///
/// A symbol may say anything, and a probe in the middle of an instruction would break the program.
fn place(
    function: &Function,
    shape: Shape,
    functions: &Functions,
    text: &mut Text<'_, '_>,
) -> Result<Place, String> {
    let address = function.address;
    if function.is_chosen_at_load {
        return Err("is one of several that the loader chose from (IFUNC)".to_owned());
    }
    if let Some(holder) = functions.holder(address) {
        return Err(format!("points into {holder}"));
    }
    let described = text.described(address);
    if described.is_some_and(|described| described.start != address) {
        return Err("points into the middle of a function".to_owned());
    }
    let place = functions.offset_of(address).and_then(|offset| {
        let (code, targets) = text.section(offset)?;
        let site = site::choose(code, offset, targets)?;
        let leads_to = site::first_jump(code, offset, shape).and_then(|to| text.behind_stub(to, functions));
        Some(Place { offset, site, leads_to })
    });
    place.ok_or_else(|| "has no code where its symbol points".to_owned())
}

/// What a jump into a gate would cover of the function at an offset.
fn cover(
    offset: u64,
    shape: Shape,
    functions: &Functions,
    text: &mut Text<'_, '_>,
) -> Result<Cover, Refusal> {
    /// Larger functions are not looked through for jumps to their own beginning.
    const MOST_BYTES: u64 = 1 << 20;
    let function = text.part(offset, MOST_BYTES, functions).map(|part| part.range);
    let (code, targets) = text.section(offset).ok_or(Refusal::NoCode)?;
    let cover = cover::find(code, offset, shape, function, targets)?;
    // Sizes may say anything.
    let address = functions.address_at(offset).ok_or(Refusal::NoCode)?;
    let bytes = cover.end() - offset;
    let part = text.described(address);
    let padding = address.saturating_add(bytes.saturating_sub(cover.padding_bytes as u64));
    let is_other = |at: u64| {
        let described = text.described(at);
        described != part && (at < padding || described.is_some())
    };
    if functions.has_symbol_within(address, bytes) || (address..address.saturating_add(bytes)).any(is_other) {
        return Err(Refusal::EnteredInside);
    }
    Ok(cover)
}

/// Where a function comes back, by what is known of where functions end.
fn rets(
    offset: u64,
    functions: &Functions,
    text: &mut Text<'_, '_>,
    entries: &BTreeSet<u64>,
) -> returns::Returns {
    returns::find(offset, |to, most_bytes| {
        let to = if to == offset { to } else { text.behind_stub(to, functions)? };
        if to != offset && entries.contains(&to) {
            return Some(Destination::Probed);
        }
        text.part(to, most_bytes, functions).map(Destination::Part)
    })
}
