//! As much of HTTP as a test needs.

use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use flate2::read::GzDecoder;

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

/// A connection that is kept from one request to the next.
#[derive(Debug)]
pub struct Connection<S>(BufReader<S>);

/// What a server answered to a request.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, unpacked.
    pub body: Vec<u8>,
}

impl Answer {
    /// Panics unless this is the answer.
    #[track_caller]
    pub fn assert_is(&self, status: u16, body: &[u8]) {
        assert_eq!(self.status, status);
        let length = self.body.len();
        assert!(self.body == body, "{length} bytes that are not the {} asked for", body.len());
    }
}

impl<S: Read + Write> Connection<S> {
    /// A connection over this stream.
    pub fn over(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    /// Asks for a path.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, "identity")
    }

    /// Asks for a path, whose body may come packed.
    #[track_caller]
    pub fn get_packed(&mut self, path: &str) -> Answer {
        self.ask("GET", path, "gzip")
    }

    /// Asks for a path by another method, without a body.
    #[track_caller]
    pub fn put(&mut self, path: &str) -> Answer {
        self.ask("PUT", path, "identity")
    }

    fn ask(&mut self, method: &str, path: &str, accept: &str) -> Answer {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {accept}\r\n\r\n");
        said(path, self.0.get_mut().write_all(request.as_bytes()));
        let first = self.line(path);
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{path}: `{first}` has no status"));
        let (mut length, mut is_chunked, mut is_packed) = (0, false, false);
        loop {
            let line = self.line(path).to_lowercase();
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("content-length", number)) => length = said(path, number.parse()),
                Some(("transfer-encoding", "chunked")) => is_chunked = true,
                Some(("content-encoding", "gzip")) => is_packed = true,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = if is_chunked { self.chunks(path) } else { self.bytes(path, length) };
        if is_packed {
            let mut unpacked = Vec::new();
            said(path, GzDecoder::new(body.as_slice()).read_to_end(&mut unpacked));
            body = unpacked;
        }
        Answer { status, body }
    }

    fn line(&mut self, path: &str) -> String {
        let mut line = String::new();
        said(path, self.0.read_line(&mut line));
        line.truncate(line.trim_end().len());
        line
    }

    fn bytes(&mut self, path: &str, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        said(path, self.0.read_exact(&mut bytes));
        bytes
    }

    fn chunks(&mut self, path: &str) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = self.line(path);
            let length = said(path, usize::from_str_radix(&line, 16));
            body.extend(self.bytes(path, length));
            // What ends a chunk.
            self.line(path);
            if length == 0 {
                return body;
            }
        }
    }
}

#[track_caller]
fn said<T, E: Debug>(path: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|err| panic!("no whole answer to {path}: {err:?}"))
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
