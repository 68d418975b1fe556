//! What a guest says that it allocated, and the comparison with a profile.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::ops::{AddAssign, Sub};

use crate::profile::Profile;

/// The four values of a heap profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// Blocks allocated.
    pub alloc_objects: i64,
    /// Bytes allocated.
    pub alloc_bytes: i64,
    /// Blocks not freed.
    pub inuse_objects: i64,
    /// Bytes not freed.
    pub inuse_bytes: i64,
}

impl Values {
    /// The values of a sample, in the order of a heap profile's sample types.
    #[track_caller]
    pub fn from_sample(values: &[i64]) -> Self {
        match *values {
            [alloc_objects, alloc_bytes, inuse_objects, inuse_bytes] => {
                Self { alloc_objects, alloc_bytes, inuse_objects, inuse_bytes }
            }
            _ => panic!("four values to a sample, not {values:?}"),
        }
    }
}

impl Values {
    /// The values in the order of a heap profile's sample types.
    pub const fn to_array(&self) -> [i64; 4] {
        let Self { alloc_objects, alloc_bytes, inuse_objects, inuse_bytes } = *self;
        [alloc_objects, alloc_bytes, inuse_objects, inuse_bytes]
    }
}

impl AddAssign for Values {
    fn add_assign(&mut self, other: Self) {
        self.alloc_objects += other.alloc_objects;
        self.alloc_bytes += other.alloc_bytes;
        self.inuse_objects += other.inuse_objects;
        self.inuse_bytes += other.inuse_bytes;
    }
}

impl Sub for Values {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            alloc_objects: self.alloc_objects - other.alloc_objects,
            alloc_bytes: self.alloc_bytes - other.alloc_bytes,
            inuse_objects: self.inuse_objects - other.inuse_objects,
            inuse_bytes: self.inuse_bytes - other.inuse_bytes,
        }
    }
}

impl Sum for Values {
    fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
        let mut sum = Self::default();
        values.for_each(|value| sum += value);
        sum
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { alloc_objects, alloc_bytes, inuse_objects, inuse_bytes } = self;
        write!(f, "{alloc_objects:>10} {alloc_bytes:>12} {inuse_objects:>10} {inuse_bytes:>12}")
    }
}

/// Values by allocating function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger(BTreeMap<String, Values>);

impl Ledger {
    /// Reads `ledger FUNCTION ALLOC_OBJECTS ALLOC_BYTES INUSE_OBJECTS INUSE_BYTES`, and skips other lines.
    #[track_caller]
    pub fn parse<L: AsRef<str>>(lines: &[L]) -> Self {
        let sites = lines.iter().filter_map(|line| {
            let (function, numbers) = line.as_ref().strip_prefix("ledger ")?.split_once(' ')?;
            let numbers: Vec<i64> =
                numbers.split(' ').map(|number| number.parse().expect("a ledger has numbers")).collect();
            Some((function.to_owned(), Values::from_sample(&numbers)))
        });
        let ledger = Self(sites.collect());
        assert!(!ledger.0.is_empty(), "a ledger has lines");
        ledger
    }

    /// The values of a function; panics where the guest has no such site.
    #[track_caller]
    pub fn site(&self, function: &str) -> Values {
        *self.0.get(function).unwrap_or_else(|| panic!("no site `{function}` in\n{self}"))
    }

    /// The functions and their values.
    pub fn sites(&self) -> impl Iterator<Item = (&str, Values)> {
        self.0.iter().map(|(function, &values)| (function.as_str(), values))
    }

    /// The sum over all functions.
    pub fn total(&self) -> Values {
        self.0.values().copied().sum()
    }

    /// What has come since an earlier ledger of the same guest.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(
            self.sites()
                .map(|(function, values)| (function.to_owned(), values - earlier.site(function)))
                .collect(),
        )
    }

    /// What a profile says of this ledger's functions. A stack counts for the first of them from its leaf.
    pub fn of_profile(&self, profile: &Profile) -> Self {
        let mut sites: BTreeMap<_, _> = self.0.keys().map(|name| (name.clone(), Values::default())).collect();
        for stack in &profile.stacks {
            if let Some(function) = stack.functions.iter().find(|function| self.0.contains_key(*function)) {
                *sites.get_mut(function).expect("every function of the ledger is there") += stack.values;
            }
        }
        Self(sites)
    }

    /// Panics unless a profile agrees in all four values of every function but one.
    #[track_caller]
    pub fn assert_equals_but(&self, profile: &Profile, function: &str) {
        self.without(function).assert_equals(profile);
    }

    /// The same without a function.
    pub fn without(&self, function: &str) -> Self {
        let others = self.0.iter().filter(|(name, _)| *name != function);
        Self(others.map(|(name, values)| (name.clone(), *values)).collect())
    }

    /// Panics unless a profile agrees in all four values of every function.
    #[track_caller]
    pub fn assert_equals(&self, profile: &Profile) {
        let seen = self.of_profile(profile);
        if *self == seen {
            return;
        }
        let differing: Vec<&str> = self
            .0
            .iter()
            .filter(|(name, values)| seen.0[*name] != **values)
            .map(|(name, _)| name.as_str())
            .collect();
        panic!(
            "the profile differs in {differing:?}\n\nthe guest's ledger:\n{self}\nthe profile:\n{seen}\n\
             comments: {:#?}",
            profile.comments
        );
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["function", "alloc_obj", "alloc_bytes", "inuse_obj", "inuse_bytes"];
        writeln!(f, "{:<28} {:>10} {:>12} {:>10} {:>12}", head[0], head[1], head[2], head[3], head[4])?;
        for (function, values) in &self.0 {
            writeln!(f, "{function:<28} {values}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Stack;

    fn stack(functions: &[&str], values: [i64; 4]) -> Stack {
        Stack {
            functions: functions.iter().map(|&function| function.to_owned()).collect(),
            depth: functions.len(),
            values: Values::from_sample(&values),
            ..Stack::default()
        }
    }

    fn profile(stacks: Vec<Stack>) -> Profile {
        Profile { stacks, ..Profile::default() }
    }

    #[test]
    fn a_stack_counts_for_the_site_nearest_its_leaf_and_no_other() {
        let ledger = Ledger::parse(&["ledger a 2 20 1 10", "ledger b 1 5 1 5"]);
        ledger.assert_equals(&profile(vec![
            stack(&["malloc", "a", "b", "main"], [1, 10, 1, 10]),
            stack(&["a", "main"], [1, 10, 0, 0]),
            stack(&["b", "main"], [1, 5, 1, 5]),
            stack(&["other"], [7, 7, 7, 7]),
        ]));
    }

    #[test]
    #[should_panic(expected = "differs in [\"b\"]")]
    fn a_function_that_differs_is_named() {
        let ledger = Ledger::parse(&["ledger a 1 10 1 10", "ledger b 1 5 1 5"]);
        ledger.assert_equals(&profile(vec![stack(&["a"], [1, 10, 1, 10]), stack(&["b"], [1, 5, 1, 6])]));
    }
}
