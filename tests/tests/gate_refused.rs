//! Processes that are not as others are: what is not proved safe is not gated, and nothing that lies is believed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use heaptap_tests::belongings::Belongings;
use heaptap_tests::compile;
use heaptap_tests::gate;
use heaptap_tests::gating::plans;
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{Outcome, Recording, Serving, path_str, run};
use heaptap_tests::text::text_left_changed;
use profiler_user::gate::layout::Layout;
use profiler_user::gated::{Description, Jump};
use profiler_user::target::cover::JUMP_BYTES;
use rustix::process::Signal;

/// Begins to record what is to be refused.
fn refused(pid: u32, options: &[&str]) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("heap.pb.gz");
    let (pid, output) = (pid.to_string(), path_str(&output));
    let arguments = ["record", "--sample", "4KiB", "--duration", "10s", "--pid", &pid, "--output", output];
    run(arguments.iter().chain(options))
}

/// Records a guest while it allocates.
#[track_caller]
fn recorded(guest: &mut Guest, pid: u32, option: &str) -> Outcome {
    let recording = Recording::attach_with(pid, &[option, "--sample", "4KiB"]);
    guest.command("run");
    let outcome = recording.finish().outcome;
    outcome.assert_success();
    outcome
}

/// With `--gate` a recording is made by ordinary probes, and says why; with `--gate=require` there is none. Nothing is left behind.
#[track_caller]
fn assert_not_gated(guest: &mut Guest, pid: u32, reason: &str) {
    let before = Belongings::of(pid);
    refused(pid, &["--gate=require"]).assert_refused(reason);
    Belongings::of(pid).assert_same(&before, "after a refusal");
    let recorded = recorded(guest, pid, "--gate");
    assert!(recorded.stderr.contains(reason), "{recorded:#?}");
    Belongings::of(pid).assert_same(&before, "after a recording by ordinary probes");
    guest.command("run");
}

fn memory(pid: u32) -> fs::File {
    fs::File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("the guest runs")
}

/// Where what is covered of a function begins in the process, and what is there.
fn covered(pid: u32, name: &str) -> (u64, Vec<u8>) {
    let plans = plans(pid, 1 << 20);
    let mut functions = plans.iter().flat_map(|plan| plan.names.iter().zip(&plan.functions));
    let (_, function) = functions
        .find(|(names, _)| names.split(", ").any(|is| is == name))
        .unwrap_or_else(|| panic!("there is no {name}"));
    (function.address, function.cover.bytes.clone())
}

#[test]
fn a_function_that_another_tool_has_changed_is_left_alone() {
    let mut guest = Guest::start("unusual");
    let pid = guest.pid();
    let (address, bytes) = covered(pid, "reallocarray");
    let write = |bytes: &[u8]| memory(pid).write_all_at(bytes, address).expect("it can be written");
    // A breakpoint, with which probes get along.
    write(&[0xcc]);
    refused(pid, &["--gate=require"]).assert_refused("another tool has changed it");
    let said = recorded(&mut guest, pid, "--gate").stderr;
    assert!(said.contains("another tool has changed it"), "{said}");
    // The kernel has put back what the file has.
    let jump = Jump::to(address, *bytes.first_chunk().expect("a jump has room"), address + 4096);
    write(&jump.expect("it is near").jump);
    let before = Belongings::of(pid);
    for options in [&["--gate=require"][..], &["--gate"], &[]] {
        refused(pid, options).assert_refused("another tool has changed it");
        Belongings::of(pid).assert_same(&before, "after a refusal");
    }
    write(&bytes);
    recorded(&mut guest, pid, "--gate=require");
    guest.command("run");
    guest.exit();
}

