//! Handlers without their types.

use super::{Context, too_large, wrong_verb};
use crate::{Fate, ItemSink, Method, StreamMethod, codec::Codec, limits};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::future::Future;
use vbm_core::{Error, ErrorKind};

/// A handler without its types: bytes in, bytes or an error out.
pub(crate) trait Handler: Send + Sync {
    fn handle(&self, context: Context, codec: Codec, body: &Bytes)
    -> BoxFuture<'static, Result<Bytes, Fate>>;
}

/// A handler of one reply.
pub(super) struct Typed<M, F> {
    pub(super) handler: F,
    pub(super) method: std::marker::PhantomData<fn(M)>,
}

impl<M, F, Fut> Handler for Typed<M, F>
where
    M: Method,
    F: Fn(Context, M::Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<M::Reply, Error>> + Send + 'static,
{
    fn handle(
        &self,
        context: Context,
        codec: Codec,
        body: &Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Fate>> {
        let request = match read_request::<M>(codec, body) {
            Ok(request) => request,
            Err(error) => return Box::pin(std::future::ready(Err(Fate::Refused(error)))),
        };
        let running = (self.handler)(context, request);
        Box::pin(async move {
            let reply = running.await.map_err(Fate::Refused)?;
            write_reply::<M>(codec, &reply).map_err(Fate::Refused)
        })
    }
}

/// A handler of a stream.
pub(super) struct Streaming<M, F> {
    pub(super) handler: F,
    pub(super) method: std::marker::PhantomData<fn(M)>,
}

impl<M, F, Fut> Handler for Streaming<M, F>
where
    M: StreamMethod,
    F: Fn(Context, M::Request, ItemSink<M>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<M::Reply, Error>> + Send + 'static,
{
    fn handle(
        &self,
        context: Context,
        codec: Codec,
        body: &Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Fate>> {
        let opened = match (&context.outlet, read_request::<M>(codec, body)) {
            (Some(outlet), Ok(request)) => Ok((ItemSink::new(outlet.clone(), codec), request)),
            (None, _) => Err(wrong_verb(M::NAME, true)),
            (_, Err(error)) => Err(error),
        };
        let (items, request) = match opened {
            Ok(opened) => opened,
            Err(error) => return Box::pin(std::future::ready(Err(Fate::Refused(error)))),
        };
        let running = (self.handler)(context, request, items);
        Box::pin(async move {
            let reply = running.await.map_err(Fate::Refused)?;
            write_reply::<M>(codec, &reply).map_err(Fate::Refused)
        })
    }
}

pub(super) fn read_request<M: Method>(codec: Codec, body: &Bytes) -> Result<M::Request, Error> {
    codec.decode::<M::Request>(body).map_err(|why| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("the request of {} cannot be read", M::NAME),
            why,
            "run the same version of VBM on both sides, or versions next to each other",
        )
    })
}

fn write_reply<M: Method>(codec: Codec, reply: &M::Reply) -> Result<Bytes, Error> {
    let body = codec.encode(reply).map_err(|why| {
        Error::internal(format!("the reply of {} cannot be written", M::NAME), why)
            .with_outcome(vbm_core::Outcome::Applied)
    })?;
    if body.len() > limits::PAYLOAD_MAX_BYTES {
        return Err(too_large(&format!("the reply of {}", M::NAME), body.len())
            .with_outcome(vbm_core::Outcome::Applied));
    }
    Ok(body)
}
