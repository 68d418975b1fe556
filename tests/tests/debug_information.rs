//! The process in which heaptap reads debug information: what the file does to it, it does to nothing else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use heaptap_tests::compile::{self, Variant};
use heaptap_tests::heaptap;
use prost::Message;
use rustix::process::Signal;

/// The messages, as a second reader of them.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Request {
        #[prost(fixed64, repeated, tag = "1")]
        pub(crate) addresses: Vec<u64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Reply {
        #[prost(message, repeated, tag = "1")]
        pub(crate) answers: Vec<Answer>,
        #[prost(string, tag = "2")]
        pub(crate) error: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Answer {
        #[prost(message, repeated, tag = "1")]
        pub(crate) functions: Vec<Function>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Function {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(string, tag = "2")]
        pub(crate) file: String,
        #[prost(uint32, tag = "3")]
        pub(crate) line: u32,
    }
}

/// A reader that was started by hand.
struct Reader {
    child: Child,
    socket: UnixStream,
}

impl Reader {
    fn of(file: &File) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut command = Command::new(heaptap::binary());
        command.arg("read-debug-information");
        command.stdin(file.try_clone().expect("a second descriptor")).stdout(OwnedFd::from(theirs));
        let child = command.stderr(Stdio::null()).spawn().expect("heaptap was built");
        Self { child, socket }
    }

    /// The reply to a question about some addresses; `None` where the reader has ended.
    fn ask(&mut self, addresses: &[u64]) -> Option<proto::Reply> {
        let request = proto::Request { addresses: addresses.to_vec() }.encode_to_vec();
        let length = u32::try_from(request.len()).expect("a short question");
        // Failing means the same as no reply.
        let _ = self.socket.write_all(&[&length.to_le_bytes(), request.as_slice()].concat());
        let mut length = [0; 4];
        self.socket.read_exact(&mut length).ok()?;
        let mut reply = vec![0; usize::try_from(u32::from_le_bytes(length)).expect("it fits in memory")];
        self.socket.read_exact(&mut reply).ok()?;
        Some(proto::Reply::decode(reply.as_slice()).expect("a reply"))
    }
}

/// A library with debug information that can be written to.
fn library() -> File {
    let built = compile::program_as("plugins", Variant::NoFramePointers).with_file_name("libplugin-first.so");
    let mut copy = tempfile::tempfile().expect("a file");
    copy.write_all(&fs::read(built).expect("the library was built")).expect("it has room");
    copy
}

/// The code of a library that small.
fn addresses() -> Vec<u64> {
    (0x1000..0x1400).step_by(4).collect()
}

#[test]
fn a_reader_names_functions_and_lines_until_nobody_asks_any_more() {
    let mut reader = Reader::of(&library());
    let reply = reader.ask(&addresses()).expect("a reply");
    assert_eq!((reply.error.as_str(), reply.answers.len()), ("", 256));
    let found = reply.answers.iter().flat_map(|answer| &answer.functions);
    let work =
        found.clone().find(|function| function.name == "first_work").expect("a function of the library");
    assert!(work.file.ends_with("libplugin.c") && work.line > 0, "{work:?}");
    drop(reader.socket);
    assert!(reader.child.wait().expect("it ends").success());
}

#[test]
fn a_file_that_is_cut_short_while_it_is_read_ends_the_reader_only() {
    let file = library();
    let mut reader = Reader::of(&file);
    assert_eq!(reader.ask(&addresses()[..1]).map(|reply| reply.error).as_deref(), Some(""));
    file.set_len(0).expect("it can be cut");
    assert_eq!(reader.ask(&addresses()), None);
    let status = reader.child.wait().expect("it ends");
    assert_eq!(status.signal(), Some(Signal::BUS.as_raw()), "{status}");
}

#[test]
fn a_file_without_debug_information_gives_no_names() {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"something else").expect("it has room");
    let reply = Reader::of(&file).ask(&[0x1000]).expect("a reply");
    assert!(!reply.error.is_empty(), "{reply:?}");
}

#[test]
fn a_reader_that_is_started_for_nobody_says_so() {
    let mut command = Command::new(heaptap::binary());
    command.arg("read-debug-information").stdin(Stdio::null());
    heaptap::run_command(command).assert_refused("debug information");
}