/// Where more room is needed, and somebody has put a breakpoint on one of the jumps: all are led back to where they led before.
#[test]
fn a_gate_whose_jump_somebody_has_changed_keeps_its_place() {
    let mut guest = Guest::start("live");
    let pid = guest.pid();
    let (address, _) = covered(pid, "reallocarray");
    let mut serving = Serving::start_with(pid, &["--gate=require", "--sample", "8KiB"]);
    let mut jump = [0];
    memory(pid).read_exact_at(&mut jump, address).expect("it can be read");
    memory(pid).write_all_at(&[0xcc], address).expect("it can be written");
    guest.command("keep 100000 1000 1000");
    let said = serving.stderr_line("heaptap: the gate's table stays too small");
    assert!(said.contains("another tool has changed it"), "{said}");
    memory(pid).write_all_at(&jump, address).expect("it can be written");
    assert_eq!(gate::mapped(pid), 2, "its code and its data");
    let profile = serving.fetch();
    assert!(profile.total().inuse_objects > 90_000, "{:#?}", profile.comments);
    guest.command("drop");
    assert_eq!(serving.fetch().total().inuse_objects, 0);
    serving.finish(Signal::INT);
    assert_eq!(gate::mapped(pid), 0);
    assert_eq!(text_left_changed(pid, || drop(guest.command("run"))), Vec::<String>::new());
    guest.exit();
}

#[test]
fn code_that_is_in_no_file_any_more_is_not_gated() {
    let mut guest = Guest::start("unusual");
    guest.command("remap");
    refused(guest.pid(), &["--gate=require"]).assert_refused("no allocator that heaptap knows");
    guest.command("run");
    guest.exit();
}

#[test]
fn code_that_is_moved_to_memory_while_it_is_gated_is_put_back() {
    let mut guest = Guest::start("unusual");
    let (address, bytes) = covered(guest.pid(), "malloc");
    let recording = Recording::attach_with(guest.pid(), &["--gate=require", "--sample", "64KiB"]);
    guest.command("run");
    guest.command("remap");
    guest.command("run");
    recording.finish().outcome.assert_success();
    let mut is = vec![0; bytes.len()];
    memory(guest.pid()).read_exact_at(&mut is, address).expect("it can be read");
    assert_eq!(is, bytes);
    let maps = fs::read_to_string(format!("/proc/{}/maps", guest.pid())).expect("the guest runs");
    assert!(!maps.contains("heaptap-gate"), "{maps}");
    guest.command("run");
    guest.exit();
}

/// It is the file that is mapped which is looked at, wherever it has gone.
#[test]
fn a_file_that_was_deleted_or_replaced_is_gated_as_it_is_mapped() {
    let jemalloc = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
    for is_replaced in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("libjemalloc.so.2");
        fs::copy(jemalloc, &library).expect("libjemalloc is installed");
        let mut guest = Guest::start_preloaded("unusual", &library);
        guest.command("run");
        fs::remove_file(&library).expect("it is ours");
        if is_replaced {
            fs::copy("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", &library)
                .expect("it is installed");
        }
        let before = Belongings::of(guest.pid());
        let pid = guest.pid();
        recorded(&mut guest, pid, "--gate=require");
        Belongings::of(guest.pid()).assert_same(&before, "after a recording");
        guest.command("run");
        guest.exit();
    }
}

#[test]
fn without_room_near_the_code_there_is_no_gate() {
    let mut guest = Guest::start("unusual");
    guest.command("fill");
    let pid = guest.pid();
    assert_not_gated(&mut guest, pid, "free within 2 GiB");
    guest.exit();
}

/// The gate's instructions have no room for such an address, and are others.
#[test]
fn without_room_in_the_first_2_gib_the_data_lies_elsewhere() {
    for is_full in [false, true] {
        let mut guest = Guest::start("unusual");
        if is_full {
            guest.command("fill low");
        }
        let recording = gate::attach(guest.pid());
        let addresses = gate::addresses(guest.pid());
        assert_eq!(addresses.iter().any(|address| *address < 1 << 31), !is_full, "{addresses:x?}");
        guest.command("run");
        let ledger = guest.ledger();
        let (_, profile) = gate::finish(recording);
        gate::assert_told(&ledger, &profile);
        guest.command("run");
        guest.exit();
    }
}

#[test]
fn where_no_memory_may_be_made_executable_there_is_no_gate() {
    if !Path::new("/proc/sys/vm/memfd_noexec").exists() {
        return;
    }
    // For this namespace and those below it: the machine's other processes are not concerned.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c"]);
    command.arg("echo 2 >/proc/sys/vm/memfd_noexec && exec \"$0\"").arg(compile::program("unusual"));
    let mut guest = Guest::spawn_command("unusual", command);
    guest.line("ready");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", guest.pid())).expect("it runs");
    let pid = children.trim().parse().expect("one child");
    assert_not_gated(&mut guest, pid, "vm.memfd_noexec");
    guest.exit();
}

