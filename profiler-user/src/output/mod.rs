//! Where a profile goes: files, tables, pictures, HTTP.

pub mod file;

pub mod unit;

pub mod header;

pub mod table;

pub mod tree;

pub mod flamegraph;

pub mod metrics;

pub mod http;
