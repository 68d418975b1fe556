//! Calls of bpf(2) that aya does not make.

use std::{
    ffi::CStr,
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::{
    Function,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_info, bpf_prog_type},
};

/// How often a program has run while the kernel counted, and for how many nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) count: u64,
    pub(super) time_ns: u64,
}

/// A program that is to be loaded.
pub(super) struct Code<'object> {
    /// Its name, of which the kernel keeps 15 bytes.
    pub(super) name: &'static str,
    /// Relocated.
    pub(super) function: &'object Function,
    pub(super) license: &'object CStr,
    /// The types that the function's information is about.
    pub(super) btf: BorrowedFd<'object>,
    /// How it will be attached, a `bpf_attach_type`, which the kernel wants to know before.
    pub(super) attach_type: u32,
}

/// Places in a file at which a program is to run.
pub(super) struct Places<'caller> {
    pub(super) path: &'caller CStr,
    /// Offsets in the file, in bytes.
    pub(super) offsets: &'caller [u64],
    /// What the program is told at each; as many as there are offsets.
    pub(super) cookies: &'caller [u64],
    /// `BPF_F_UPROBE_MULTI_RETURN` where it is the returns from there.
    pub(super) flags: u32,
    /// The process that it is to run for.
    pub(super) pid: u32,
}

/// Attributes of a call of which none is set.
const fn no_attributes() -> bpf_attr {
    // SAFETY: a union of numbers, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads as much of the union as it is told, and what that points to is there, as the callers see to.
    let returned = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<bpf_attr>())
    };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// A file descriptor that the kernel has just made, or its error.
pub(super) fn descriptor(returned: i64) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: the kernel has just made it, for us alone.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A number as the kernel takes it, which refuses those that are too large.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Loads a program of the type of uprobes. What the kernel has to say of it goes into `log`, unless that is empty.
pub(super) fn load_program(code: &Code<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let Code { name, function, license, btf, attach_type } = code;
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    let mut attributes = no_attributes();
    // SAFETY: all of the union is zero, of which any bits are a valid struct.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    for (to, from) in load.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = *attach_type;
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = count(function.instructions.len());
    load.license = license.as_ptr() as u64;
    load.prog_btf_fd = btf.as_raw_fd().cast_unsigned();
    load.func_info = functions.as_ptr() as u64;
    load.func_info_cnt = count(function.func_info.func_info.len());
    load.func_info_rec_size = count(function.func_info_rec_size);
    load.line_info = lines.as_ptr() as u64;
    load.line_info_cnt = count(function.line_info.line_info.len());
    load.line_info_rec_size = count(function.line_info_rec_size);
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = count(log.len());
    }
    descriptor(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes)?)
}

/// Has a program run at places in a file until what is given is closed.
pub(super) fn link_multi(
    program: BorrowedFd<'_>,
    attach_type: u32,
    places: &Places<'_>,
) -> io::Result<OwnedFd> {
    let mut attributes = no_attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    attributes.link_create.attach_type = attach_type;
    // SAFETY: all of the union is zero, of which any bits are a valid struct.
    let link = unsafe { &mut attributes.link_create };
    // SAFETY: the same of this part of it.
    let multi = unsafe { &mut link.__bindgen_anon_3.uprobe_multi };
    multi.path = places.path.as_ptr() as u64;
    multi.offsets = places.offsets.as_ptr() as u64;
    multi.cookies = places.cookies.as_ptr() as u64;
    multi.cnt = count(places.offsets.len().min(places.cookies.len()));
    multi.flags = places.flags;
    multi.pid = places.pid;
    descriptor(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes)?)
}

/// Has a program run at what a perf event is of, with what the program is told, until what is given is closed.
pub(super) fn link_event(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    let mut attributes = no_attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    attributes.link_create.__bindgen_anon_2.target_fd = event.as_raw_fd().cast_unsigned();
    attributes.link_create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
    attributes.link_create.__bindgen_anon_3.perf_event.bpf_cookie = cookie;
    descriptor(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes)?)
}

/// Makes a map of programs with one place, which is empty.
pub(super) fn program_array() -> io::Result<OwnedFd> {
    let mut attributes = no_attributes();
    // SAFETY: all of the union is zero, of which any bits are a valid struct.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32;
    (create.key_size, create.value_size, create.max_entries) = (4, 4, 1);
    descriptor(bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes)?)
}

/// A program's types, by the number that the kernel has for them.
pub(super) fn btf(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    descriptor(bpf(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attributes)?)
}

/// How often a program has run while the kernel counted, and for how long.
pub(super) fn runs(program: BorrowedFd<'_>) -> io::Result<Runs> {
    // SAFETY: a struct of numbers, for which zeros are valid.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = no_attributes();
    attributes.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    attributes.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(Runs { count: info.run_cnt, time_ns: info.run_time_ns })
}
