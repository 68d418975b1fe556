//! Counting with uprobes on the allocator's functions.

mod object;

mod kernel;

mod attach;

mod stacks;

mod records;

pub mod capture;

mod copy;
mod taught;

mod pace;

mod learn;

mod drain;

mod recording;

pub use kernel::{Capacities, KernelError};

pub use attach::AttachError;

pub use drain::Notice;

pub use recording::{RecordError, Recording, Vitals};
