//! Which container a process runs in, by the names of its control groups.
//!
//! There is no such thing as a container to the kernel. The runtimes name a process's control group after the container's id
//! (`/proc/PID/cgroup`, cgroups(7)), each in its own way:
//!
//! | | |
//! | --- | --- |
//! | Docker, Podman, containerd with cgroupfs | `/docker/ID`, `/libpod_parent/libpod-ID`, `/kubepods/burstable/podUID/ID` |
//! | the same with systemd | `docker-ID.scope`, `libpod-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope` |
//! | containerd that was told cgroupfs where there is systemd | `/system.slice/containerd.service/kubepods-…-podUID.slice:cri-containerd:ID` |
//! | ECS on Fargate | `/ecs/TASK/TASK-NUMBER` |
//!
//! The id is 64 hexadecimal digits, and 32 with a decimal number behind them on Fargate: the expression that the agents of
//! Datadog (`containerRegexpStr` in pkg/util/cgroups/reader.go) and OpenTelemetry's detectors look for, but that here it has
//! to be the whole of a name's last word.

use std::{fs::File, io::Read};

use super::process::live_thread;

/// Nothing that is longer is read of the file.
const FILE_LIMIT_BYTES: u64 = 256 << 10;

/// The id of the container that a process runs in; `None` where it runs in none that can be told.
pub fn of(pid: u32) -> Option<String> {
    let thread = live_thread(pid)?;
    let mut text = Vec::new();
    File::open(format!("/proc/{thread}/cgroup"))
        .and_then(|file| file.take(FILE_LIMIT_BYTES).read_to_end(&mut text))
        .inspect_err(|error| tracing::debug!(pid, %error, "the control groups cannot be read"))
        .ok()?;
    id_in(&text)
}

/// The id in the lines `NUMBER:CONTROLLERS:/PATH`. The hierarchies of version 1 tell the same, or nothing.
fn id_in(cgroups: &[u8]) -> Option<String> {
    cgroups.split(|byte| *byte == b'\n').find_map(|line| {
        // Containers may run in containers: the innermost is the last.
        line.splitn(3, |byte| *byte == b':').nth(2)?.split(|byte| *byte == b'/').rev().find_map(id_of)
    })
}

/// The id that the name of a control group ends with.
fn id_of(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // What watches over a container is not in it.
    if name.contains("conmon") {
        return None;
    }
    let last = |count: usize| name.split_at_checked(name.len().checked_sub(count)?);
    if let Some((before, id)) = last(64).filter(|(_, id)| is_lower_hexadecimal(id)) {
        return (before.is_empty() || before.ends_with(['-', ':'])).then(|| id.to_owned());
    }
    let (task, number) = name.split_once('-')?;
    let is_task = task.len() == 32 && is_lower_hexadecimal(task);
    let is_number = (1..=20).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_task && is_number).then(|| name.to_owned())
}

fn is_lower_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";

    const OTHER: &str = "00f397b7a03ec8e0d1a7f6d71f9c4d1b8a6a3a8e5e8fbb2e4ac12a5fb8a1d6a0";

    #[test]
    fn every_runtimes_names_are_understood() {
        for path in [
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/system.slice/docker-ID.scope/init.scope",
            "/machine.slice/libpod-ID.scope/container",
            "/libpod_parent/libpod-ID",
            "/kubepods/burstable/pod9a1d4e1c-2f2f-4c1b-9d3b-6f7d7f1f2a10/ID",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-besteffort.slice/crio-ID.scope",
            "/system.slice/containerd.service/kubepods-besteffort-pod0a.slice:cri-containerd:ID",
            "/default/ID",
            "/../ID",
            "/docker/OTHER/kubepods/besteffort/pod1/ID",
        ] {
            let path = path.replace("ID", ID).replace("OTHER", OTHER);
            for before in ["0::", "12:memory:", "3:cpu,cpuacct:", "1:name=systemd:"] {
                let text = format!("13:misc:/\n{before}{path}\n");
                assert_eq!(id_in(text.as_bytes()).as_deref(), Some(ID), "{text}");
            }
        }
        let fargate = b"9:perf_event:/ecs/432624d2150b349fe35ba397284dea78/432624d2150b349fe35ba397284dea78-1234567890\n";
        assert_eq!(id_in(fargate).as_deref(), Some("432624d2150b349fe35ba397284dea78-1234567890"));
    }

    #[test]
    fn what_is_no_container_has_no_id() {
        for text in [
            String::new(),
            "0::/\n".to_owned(),
            "0::/user.slice/user-1000.slice/session-3.scope\n".to_owned(),
            "4:memory:/process_api/f67d31ec420d4e053cd1e3693f6d7bea\n".to_owned(),
            format!("0::/machine.slice/libpod-conmon-{ID}.scope\n"),
            format!("0::/kubepods.slice/crio-conmon-{ID}.scope\n"),
            format!("0::/a{ID}\n"),
            format!("0::/{}\n", ID.to_uppercase()),
            format!("0::/docker/{ID}é\n"),
            format!("0:/docker/{ID}\n"),
            "0::/432624d2150b349fe35ba397284dea78-\n".to_owned(),
            "::\n:::///\n-\n".to_owned(),
        ] {
            assert_eq!(id_in(text.as_bytes()), None, "{text}");
        }
        assert_eq!(id_in(b"0::/\xff\xfe\n\xff"), None);
    }

    #[test]
    fn a_process_that_is_not_there_is_in_no_container() {
        assert_eq!(of(u32::MAX), None);
    }
}
