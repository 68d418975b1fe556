//! Targets in containers: with a root directory, process numbers and users of their own, and an id in their control groups.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use heaptap_tests::compile::{Variant, program_as};
use heaptap_tests::guest::Guest;
use heaptap_tests::heaptap::{self, Recording};
use heaptap_tests::profile::Profile;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Where the image has its files. The host has no such directory.
const IMAGE: &str = "image";

/// What runs in the new namespaces: mounts the image, which stays as it is, and goes there.
const MOUNT: &str = "\
mount -t overlay overlay -o lowerdir=$FOLDER/lower,upperdir=$FOLDER/upper,workdir=$FOLDER/work $FOLDER/root &&
cd $FOLDER/root && export LD_LIBRARY_PATH=/image &&";

/// The image becomes the top of the mount namespace, as the runtimes of containers do it.
const PIVOT_ROOT: &str = "pivot_root . old && exec /image/$NAME";

/// The image becomes the root directory, with everything else above it.
const CHROOT: &str = "exec chroot . /image/$NAME";

/// A guest in namespaces of its own, whose files are in an image.
struct Contained {
    guest: Guest,
    /// The guest's process, as the host numbers it.
    pid: u32,
    folder: TempDir,
}

impl Contained {
    fn start(name: &str, enter: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the image");
        let at = |name: &str| folder.path().join(name);
        for directory in ["upper", "work", "root", "lower/old", "lower/lib64", &format!("lower/{IMAGE}")] {
            fs::create_dir_all(at(directory)).expect("the folder is ours");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        let program = program_as(name, Variant::NoFramePointers);
        fs::copy(&program, at("lower").join(IMAGE).join(name)).expect("room for the guest");
        for library in libraries(&program) {
            let file_name = library.file_name().expect("a library has a name");
            let is_loader = file_name == "ld-linux-x86-64.so.2";
            let place = if is_loader { at("lower/lib64") } else { at("lower").join(IMAGE) };
            fs::copy(&library, place.join(file_name)).expect("room for a library");
        }
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]);
        command
            .args(["sh", "-c", &format!("{MOUNT} {enter}")])
            .env("FOLDER", folder.path())
            .env("NAME", name);
        let mut guest = Guest::spawn_command(name, command);
        guest.line("ready");
        let pid = only_child(guest.pid());
        Self { guest, pid, folder }
    }

    fn kill(&self) {
        let pid = Pid::from_raw(self.pid.try_into().expect("a PID")).expect("a PID");
        kill_process(pid, Signal::KILL).expect("the guest is ours");
    }
}

/// The libraries that a program needs, by their names here.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("/lib64/ld-linux-x86-64.so.2").arg("--list").arg(program).output();
    let output = String::from_utf8(output.expect("the loader runs").stdout).expect("names are text");
    let libraries: Vec<_> =
        output.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    assert!(libraries.iter().any(|library| library.ends_with("libc.so.6")), "{output}");
    libraries
}

fn only_child(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"));
    match children.split_whitespace().collect::<Vec<_>>()[..] {
        [child] => child.parse().expect("a PID is a number"),
        _ => panic!("{pid} has the children `{children}`"),
    }
}

#[track_caller]
fn assert_names_the_image(profile: &Profile) {
    for name in ["every-function", "libc.so.6"] {
        let wanted = format!("/{IMAGE}/{name}");
        assert!(profile.files.contains(&wanted), "no {wanted} in {:?}", profile.files);
        assert!(!Path::new(&wanted).exists(), "the host has {wanted} too, which proves nothing");
    }
    let unnamed = profile.stacks.iter().find(|stack| stack.functions.iter().any(String::is_empty));
    assert!(unnamed.is_none(), "{unnamed:?}");
}

#[test]
fn a_target_in_namespaces_of_its_own_is_counted_and_named_by_its_own_files() {
    record_contained(PIVOT_ROOT);
}

#[test]
fn a_target_with_another_root_directory_is_named_from_there() {
    record_contained(CHROOT);
}

