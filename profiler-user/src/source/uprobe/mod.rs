//! Counting with uprobes on the allocator's functions.

mod object;

mod capacity;

mod batch;

mod sampling;

mod bpf_call;

mod run_counts;

mod own_child;

mod seen_through;

mod multi;

mod targets;

mod teaching;

mod loading;

mod kernel;

mod tracefs;

mod sites;

mod letting_go;

mod attach;

mod inherited;

mod intact;

mod own_code;

mod mappings;

mod stacks;

mod records;

pub mod capture;

mod copy;

mod taught;

mod pace;

mod learn;

mod watched;

mod urgency;

mod drain;

mod survey;

mod gates;

mod approach;

mod recording;

mod totals;

mod calibrate;

mod meter;

mod follow;

mod children;

mod left_behind;

mod gating;

mod succession;

pub use sampling::{DEFAULT_INTERVAL_BYTES, LONGEST_INTERVAL_BYTES};

pub use capacity::{Capacities, Subject};

pub use kernel::KernelError;

pub use attach::AttachError;

pub use inherited::InheritedError;

pub use tracefs::TracefsError;

pub use gates::GateWish;

pub use watched::{Forked, Notice};

pub use recording::{Options, RecordError, Recording, Vitals};

pub use follow::Replaced;
