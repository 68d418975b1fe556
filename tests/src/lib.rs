//! Running guests under heaptap and comparing its profiles with their ledgers.
//!
//! A guest ([`guest`]) is a small program that counts its own allocations. A test starts one, attaches
//! heaptap ([`heaptap`]), has the guest allocate, reads the profile ([`profile`]) and compares it with what
//! the guest says ([`ledger`]). heaptap needs root, and everything here panics: it is called from tests only.

pub mod allocators;

pub mod compile;

mod cache;

pub mod guest;

pub mod process;

pub mod gate;

pub mod heaptap;

pub mod http;

pub mod text;

pub mod footprint;

pub mod profile;

pub mod kernel;

pub mod belongings;

pub mod gating;

pub mod itself;

pub mod killed;

pub mod ledger;

pub mod estimate;

pub mod chains;

pub mod pprof;

pub mod chromium;

pub mod debian;

pub mod load;

pub mod mariadb;

pub mod nginx;

pub mod postgres;

pub mod redis;

pub mod sql;

pub mod sqlite;

pub mod service;

pub mod oracle;