#[track_caller]
fn record_contained(enter: &str) {
    let mut contained = Contained::start("every-function", enter);
    for namespace in ["user", "mnt", "pid"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("a namespace");
        assert_ne!(of("self"), of(&contained.pid.to_string()), "{namespace}");
    }
    let recording = Recording::attach(contained.pid);
    contained.guest.command("run");
    let ledger = contained.guest.ledger();
    let profile = recording.finish().profile();
    ledger.assert_equals(&profile);
    profile.assert_whole(1, 0);
    assert_names_the_image(&profile);
    assert!(profile.memory("resident_bytes") > Some(0), "{:#?}", profile.comments);

    let outcome = heaptap::run(["inspect", "--pid", &contained.pid.to_string()]);
    outcome.assert_success();
    for name in [", /image/every-function\n", " in /image/libc.so.6\n"] {
        assert!(outcome.stdout.contains(name), "no `{name}` in:\n{}", outcome.stdout);
    }
    contained.guest.exit();
}

/// The PID namespace ends with its first process, and the mount namespace with the last: the files' names lead nowhere
/// then, and here not even the files are left.
#[test]
fn a_namespace_that_vanishes_leaves_a_profile_with_names() {
    let mut contained = Contained::start("every-function", PIVOT_ROOT);
    let recording = Recording::attach(contained.pid);
    contained.guest.command("run");
    let ledger = contained.guest.ledger();
    fs::remove_dir_all(contained.folder.path().join("lower")).expect("the folder is ours");
    contained.kill();
    contained.guest.wait();
    let profile = recording.wait().profile();
    ledger.assert_equals(&profile);
    profile.assert_whole(1, 0);
    assert_names_the_image(&profile);
}

/// A control group of version 2, named as a runtime names it; removed when dropped.
struct ControlGroup {
    hierarchy: TempDir,
    name: String,
}

impl ControlGroup {
    fn make(name: &str) -> Self {
        let hierarchy = tempfile::tempdir().expect("a folder to mount on");
        let status = Command::new("mount")
            .args(["-t", "cgroup2", "none"])
            .arg(hierarchy.path())
            .status()
            .expect("mount runs");
        assert!(status.success(), "control groups of version 2 cannot be mounted");
        let group = Self { hierarchy, name: name.to_owned() };
        fs::create_dir(group.path()).expect("a control group");
        group
    }

    fn path(&self) -> PathBuf {
        self.hierarchy.path().join(&self.name)
    }

    fn admit(&self, pid: u32) {
        fs::write(self.path().join("cgroup.procs"), pid.to_string()).expect("the group takes the process");
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Fails as long as a process is in there that a failed test has left.
        let _ = fs::remove_dir(self.path());
        let _ = Command::new("umount").arg("--lazy").arg(self.hierarchy.path()).status();
    }
}

#[test]
fn the_profile_and_inspect_tell_the_container() {
    let id = format!("{:064x}", std::process::id());
    let group = ControlGroup::make(&format!("docker-{id}.scope"));
    let mut guest = Guest::start("every-function");
    let pid = guest.pid().to_string();
    let before = heaptap::run(["inspect", "--pid", &pid]);
    assert!(!before.stdout.contains("container"), "{}", before.stdout);
    group.admit(guest.pid());

    let recording = Recording::attach(guest.pid());
    guest.command("run");
    let profile = recording.finish().profile();
    assert!(profile.comments.contains(&format!("container: {id}")), "{:#?}", profile.comments);
    assert!(!profile.stacks.is_empty());
    for stack in &profile.stacks {
        let labels = ["container", "pid", "comm"].map(|key| stack.labels.get(key).map(String::as_str));
        assert_eq!(labels, [Some(id.as_str()), Some(pid.as_str()), Some("every-function")]);
    }
    let after = heaptap::run(["inspect", "--pid", &pid]);
    assert!(after.stdout.lines().any(|line| line == format!("container {id}")), "{}", after.stdout);
    guest.exit();
}
