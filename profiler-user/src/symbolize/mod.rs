//! Names: addresses become functions, files and lines.
