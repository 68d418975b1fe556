//! Who is profiled: the process, what it has mapped, which allocators are in there and where to probe them.

pub mod process;

pub mod cpu_time;

pub mod identity;

pub mod loader;

pub mod launch;

pub(crate) mod version;

pub(crate) mod mapping;

pub mod maps;

pub mod memory;

pub(crate) mod words;

mod thread_stacks;

pub mod container;

pub mod layout;

pub mod root;

pub(crate) mod bounded;

pub(crate) mod segments;

#[cfg(test)]
pub(crate) mod hostile;

pub mod elf;

pub(crate) mod image;

pub(crate) mod mini;

pub mod given;

pub(crate) mod debug_file;

pub mod cfi;

mod go_entry;

mod hotspot;

pub mod rows;

pub mod separate;

pub(crate) mod specimen;

pub mod functions;

pub mod site;

pub mod cover;

pub mod kept;

#[cfg(test)]
mod site_model;

#[cfg(test)]
mod site_listing;

pub mod returns;

pub mod calls;

mod text;

pub mod family;

pub mod hooks;

pub(crate) mod scheduling;

pub mod stopped;

pub mod allocator;

pub mod prerequisites;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

pub use process::Process;