#[test]
fn a_function_into_which_another_one_reaches_is_not_gated() {
    let folder = compile::lying_allocator();
    let mut guest = Guest::start_preloaded("unusual", folder);
    let pid = guest.pid();
    assert_not_gated(&mut guest, pid, "has another function begin where the jump would be");
    guest.exit();
}

/// What a forged gate consists of.
struct Forged {
    guest: Guest,
    layout: Layout,
    code: u64,
    data: u64,
    other: u64,
}

impl Forged {
    fn make() -> Self {
        let layout = Layout::for_blocks(0);
        let mut guest = Guest::start("unusual");
        let answer = guest.command(&format!("forge {}", layout.bytes()));
        let mut numbers = answer[0].split(' ').map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("three numbers");
        let (code, data, other) = (next(), next(), next());
        Self { guest, layout, code, data, other }
    }

    /// Writes something at the beginning of its file.
    fn write(&self, bytes: &[u8], at: u64) {
        let path = format!("/proc/{}/map_files/{:x}-{:x}", self.guest.pid(), self.code, self.code + 4 * 4096);
        let file = fs::File::options().write(true).open(path).expect("it is mapped");
        file.write_all_at(bytes, at).expect("it can be written");
    }

    /// Describes it: with data at an address, and jumps.
    fn describe(&self, data: u64, jumps: Vec<Jump>) {
        let range = |start: u64, bytes: u64| start..start + bytes;
        let (code, data) = (range(self.code, 4 * 4096), range(data, self.layout.bytes()));
        let description = Description::new(code, data, self.layout, jumps);
        let write = |bytes: &[u8], at: u64| {
            self.write(bytes, at);
            Ok(())
        };
        description.write(write).expect("it can be written");
    }

    fn detach(&self) -> String {
        let outcome = run(["detach", "--pid", &self.guest.pid().to_string()]);
        outcome.assert_success();
        outcome.stdout
    }

    fn end(mut self) {
        self.guest.command("forged");
        self.guest.command("run");
        self.guest.exit();
    }
}

#[test]
fn a_forged_gate_has_no_other_memory_taken_away() {
    let forged = Forged::make();
    forged.describe(forged.other, Vec::new());
    let said = forged.detach();
    assert!(said.contains("its memory is gone"), "{said}");
    forged.end();
}

#[test]
fn a_forged_gate_has_nothing_written_that_the_file_does_not_have() {
    let forged = Forged::make();
    let pid = forged.guest.pid();
    let (address, bytes) = covered(pid, "reallocarray");
    let near = |at: u64| forged.code.abs_diff(at) < 1 << 31;
    assert!(near(address), "the kernel maps one below the other");
    let jump = Jump::to(address, [0x90; JUMP_BYTES], forged.code + 64).expect("it is near");
    memory(pid).write_all_at(&jump.jump, address).expect("it can be written");
    // In memory that is no code, and of no file.
    let elsewhere = Jump { address: forged.other + 64, ..jump };
    let target = Jump::to(elsewhere.address, [0x90; JUMP_BYTES], forged.code + 64);
    let jumps = [Some(jump), target].into_iter().flatten().collect();
    forged.describe(forged.data, jumps);
    let before = Belongings::of(pid);
    let said = forged.detach();
    assert!(said.contains("0 of 2 functions") && said.contains("may lead there"), "{said}");
    Belongings::of(pid).assert_same(&before, "after a forged gate");
    memory(pid).write_all_at(&bytes, address).expect("it can be written");
    forged.end();
}

#[test]
fn a_forged_gate_that_makes_no_sense_is_left_alone() {
    let forged = Forged::make();
    let length = u64::MAX.to_le_bytes();
    for bytes in
        [&b"heaptap gate 1\n\0"[..], b"heaptap gate 3\n\0", &[&b"heaptap gate 3\n\0"[..], &length].concat()]
    {
        forged.write(bytes, 0);
        let before = Belongings::of(forged.guest.pid());
        let said = forged.detach();
        assert!(said.contains("of another version of heaptap"), "{said}");
        Belongings::of(forged.guest.pid()).assert_same(&before, "after a forged gate");
    }
    // Of one that says nothing yet, nothing is believed either, and nothing leads there.
    forged.write(&[0; 64], 0);
    assert!(forged.detach().contains("its memory is gone"));
    forged.end();
}
