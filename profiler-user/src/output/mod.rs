//! Where a profile goes: files, tables, pictures, HTTP.
