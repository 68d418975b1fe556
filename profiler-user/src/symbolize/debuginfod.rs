//! Debug files from debuginfod servers, only where `DEBUGINFOD_URLS` names some.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Read},
    path::Path,
    time::{Duration, Instant},
};

use debuginfod::{BuildId, CachingClient, Client, HttpClient, HttpClientError, Readable};
use ureq::{Agent, http::StatusCode};

use crate::target::{
    debug_file::{DebugFile, has_build_id},
    root::{LastLink, Root},
};

/// The variable that every debuginfod client reads.
const VARIABLE: &str = "DEBUGINFOD_URLS";

/// How long a server may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long one file may take; the other clients' default.
const FILE_LIMIT: Duration = Duration::from_secs(90);

/// How long all files may take together, since a profile waits for them.
const TOTAL_LIMIT: Duration = Duration::from_secs(180);

/// What one file may have. Chromium's debug file has 4 GiB.
const SIZE_LIMIT_BYTES: u64 = 8 << 30;

/// Servers to ask, until one fails.
#[derive(Debug)]
pub(super) struct Debuginfod {
    client: Option<CachingClient>,
    spent: Duration,
}

impl Debuginfod {
    /// `None` unless the variable names servers.
    pub(super) fn from_environment() -> Option<Self> {
        let urls = std::env::var(VARIABLE).ok()?;
        Self::new(&urls, |client| CachingClient::from_env(client).ok())
    }

    fn new(urls: &str, cached: impl Fn(Client) -> Option<CachingClient>) -> Option<Self> {
        let urls: Vec<&str> = urls.split_ascii_whitespace().collect();
        if urls.is_empty() {
            return None;
        }
        let client = Client::builder().http_client(Http::new()).build(urls).ok().flatten().and_then(cached);
        if client.is_none() {
            tracing::warn!(
                "{VARIABLE} cannot be used: it holds no addresses, or there is no directory to keep files in"
            );
        }
        Some(Self { client, spent: Duration::ZERO })
    }

    /// The debug file of what has this build id. After a failure no more is asked for.
    pub(super) fn fetch(&mut self, build_id: &[u8]) -> Option<DebugFile> {
        let client = self.client.as_ref()?;
        let began = Instant::now();
        let fetched = client.fetch_debug_info(&BuildId::RawBytes(Cow::Borrowed(build_id)));
        self.spent += began.elapsed();
        match fetched {
            Ok(path) if self.spent < TOTAL_LIMIT => open(&path?, build_id),
            Ok(path) => {
                tracing::warn!("debug files take too long to fetch; no more are fetched");
                self.client = None;
                open(&path?, build_id)
            }
            Err(error) => {
                tracing::warn!("no more debug files are fetched: {error:#}");
                self.client = None;
                None
            }
        }
    }
}

/// Servers and caches may be wrong.
fn open(path: &Path, build_id: &[u8]) -> Option<DebugFile> {
    let file = Root::at(Path::new("/")).ok()?.open(path, LastLink::Follow).ok()?;
    // Whoever set the variable trusts these servers like the directories of this machine.
    has_build_id(&file, build_id).then(|| DebugFile::checked(file, true))
}

struct Http(Agent);

impl Http {
    fn new() -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(FILE_LIMIT))
            .timeout_global(Some(FILE_LIMIT))
            .build();
        Self(config.into())
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Http")
    }
}

impl HttpClient for Http {
    fn get(&self, url: &str) -> Result<Box<dyn Readable>, HttpClientError> {
        let response = self.0.get(url).call().map_err(|error| match error {
            ureq::Error::StatusCode(code) => StatusCode::from_u16(code)
                .map_or_else(|error| HttpClientError::Other(error.into()), HttpClientError::StatusCode),
            error => HttpClientError::Other(error.into()),
        })?;
        Ok(Box::new(Body(response.into_body().into_with_config().limit(SIZE_LIMIT_BYTES).reader())))
    }
}

struct Body<R>(R);

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R> fmt::Debug for Body<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Body")
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, net::TcpListener, thread};

    use super::{super::fixture::Guest, *};
    use crate::target::elf;

    /// A server that answers every request with the same bytes, and the address to ask it at.
    fn server(status: &'static str, content: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let length = content.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(&content);
            }
        });
        url
    }

    fn at(urls: &str, cache: &Path) -> Option<Debuginfod> {
        Debuginfod::new(urls, |client| CachingClient::new(client, cache).ok())
    }

    #[test]
    fn nothing_is_asked_where_no_server_is_named() {
        let cache = tempfile::tempdir().unwrap();
        assert!(at("", cache.path()).is_none());
        assert!(at("  ", cache.path()).is_none());
    }

    #[test]
    fn a_file_is_fetched_once_and_only_that_of_the_right_build_is_used() {
        let guest = Guest::library();
        let content = fs::read(guest.make_debug_file("debug")).unwrap();
        let build_id = elf::build_id(&fs::File::open(guest.file()).unwrap()).unwrap().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let url = server("200 OK", content);
        assert!(at(&url, cache.path()).unwrap().fetch(&build_id).is_some());
        // From the cache: nobody listens there.
        assert!(at("http://127.0.0.1:1", cache.path()).unwrap().fetch(&build_id).is_some());
        assert!(at(&url, cache.path()).unwrap().fetch(&[7; 20]).is_none());
    }

    #[test]
    fn a_file_that_a_server_does_not_have_is_no_failure_and_a_server_that_fails_is_asked_no_more() {
        let cache = tempfile::tempdir().unwrap();
        let mut without = at(&server("404 Not Found", Vec::new()), cache.path()).unwrap();
        assert!(without.fetch(&[7; 20]).is_none());
        assert!(without.client.is_some());
        let mut failing = at("http://127.0.0.1:1", cache.path()).unwrap();
        assert!(failing.fetch(&[7; 20]).is_none());
        assert!(failing.client.is_none());
    }
}
