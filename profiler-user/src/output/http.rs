//! Profiles over HTTP, at the paths where Go programs have their own.

use std::{error::Error, fmt, io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};

use super::metrics;

/// Where the served profiles come from.
pub trait HeapSource: Send + Sync {
    /// The heap as it is now: a pprof profile, compressed. May take seconds.
    fn profile_gzip(&self) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;

    /// Its numbers for a monitoring system, as [`super::metrics`] writes them.
    fn metrics(&self) -> Result<String, Box<dyn Error + Send + Sync>>;

    /// What there is to say of how it was made, in lines; at once.
    fn remarks(&self) -> Vec<String>;
}

#[derive(Clone)]
struct Served {
    title: Arc<str>,
    source: Arc<dyn HeapSource>,
}

/// Answers requests until the listener fails.
///
/// # Errors
///
/// Fails if connections cannot be accepted any more.
pub async fn serve(
    listener: tokio::net::TcpListener,
    title: String,
    source: Arc<dyn HeapSource>,
) -> io::Result<()> {
    axum::serve(listener, router(title, source)).await
}

fn router(title: String, source: Arc<dyn HeapSource>) -> Router {
    Router::new()
        .route("/debug/pprof/", get(index))
        .route("/debug/pprof/heap", get(heap))
        .route("/metrics", get(metrics))
        .with_state(Served { title: title.into(), source })
}

async fn index(State(served): State<Served>) -> Html<String> {
    let title = escape(&served.title);
    let remarks: String =
        served.source.remarks().iter().map(|remark| format!("<p>{}</p>\n", escape(remark))).collect();
    Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>heaptap: {title}</title></head><body>\n\
         <h1>heaptap: {title}</h1>\n\
         <ul><li><a href=\"heap\">heap</a>: what was allocated since heaptap attached, and what of it is in use</li>\n\
         <li><a href=\"/metrics\">metrics</a>: its numbers, what was lost, and what it costs, for Prometheus</li></ul>\n\
         <p>Look at it with <code>go tool pprof http://HOST/debug/pprof/heap</code>, \
         or with <code>heaptap report</code> when saved.</p>\n{remarks}</body></html>\n"
    ))
}

async fn metrics(State(Served { title: _, source }): State<Served>) -> Response {
    match tokio::task::spawn_blocking(move || source.metrics()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response(),
        Ok(Err(error)) => failure("read the numbers", &error),
        Err(error) => failure("read the numbers", &error),
    }
}

async fn heap(State(Served { title: _, source }): State<Served>) -> Response {
    // Names are looked up in files, which would hold the other connections up.
    let profile = tokio::task::spawn_blocking(move || source.profile_gzip()).await;
    match profile {
        Ok(Ok(profile)) => (
            [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CONTENT_DISPOSITION, "attachment; filename=\"heap.pb.gz\""),
                (header::CACHE_CONTROL, "no-store"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ],
            profile,
        )
            .into_response(),
        Ok(Err(error)) => failure("make the profile", &error),
        Err(error) => failure("make the profile", &error),
    }
}

fn failure(what: &str, error: &dyn fmt::Display) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot {what}: {error}\n")).into_response()
}

/// A text as it stands in HTML: a process's name is its own choice.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
    };

    use super::*;

    struct Fixed(Result<&'static [u8], &'static str>);

    impl HeapSource for Fixed {
        fn profile_gzip(&self) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
            Ok(self.0?.to_vec())
        }

        fn metrics(&self) -> Result<String, Box<dyn Error + Send + Sync>> {
            Ok(String::from_utf8(self.0?.to_vec())?)
        }

        fn remarks(&self) -> Vec<String> {
            vec!["cost: 1 < 2".to_owned()]
        }
    }

    /// The answer to one request, head and body.
    fn request(path: &str, source: Fixed) -> String {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, "<b> (pid 1)".to_owned(), Arc::new(source)));
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_heap_is_served_as_a_file_that_nobody_keeps() {
        let answer = request("/debug/pprof/heap", Fixed(Ok(b"profile")));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("profile"), "{answer}");
        assert!(answer.contains("application/octet-stream") && answer.contains("no-store"), "{answer}");
    }

    #[test]
    fn the_index_names_the_heap_and_no_name_becomes_markup() {
        let answer = request("/debug/pprof/", Fixed(Ok(b"")));
        assert!(answer.contains("href=\"heap\"") && answer.contains("&lt;b&gt; (pid 1)"), "{answer}");
        assert!(answer.contains("<p>cost: 1 &lt; 2</p>"), "{answer}");
    }

    #[test]
    fn the_numbers_are_served_as_openmetrics() {
        let answer = request("/metrics", Fixed(Ok(b"heaptap_stacks 7\n# EOF\n")));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(answer.contains("application/openmetrics-text; version=1.0.0"), "{answer}");
        let failed = request("/metrics", Fixed(Err("kernel gone")));
        assert!(
            failed.starts_with("HTTP/1.1 500") && failed.contains("cannot read the numbers: kernel gone")
        );
    }

    #[test]
    fn a_failure_is_told_and_other_paths_do_not_exist() {
        let answer = request("/debug/pprof/heap", Fixed(Err("kernel gone")));
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("kernel gone"), "{answer}");
        assert!(request("/etc/passwd", Fixed(Ok(b""))).starts_with("HTTP/1.1 404"));
    }
}
