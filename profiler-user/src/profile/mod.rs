//! Meaning: the pprof profile, read, built, compared and viewed.
