//! gRPC with `tonic`: unary calls on one channel. No broker between: a bound, not a peer of the same kind.

use super::load::{Measured, Shape, measure};
use crate::harness::{
    fault::{Fault, Outcome},
    ground::Ground,
};
use bytes::{Buf, BufMut, Bytes};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{
    Request, Response, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, http},
    server::{NamedService, UnaryService},
    transport::{Channel, Server},
};

const START_WITHIN: Duration = Duration::from_secs(10);
const PATH: &str = "/bench.Echo/Call";

pub(super) async fn round(ground: &Ground, shape: Shape) -> Outcome<Measured> {
    let at = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    // Dropped at the end: then the server ends.
    let mut servers = JoinSet::new();
    servers.spawn(Server::builder().add_service(Echo).serve(at));
    let endpoint = Channel::from_shared(format!("http://{at}"))?.tcp_nodelay(true);
    let begin = Instant::now();
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(error) if begin.elapsed() > START_WITHIN => return Err(error.into()),
            Err(_not_yet) => sleep(Duration::from_millis(10)).await,
        }
    };
    let body = Bytes::from(vec![b'x'; shape.payload]);
    measure(ground, None, shape.flights, move |_lane| {
        let (channel, body) = (channel.clone(), body.clone());
        async move {
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await?;
            let path = http::uri::PathAndQuery::from_static(PATH);
            let sent = body.len();
            let reply = client.unary(Request::new(body), path, Raw).await?;
            match reply.into_inner().len() == sent {
                true => Ok(()),
                false => Err(Fault::new("gRPC answered something else")),
            }
        }
    })
    .await
}

/// Bodies as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[derive(Clone, Copy)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(Self, request).await) })
    }
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;
    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}
