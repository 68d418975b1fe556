//! What a guest says that its stacks hold, and the comparison with a profile.

use std::collections::BTreeMap;

use crate::profile::{Profile, Stack};

/// The functions between a site and its thread's first one, leaf first, by site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains(BTreeMap<String, Vec<String>>);

impl Chains {
    /// Reads `chain SITE CALLER… ENTRY`, and skips other lines.
    #[track_caller]
    pub fn parse<L: AsRef<str>>(lines: &[L]) -> Self {
        let chains = lines.iter().filter_map(|line| {
            let chain: Vec<String> =
                line.as_ref().strip_prefix("chain ")?.split(' ').map(str::to_owned).collect();
            Some((chain[0].clone(), chain))
        });
        Self(chains.collect())
    }

    /// Whether each site has a stack that holds its chain.
    pub fn hold_somewhere(&self, profile: &Profile) -> bool {
        self.0.values().all(|chain| {
            profile.stacks.iter().any(|stack| {
                let functions: Vec<&str> = stack.functions.iter().map(|name| last_segment(name)).collect();
                holds(&functions, chain)
            })
        })
    }

    /// Panics unless each site has a stack and all its stacks hold its chain, and every other stack one of `entries`.
    ///
    /// A stack is of the first site from its leaf. One without a site is what the C library allocates for itself.
    #[track_caller]
    pub fn assert_hold(&self, profile: &Profile, entries: &[&str]) {
        let mut unseen: Vec<&str> = self.0.keys().map(String::as_str).collect();
        for stack in &profile.stacks {
            let functions: Vec<&str> = stack.functions.iter().map(|name| last_segment(name)).collect();
            match functions.iter().find_map(|&function| self.0.get_key_value(function)) {
                Some((site, chain)) => {
                    unseen.retain(|other| other != site);
                    assert!(holds(&functions, chain), "no {chain:?} in\n{}", listed(stack, profile));
                }
                None => assert!(
                    functions.iter().any(|function| entries.contains(function)),
                    "none of {entries:?} in\n{}",
                    listed(stack, profile)
                ),
            }
        }
        assert!(unseen.is_empty(), "no stack of {unseen:?}: {:#?}", profile.comments);
    }
}

/// Whether functions include those of a chain in its order, perhaps with others between them.
fn holds(functions: &[&str], chain: &[String]) -> bool {
    let mut rest = functions.iter();
    chain.iter().all(|wanted| rest.any(|function| function == wanted))
}

/// `fill` of `(anonymous namespace)::fill(std::vector<int>&)`, `name` of `circle::name(int) const`, and `next` of
/// `<a::Iter<u8> as b::Next>::next`.
fn last_segment(name: &str) -> &str {
    let name = name.rsplit_once("(anonymous namespace)::").map_or(name, |(_, rest)| rest);
    let name = behind_type(name);
    let end = name.find(['(', '<']).unwrap_or(name.len());
    name[..end].trim_end_matches("::").rsplit("::").next().unwrap_or(name)
}

/// What follows the type in angle brackets with which a Rust name may begin.
fn behind_type(name: &str) -> &str {
    let mut depth = 0;
    for (at, letter) in name.char_indices() {
        match letter {
            '<' => depth += 1,
            '>' if !name[..at].ends_with('-') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return if at == 0 { name } else { name[at + 1..].trim_start_matches("::") };
        }
    }
    name
}

fn listed(stack: &Stack, profile: &Profile) -> String {
    format!("    {}\n{:#?}", stack.functions.join("\n    "), profile.comments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(functions: &[&str]) -> Profile {
        let functions = functions.iter().map(|&function| function.to_owned()).collect();
        let stack = Stack { functions, ..Stack::default() };
        Profile { stacks: vec![stack], ..Profile::default() }
    }

    #[test]
    fn functions_between_those_of_a_chain_do_no_harm() {
        let chains = Chains::parse(&["chain site caller main"]);
        chains.assert_hold(&profile(&["malloc", "site", "caller", "serve", "main", "_start"]), &[]);
    }

    #[test]
    #[should_panic(expected = "no [\"site\", \"caller\", \"main\"] in")]
    fn the_order_counts() {
        Chains::parse(&["chain site caller main"]).assert_hold(&profile(&["site", "main", "caller"]), &[]);
    }

    #[test]
    #[should_panic(expected = "none of [\"main\"] in")]
    fn a_stack_without_a_site_has_an_entry() {
        Chains::parse(&["chain site main"]).assert_hold(&profile(&["malloc", "dlopen"]), &["main"]);
    }

    #[test]
    #[should_panic(expected = "no stack of [\"site\"]")]
    fn a_site_without_a_stack_is_missed() {
        Chains::parse(&["chain site main"]).assert_hold(&profile(&["main"]), &["main"]);
    }

    #[test]
    fn a_name_is_known_by_its_last_segment() {
        for (name, segment) in [
            ("main", "main"),
            ("release::work", "work"),
            ("(anonymous namespace)::circle::name(int) const", "name"),
            ("fill(std::vector<int, std::allocator<int> >&)", "fill"),
            ("(anonymous namespace)::insert(std::vector<int>&&, int)", "insert"),
            ("std::thread::lifecycle::spawn<release::work>", "spawn"),
            ("<std::sys::thread::unix::Thread>::new::thread_start", "thread_start"),
            ("<alloc::boxed::Box<dyn Fn() -> u8> as a::Call<()>>::call", "call"),
            ("<alloc::vec::Vec<u8>>::push::<u8>", "push"),
        ] {
            assert_eq!(last_segment(name), segment);
        }
    }
}
