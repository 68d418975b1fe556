//! Raw counts: addresses and numbers, no names.
/// What a source has counted, as addresses and numbers.
#[derive(Debug, Default)]
pub struct RawHeap {}
