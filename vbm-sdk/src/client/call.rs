//! One call: what is asked, until when, under which key.

use super::{Client, path::ApiPath, transport};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt},
};
use hyper::{Method, Request, header};
use serde::{Serialize, de::DeserializeOwned};
use std::{future::IntoFuture, marker::PhantomData, time::Duration};
use vbm_core::{Error, ErrorKind, Outcome};

use crate::api::{List, ListQuery};

/// How long a call may take when nobody says otherwise.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// The header that makes a repeated request harmless: the server replays the answer it gave to the key.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A call that was described and not sent yet: `.await` sends it.
///
/// # Errors
/// Awaiting gives the server's error; [`ErrorKind::Unavailable`] when the server cannot be reached or the
/// connection breaks; [`ErrorKind::DeadlineExceeded`] when the answer does not come in time. Where the
/// request could have changed something before that, the outcome is [`Outcome::Unknown`].
///
/// # Cancel safety
/// Dropping the future closes its connection. It does not take back what the server has begun: to be sure,
/// repeat the call with the same [`key`](Self::key), or look at the object.
#[must_use = "a call is sent when it is awaited"]
#[derive(Debug)]
pub struct Call<T> {
    client: Client,
    method: Method,
    path: Result<ApiPath, Error>,
    body: Result<Option<Bytes>, Error>,
    deadline: Duration,
    key: Option<String>,
    decode: fn(Bytes) -> Result<T, Error>,
}

impl<T: Send + 'static> Call<T> {
    pub(super) fn new(
        client: &Client,
        method: Method,
        path: Result<ApiPath, Error>,
        decode: fn(Bytes) -> Result<T, Error>,
    ) -> Self {
        let key = (!method.is_safe()).then(|| client.new_key());
        Self {
            client: client.clone(),
            method,
            path,
            body: Ok(None),
            deadline: client.deadline(),
            key,
            decode,
        }
    }

    pub(super) fn with_json(mut self, body: &impl Serialize) -> Self {
        self.body = serde_json::to_vec(body)
            .map(|bytes| Some(bytes.into()))
            .map_err(|e| Error::internal("a request cannot be written as JSON", e.to_string()));
        self
    }

    pub(super) fn with_query(mut self, name: &str, value: Option<impl ToString>) -> Self {
        self.path = self.path.map(|path| path.query(name, value));
        self
    }

    /// How long it may take, from connecting to the end of the answer. [`CALL_DEADLINE`] when not said.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The idempotency key of a call that changes something; a new one is made up when not said. Calls that only read have none.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        if !self.method.is_safe() {
            self.key = Some(key.into());
        }
        self
    }

    async fn send(self) -> Result<T, Error> {
        let reads_only = self.method.is_safe();
        let body = self.body?;
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.path?.into_text())
            .header(header::HOST, "vbmd");
        if let Some(key) = &self.key {
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(body.map_or_else(transport::empty, transport::full))
            .map_err(|e| bad_request(&e))?;
        let endpoint = self.client.endpoint();
        let exchange = async {
            let answer = transport::send(endpoint, request).await?;
            answer.bytes(&endpoint.place(), reads_only).await
        };
        match tokio::time::timeout(self.deadline, exchange).await {
            Ok(body) => (self.decode)(body?),
            Err(_passed) => Err(too_late(reads_only, self.deadline)),
        }
    }
}

impl<T: Send + 'static> IntoFuture for Call<T> {
    type Output = Result<T, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().boxed()
    }
}

/// A span for people: whole seconds, where it has any.
pub(super) fn spoken(span: Duration) -> String {
    if span.as_millis() < 1_000 {
        return format!("{} ms", span.as_millis());
    }
    format!("{} s", span.as_secs_f64().round())
}

/// The answer never came: what was asked may have been done.
pub(super) fn too_late(reads_only: bool, deadline: Duration) -> Error {
    let (fix, outcome) = if reads_only {
        ("look whether vbmd is busy, then try again", Outcome::NotApplied)
    } else {
        ("look whether it was done before you repeat it", Outcome::Unknown)
    };
    Error::new(
        ErrorKind::DeadlineExceeded,
        "vbmd did not answer in time",
        format!("no answer came within {}", spoken(deadline)),
        fix,
    )
    .with_outcome(outcome)
}

