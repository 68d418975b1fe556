//! As much of HTTP as a test needs.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::process::PATIENCE;

/// Fetches `http://HOST:PORT/PATH`; returns the status and the body.
#[track_caller]
pub fn get(url: &str) -> (u16, Vec<u8>) {
    let address = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is not http"));
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let mut stream = TcpStream::connect(host).unwrap_or_else(|err| panic!("cannot connect to {host}: {err}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
    // 1.0, so that the end of the body is the end of the stream.
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap_or_else(|err| panic!("{url}: {err}"));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap_or_else(|err| panic!("{url}: {err}"));
    split(&answer).unwrap_or_else(|| panic!("{url} answered {:?}", String::from_utf8_lossy(&answer)))
}

/// The status and the body of an answer.
fn split(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = str::from_utf8(&answer[..end]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_follows_the_first_empty_line() {
        let answer = b"HTTP/1.0 404 Not Found\r\nA: b\r\n\r\none\r\n\r\ntwo";
        assert_eq!(split(answer), Some((404, b"one\r\n\r\ntwo".to_vec())));
    }
}
