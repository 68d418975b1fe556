//! The kernel programs, compiled: built by `cargo xtask ebpf`, committed, part of this binary.

/// The object, an ELF file for the BPF virtual machine.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/heaptap.bpf.o");
