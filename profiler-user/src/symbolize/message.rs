//! What heaptap and the process that reads debug information for it say to each other.
//!
//! Each message is a Protocol Buffers message behind its length: 32 bits, the lowest first.

use std::io::{self, Read, Write};

use prost::Message;

/// What to look up.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Addresses, as the file states them.
    #[prost(fixed64, repeated, tag = "1")]
    pub addresses: Vec<u64>,
}

/// What was found.
#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    /// An answer to each address, in their order; none where there is an error.
    #[prost(message, repeated, tag = "1")]
    pub answers: Vec<Answer>,
    /// Why there are no answers; empty where there are.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// What was found at an address.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// The functions there, innermost inlined first.
    #[prost(message, repeated, tag = "1")]
    pub functions: Vec<Function>,
    /// The source file, which may be known without the function.
    #[prost(string, tag = "2")]
    pub file: String,
    /// The line in it; 0 where that is not known.
    #[prost(uint32, tag = "3")]
    pub line: u32,
}

/// A function.
#[derive(Clone, PartialEq, Message)]
pub struct Function {
    /// Its name, as the linker knows it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its source file; empty where that is not known.
    #[prost(string, tag = "2")]
    pub file: String,
    /// The line in it; 0 where that is not known.
    #[prost(uint32, tag = "3")]
    pub line: u32,
}

/// A hundred thousand addresses, each with dozens of inlined functions, come to less.
const LIMIT_BYTES: u32 = 256 << 20;

/// Writes a message in one piece.
pub(super) fn write(mut to: impl Write, message: &impl Message) -> io::Result<()> {
    let length = u32::try_from(message.encoded_len()).ok().filter(|length| *length <= LIMIT_BYTES);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"))?;
    let mut bytes = length.to_le_bytes().to_vec();
    // A vector takes whatever is written.
    message.encode(&mut bytes).map_err(io::Error::other)?;
    to.write_all(&bytes)
}

/// Reads a message; `None` where the other side has nothing more to say.
pub(super) fn read<M: Message + Default>(mut from: impl Read) -> io::Result<Option<M>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(length);
    if length > LIMIT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    M::decode(bytes.as_slice()).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_one_by_one_up_to_the_end() {
        let first = Request { addresses: vec![1, u64::MAX] };
        let mut bytes = Vec::new();
        write(&mut bytes, &first).unwrap();
        write(&mut bytes, &Request::default()).unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(read(&mut rest).unwrap(), Some(first));
        assert_eq!(read(&mut rest).unwrap(), Some(Request::default()));
        assert_eq!(read::<Request>(&mut rest).unwrap(), None);
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Request { addresses: vec![1] }).unwrap();
        bytes.pop();
        assert!(read::<Request>(bytes.as_slice()).is_err());
        assert!(read::<Request>(&[0xff; 64][..]).is_err());
        assert!(read::<Request>(&[2, 0, 0, 0, 0xff, 0xff][..]).is_err());
    }
}
