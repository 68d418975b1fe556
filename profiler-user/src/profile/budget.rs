//! What a profile will take in memory, found out before it is decoded.
//!
//! An empty message is two bytes in a file and up to a hundred in memory, so that a limit on the file
//! alone does not bound what decoding takes.

use std::mem::size_of;

use super::proto;

/// What decoding would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// This many bytes, up to the factor of two by which a `Vec` may grow ahead.
    Bytes(u64),
    /// Not known: the bytes have groups, which no profile has had, and which hide what they hold.
    Groups,
}

/// The messages that hold others or lists of numbers.
#[derive(Debug, Clone, Copy)]
enum Message {
    Profile,
    Sample,
    Location,
    /// Holds only numbers and was counted with the message around it.
    Flat,
}

/// Returns what decoding `bytes` as a profile takes.
///
/// Malformed bytes cost what stands before the fault: the decoder stops there too.
pub(super) fn cost_bytes(bytes: &[u8]) -> Cost {
    let mut cost = 0_u64;
    match add_message(bytes, Message::Profile, &mut cost) {
        Some(()) => Cost::Bytes(cost),
        None => Cost::Groups,
    }
}

/// Adds what a message's fields take; `None` at a group.
fn add_message(mut bytes: &[u8], message: Message, cost: &mut u64) -> Option<()> {
    while let Ok(key) = prost::decode_length_delimiter(&mut bytes) {
        let (field, wire_type) = (key >> 3, key & 7);
        let rest = match wire_type {
            0 => {
                if prost::decode_length_delimiter(&mut bytes).is_err() {
                    return Some(());
                }
                *cost = cost.saturating_add(NUMBER_BYTES);
                Some(bytes)
            }
            1 => bytes.get(8..),
            2 => {
                let Ok(length) = prost::decode_length_delimiter(&mut bytes) else { return Some(()) };
                // A message that is cut off is decoded as far as it goes.
                let body = bytes.get(..length).unwrap_or(bytes);
                add_field(body, message, field, cost)?;
                bytes.get(length..)
            }
            3 | 4 => return None,
            5 => bytes.get(4..),
            _ => return Some(()),
        };
        let Some(rest) = rest else { return Some(()) };
        bytes = rest;
    }
    Some(())
}

const NUMBER_BYTES: u64 = 8;

fn add_field(body: &[u8], message: Message, field: usize, cost: &mut u64) -> Option<()> {
    let (entry, inner) = match (message, field) {
        (Message::Profile, 2) => (size_of::<proto::Sample>(), Message::Sample),
        (Message::Profile, 4) => (size_of::<proto::Location>(), Message::Location),
        (Message::Profile, 6) => (size_of::<String>().saturating_add(body.len()), Message::Flat),
        (Message::Profile, 13) | (Message::Sample, 1 | 2) => {
            // The last byte of each packed number has its high bit clear.
            let numbers = body.iter().filter(|byte| **byte < 0x80).count();
            *cost = cost.saturating_add(NUMBER_BYTES.saturating_mul(u64::try_from(numbers).ok()?));
            return Some(());
        }
        (Message::Profile, _) => (size_of::<proto::Mapping>(), Message::Flat),
        (Message::Sample, 3) => (size_of::<proto::Label>(), Message::Flat),
        (Message::Location, 4) => (size_of::<proto::Line>(), Message::Flat),
        _ => return Some(()),
    };
    *cost = cost.saturating_add(u64::try_from(entry).ok()?);
    match inner {
        Message::Flat => Some(()),
        Message::Profile | Message::Sample | Message::Location => add_message(body, inner, cost),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::profile::fixture;

    #[test]
    fn empty_messages_cost_what_they_become() {
        let bytes = [0x12, 0].repeat(1000);
        assert_eq!(cost_bytes(&bytes), Cost::Bytes(1000 * size_of::<proto::Sample>() as u64));
    }

    #[test]
    fn packed_numbers_cost_eight_bytes_each() {
        // A sample of six bytes: field 2, packed, three numbers of which one takes two bytes.
        let bytes = [0x12, 6, 0x12, 4, 1, 0x80, 1, 2];
        assert_eq!(cost_bytes(&bytes), Cost::Bytes(size_of::<proto::Sample>() as u64 + 24));
    }

    #[test]
    fn groups_are_not_a_profile() {
        assert_eq!(cost_bytes(&[0x0b, 0x0c]), Cost::Groups);
    }

    #[test]
    fn a_real_profile_costs_a_small_multiple_of_its_size() {
        let bytes = fixture::server().encode_to_vec();
        let Cost::Bytes(cost) = cost_bytes(&bytes) else { panic!("groups in {bytes:?}") };
        assert!(cost < 10 * bytes.len() as u64, "{cost} bytes for {}", bytes.len());
    }
}
