//! The page: the files of `web/dist`, which the build puts into the program when the feature `web` is on.
//!
//! The table is made by this crate's own build script rather than by rust-embed: it is a list of `include_bytes!`, so
//! that no further crate is needed, a debug build holds the files as well, and what is missing is told in our words.

use super::{html, wrong_method};
use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A file of the page.
#[derive(Debug)]
struct File {
    /// Its path, with the slash.
    path: &'static str,
    content_type: &'static str,
    /// Changes with its content; with the quotes.
    etag: &'static str,
    bytes: &'static [u8],
}

#[cfg(feature = "web")]
const FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/page.rs"));
#[cfg(not(feature = "web"))]
const FILES: &[File] = &[];

/// Where the bundler puts files whose names carry the hash of their content.
const HASHED: &str = "/assets/";
const INDEX: &str = "/index.html";
/// A file under this name never changes.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
/// May be kept, but is asked for each time whether it changed.
const ASK_EACH_TIME: &str = "no-cache";

/// Answers with a file; with the index where there is none, for the paths that the page makes up.
pub(super) fn serve(request: &Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return wrong_method();
    }
    match find(FILES, request.uri().path()) {
        Some(file) => answer(file, request.headers()),
        None if FILES.is_empty() => html::message(
            StatusCode::OK,
            "The API of vbmd",
            &[
                "This vbmd was built without the page of the web console.",
                "To get it, run `cargo xtask web`, then `cargo build --release --features web`, and start that vbmd.",
                "The API is here all the same: `/openapi.json` says what it takes, once you are logged in.",
            ],
        ),
        None => html::message(
            StatusCode::NOT_FOUND,
            "There is no such page",
            &["Go back to the beginning: the address without its path."],
        ),
    }
}

fn find<'a>(files: &'a [File], path: &str) -> Option<&'a File> {
    let named = |path: &str| files.iter().find(|file| file.path == path);
    named(path).or_else(|| (!path.starts_with(HASHED)).then(|| named(INDEX)).flatten())
}

fn answer(file: &'static File, headers: &HeaderMap) -> Response {
    let keep = match file.path.starts_with(HASHED) {
        true => FOR_EVER,
        false => ASK_EACH_TIME,
    };
    let about = [(header::ETAG, file.etag), (header::CACHE_CONTROL, keep)];
    if has(headers, file.etag) {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    (about, [(header::CONTENT_TYPE, file.content_type)], file.bytes).into_response()
}

/// Whether the asker has it already (RFC 9110 section 13.1.2).
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    known
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == etag || tag == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[File] = &[
        File {
            path: "/index.html",
            content_type: "text/html",
            etag: "\"1\"",
            bytes: b"index",
        },
        File {
            path: "/assets/a-1.js",
            content_type: "text/javascript",
            etag: "\"2\"",
            bytes: b"script",
        },
    ];

    fn told(file: &'static File, known: &str) -> (StatusCode, String) {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, known.parse().unwrap());
        let answer = answer(file, &headers);
        let keep = answer.headers()[header::CACHE_CONTROL].to_str().unwrap();
        (answer.status(), keep.to_owned())
    }

    #[test]
    fn paths_of_the_page_are_its_index_and_missing_files_are_missing() {
        for (path, found) in [
            ("/", Some(INDEX)),
            ("/vms/web1", Some(INDEX)),
            ("/index.html", Some(INDEX)),
            ("/assets/a-1.js", Some("/assets/a-1.js")),
            ("/assets/a-2.js", None),
            ("/../../etc/passwd", Some(INDEX)),
        ] {
            assert_eq!(find(TWO, path).map(|f| f.path), found, "{path}");
        }
    }

    #[test]
    fn hashed_files_are_kept_for_ever_and_others_are_asked_for_each_time() {
        assert_eq!(told(&TWO[0], "\"0\""), (StatusCode::OK, ASK_EACH_TIME.into()));
        assert_eq!(told(&TWO[0], "\"1\"").0, StatusCode::NOT_MODIFIED);
        assert_eq!(
            told(&TWO[1], "\"9\", W/\"2\""),
            (StatusCode::NOT_MODIFIED, FOR_EVER.into())
        );
    }
}