/// A key or path that no HTTP header can carry.
pub(super) fn bad_request(error: &hyper::http::Error) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "the request cannot be sent",
        error.to_string(),
        "use an idempotency key of visible ASCII characters",
    )
}

pub(super) fn json<T: DeserializeOwned>(bytes: Bytes) -> Result<T, Error> {
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(
            ErrorKind::Corrupt,
            "the answer of vbmd cannot be understood",
            error.to_string(),
            "use a `vbm` and a `vbmd` of the same version: compare with `vbm version`",
        )
    })
}

pub(super) fn nothing(_: Bytes) -> Result<(), Error> {
    Ok(())
}

pub(super) fn raw(bytes: Bytes) -> Result<Bytes, Error> {
    Ok(bytes)
}

/// A list that was described and not read yet: [`all`](Self::all), [`stream`](Self::stream) or [`page`](Self::page) read it.
#[must_use = "a list is read by all, stream or page"]
#[derive(Debug)]
pub struct Listing<T> {
    client: Client,
    noun: &'static str,
    path: Result<ApiPath, Error>,
    query: ListQuery,
    items: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + Send + 'static> Listing<T> {
    pub(super) fn new(client: &Client, noun: &'static str) -> Self {
        Self::at(client, noun, Ok(ApiPath::of(noun)))
    }

    /// A list that stands below something else.
    pub(super) fn at(client: &Client, noun: &'static str, path: Result<ApiPath, Error>) -> Self {
        Self {
            client: client.clone(),
            noun,
            path,
            query: ListQuery::default(),
            items: PhantomData,
        }
    }

    /// At most so many items a page, 1 to 1,000.
    pub const fn limit(mut self, items: usize) -> Self {
        self.query.limit = Some(items);
        self
    }

    /// Only from this place on: `next` of the page before.
    pub fn after(mut self, place: impl Into<String>) -> Self {
        self.query.after = Some(place.into());
        self
    }

    pub(super) fn only_network(mut self, network: impl Into<String>) -> Self {
        self.query.network = Some(network.into());
        self
    }

    pub(super) fn only_vm(mut self, vm: impl Into<String>) -> Self {
        self.query.vm = Some(vm.into());
        self
    }

    /// Reads one page.
    pub fn page(&self) -> Call<List<T>> {
        let query = self.query.clone();
        let path = self.path.clone().map(|path| {
            path.query("after", query.after)
                .query("limit", query.limit)
                .query("network", query.network)
                .query("vm", query.vm)
        });
        Call::new(&self.client, Method::GET, path, json)
    }

    /// Reads all of it, page by page. What changes meanwhile may or may not be in it.
    ///
    /// # Errors
    /// Those of [`Call`].
    pub async fn all(mut self) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        loop {
            let page = self.page().await?;
            all.extend(page.items);
            if !self.turn(page.next)? {
                return Ok(all);
            }
        }
    }

    /// Reads it page by page as the stream is polled. Ends after the first failure.
    pub fn stream(self) -> BoxStream<'static, Result<T, Error>> {
        let pages = stream::try_unfold(Some(self), |listing| async move {
            let Some(mut listing) = listing else {
                return Ok(None);
            };
            let page = listing.page().await?;
            let more = listing.turn(page.next)?;
            Ok(Some((page.items, more.then_some(listing))))
        });
        pages
            .flat_map(|page: Result<Vec<T>, Error>| match page {
                Ok(items) => stream::iter(items.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .boxed()
    }

    /// Goes to the next page; `false` at the end.
    fn turn(&mut self, next: Option<String>) -> Result<bool, Error> {
        match next {
            None => Ok(false),
            Some(next) if self.query.after.as_ref() == Some(&next) => Err(Error::internal(
                format!("the list of {} does not end", self.noun),
                format!("the page after '{next}' says that it is its own next one"),
            )),
            Some(next) => {
                self.query.after = Some(next);
                Ok(true)
            }
        }
    }
}
