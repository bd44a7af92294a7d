//! The bus as a tower service, and a caller with layers in front of it.

use super::{Bus, Flight, call::exchange, decode, fates::note_unreadable, refused, replied, write};
use crate::{
    CallOptions, Fate, Method, Route,
    codec::Codec,
    envelope::Kind,
    service::{Outgoing, Replied, Verb},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::{
    future::Future,
    task::{Context, Poll},
};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt as _, util::BoxCloneSyncService};

/// The bus as a service: the innermost one of every [`Caller`]. Always ready; the limits of the bus are fates.
#[derive(Clone, Debug)]
pub struct BusService {
    bus: Bus,
}

/// Calls through layers. Cheap to clone as its layers are.
///
/// ```
/// # use std::time::Duration;
/// use vbm_rpc::{Bus, layers::{DeadlineLayer, RetryLayer, TraceLayer}};
/// # use vbm_rpc::{CallOptions, Fate, Method, Route};
/// # struct Ping; impl Method for Ping { const NAME: &'static str = "ping"; type Request = u32; type Reply = u32; }
/// # async fn f(bus: Bus, route: Route) -> Result<u32, Fate> {
/// // From the inside out: what is added last sees a call first.
/// let caller = bus.layered(TraceLayer::new()).layered(RetryLayer::default()).layered(DeadlineLayer::new());
/// caller.call::<Ping>(&route, &1, CallOptions::default()).await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Caller<S = BusService> {
    bus: Bus,
    service: S,
}

/// A caller whose layers are not part of its type.
pub type BoxedCaller = Caller<BoxCloneSyncService<Outgoing, Replied, Fate>>;

impl Bus {
    /// The bus as a tower service.
    pub fn service(&self) -> BusService {
        BusService { bus: self.clone() }
    }

    /// A caller with one layer; more are added with [`Caller::layered`].
    pub fn layered<L: Layer<BusService>>(&self, layer: L) -> Caller<L::Service> {
        self.caller().layered(layer)
    }

    /// A caller without layers: calls as the bus does.
    pub fn caller(&self) -> Caller {
        Caller {
            bus: self.clone(),
            service: self.service(),
        }
    }

    /// A request for [`Bus::service`]. Its deadline begins now.
    ///
    /// # Errors
    /// [`Fate::Refused`] when it cannot be written.
    pub fn outgoing<M: Method>(
        &self,
        verb: Verb,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
    ) -> Result<Outgoing, Fate> {
        Ok(Outgoing {
            verb,
            route: route.clone(),
            method: M::NAME,
            body: write::<M>(options.codec, request)?,
            id: self.shared.ids.next(),
            attempt: 1,
            deadline: Instant::now() + options.deadline,
            options,
        })
    }

    fn start(&self, request: Outgoing) -> Result<Flight, Fate> {
        let kind = match request.verb {
            Verb::Cast => Kind::Cast,
            Verb::Call if matches!(request.route, Route::All { .. }) => {
                return Err(refused(
                    "a call goes to one member",
                    "the route names all",
                    "use broadcast",
                ));
            }
            Verb::Call => Kind::Request,
        };
        let left = request.deadline.saturating_duration_since(Instant::now());
        let options = request.options.deadline(left);
        let again = Some((request.id, request.attempt));
        self.launch_body(
            kind,
            &request.route,
            request.method,
            request.body,
            &options,
            again,
        )
    }
}

impl Service<Outgoing> for BusService {
    type Response = Replied;
    type Error = Fate;
    type Future = BoxFuture<'static, Result<Replied, Fate>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Fate>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Outgoing) -> Self::Future {
        let verb = request.verb;
        let flight = self.bus.start(request);
        match verb {
            Verb::Call => Box::pin(async move {
                let (ended, _way) = exchange(&mut flight?, None).await;
                replied(ended?)
            }),
            Verb::Cast => {
                let from = self.bus.shared.me.path.clone();
                Box::pin(async move {
                    let mut flight = flight?;
                    flight.send().await?;
                    flight.over();
                    Ok(Replied::new(from, Codec::MessagePack, Bytes::new()))
                })
            }
        }
    }
}

impl<S> Caller<S> {
    /// The same caller with one layer more: what is added last sees a call first.
    pub fn layered<L: Layer<S>>(self, layer: L) -> Caller<L::Service> {
        Caller {
            bus: self.bus,
            service: layer.layer(self.service),
        }
    }

    /// The bus below the layers, for what has no layers: broadcasts, presence, shutdown.
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The layers and the bus as one service.
    pub fn into_service(self) -> S {
        self.service
    }
}

impl<S> Caller<S>
where
    S: Service<Outgoing, Response = Replied, Error = Fate> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    /// The same caller with its layers out of its type: one allocation a call, and easy to keep in a struct.
    pub fn boxed(self) -> BoxedCaller {
        Caller {
            bus: self.bus,
            service: BoxCloneSyncService::new(self.service),
        }
    }
}

impl<S> Caller<S>
where
    S: Service<Outgoing, Response = Replied, Error = Fate> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    /// Like [`Bus::call`], through the layers.
    ///
    /// # Errors
    /// The [`Fate`] of the call.
    ///
    /// # Cancel safety
    /// As for [`Bus::call`].
    pub fn call<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
    ) -> impl Future<Output = Result<M::Reply, Fate>> + Send + use<M, S> {
        let outgoing = self.bus.outgoing::<M>(Verb::Call, route, request, options);
        let service = self.service.clone();
        let counters = self.bus.shared.counters.clone();
        async move {
            let replied = service.oneshot(outgoing?).await?;
            decode::<M>(&replied).inspect_err(|fate| note_unreadable(&counters.bad, &replied.from, fate))
        }
    }

    /// Like [`Bus::cast`], through the layers.
    ///
    /// # Errors
    /// The [`Fate`] of the sending.
    ///
    /// # Cancel safety
    /// As for [`Bus::cast`].
    pub fn cast<M: Method>(
        &self,
        route: &Route,
        request: &M::Request,
        options: CallOptions,
    ) -> impl Future<Output = Result<(), Fate>> + Send + use<M, S> {
        let outgoing = self.bus.outgoing::<M>(Verb::Cast, route, request, options);
        let service = self.service.clone();
        async move { service.oneshot(outgoing?).await.map(drop) }
    }
}
