//! The way out of one attachment: what the bus asks is put into the writer's queue, or asked over its connection.

use super::{
    attachment::{Core, QUEUE_MAX_BYTES},
    keys,
    last_word::LastWord,
    lease,
    op::{Note, Op, SendOp, Target},
    presence, results,
};
use crate::{
    BusError, Durability, MemberInfo,
    admin::Stage,
    election::{LeaseAnswer, LeaseOp},
    envelope,
    transport::{Destination, Link, ResultStore, SendError, SendWatch, Sent},
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use vbm_core::{Name, NodePath};

/// What a frame counts besides its own bytes.
const FRAME_OVERHEAD_BYTES: usize = 512;
/// The most members to whose control lanes a broadcast of that lane goes; to more it goes through the streams of their
/// shards, as any other.
const CONTROL_FANOUT_MAX: usize = 4_096;
/// How long closing waits for the last writes and for the clean-up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The room that a frame takes in the queue.
pub(super) fn room_for(frame: &Bytes) -> u32 {
    u32::try_from((frame.len() + FRAME_OVERHEAD_BYTES).min(QUEUE_MAX_BYTES)).unwrap_or(u32::MAX)
}

pub(super) struct RedisLink {
    pub(super) core: Arc<Core>,
}

impl RedisLink {
    /// Puts one frame into the writer's queue and waits until Redis has it.
    async fn enqueue(
        &self,
        target: Target,
        frame: Bytes,
        until: Instant,
        durability: Durability,
    ) -> Result<(), SendError> {
        let late = || {
            SendError::Expired(format!(
                "the queue of this process ({} does not answer)",
                self.core.server
            ))
        };
        let permit = match timeout_at(
            until,
            self.core
                .room_of(&target)
                .clone()
                .acquire_many_owned(room_for(&frame)),
        )
        .await
        {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(SendError::Closed),
            Err(_late) => return Err(late()),
        };
        let (done, answer) = oneshot::channel();
        let claim = Arc::new(LastWord::new());
        let op = SendOp::new(target, frame, until, permit).answering(done, claim.clone());
        if !self.core.push_send(op, durability) {
            return Err(SendError::Closed);
        }
        let mut answer = std::pin::pin!(answer);
        match timeout_at(until, &mut answer).await {
            Ok(answer) => answer.unwrap_or(Err(SendError::Closed)),
            Err(_late) if claim.give_up() => Err(late()),
            Err(_late) => {
                // Either it was answered this very moment, or it is on its way to Redis.
                answer.try_recv().unwrap_or_else(|_| {
                    Err(SendError::Uncertain(format!(
                        "{} did not say that it has it",
                        self.core.server
                    )))
                })
            }
        }
    }

    async fn send_to_all(
        &self,
        scope: &NodePath,
        service: &crate::Service,
        frame: Bytes,
        until: Instant,
        durability: Durability,
    ) -> Result<Sent, SendError> {
        let members =
            self.core
                .alive(scope, Some(service))
                .await
                .map_err(|error| match until <= Instant::now() {
                    true => SendError::Expired(error.to_string()),
                    false => SendError::Overloaded(error.to_string()),
                })?;
        if members.is_empty() {
            return Err(SendError::NoRoute(format!(
                "no live member below {scope} offers {service}"
            )));
        }
        if envelope::is_control(&frame) && members.len() <= CONTROL_FANOUT_MAX {
            self.steer_all(&members, &frame, until, durability).await?;
            return Ok(Sent { members });
        }
        let shards: BTreeSet<NodePath> = members.iter().map(keys::shard).collect();
        let sends = shards.into_iter().map(|shard| {
            let target = Target::Shard {
                shard,
                scope: scope.clone(),
                service: service.clone(),
            };
            self.enqueue(target, frame.clone(), until, durability)
        });
        for sent in futures::future::join_all(sends).await {
            sent?;
        }
        Ok(Sent { members })
    }

    /// Gives a broadcast of the control lane to each member's own: the stream of a shard is read behind bulk. Who is gone
    /// meanwhile is one of the silent.
    async fn steer_all(
        &self,
        members: &[NodePath],
        frame: &Bytes,
        until: Instant,
        durability: Durability,
    ) -> Result<(), SendError> {
        let sends = members.iter().map(|path| {
            let target = Target::Control(path.clone());
            self.enqueue(target, frame.clone(), until, durability)
        });
        let (mut kept, mut failed) = (false, None);
        for sent in futures::future::join_all(sends).await {
            match sent {
                Ok(()) => kept = true,
                Err(error @ SendError::NoRoute(_)) => failed = failed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        match failed {
            Some(error) if !kept => Err(error),
            _ => Ok(()),
        }
    }

    fn push(
        &self,
        target: Result<Target, (NodePath, crate::Service)>,
        frame: Bytes,
        ttl: Duration,
        permit: tokio::sync::OwnedSemaphorePermit,
        patient: bool,
    ) {
        let until = Instant::now() + ttl;
        let target = match target {
            Ok(target) => target,
            Err((scope, service)) => {
                let link = Self {
                    core: self.core.clone(),
                };
                drop(permit);
                self.core.spawn(async move {
                    if let Err(error) = link
                        .send_to_all(&scope, &service, frame, until, Durability::Fast)
                        .await
                    {
                        tracing::debug!(?error, "a broadcast that nobody waits for was not sent");
                    }
                });
                return;
            }
        };
        let op = SendOp::new(target, frame, until, permit).patient(patient);
        // Fails only when the writer has ended.
        let _ended = !self.core.push_send(op, Durability::Fast);
    }

    fn try_push(&self, to: Destination, frame: Bytes, ttl: Duration, patient: bool) -> bool {
        let target = Target::of(to, &frame);
        let room = target
            .as_ref()
            .map_or(&self.core.room, |target| self.core.room_of(target));
        match room.clone().try_acquire_many_owned(room_for(&frame)) {
            Ok(permit) if !self.core.stop.is_cancelled() => {
                self.push(target, frame, ttl, permit, patient);
                true
            }
            _ => false,
        }
    }
}

#[async_trait]
impl Link for RedisLink {
    async fn send(&self, to: &Destination, frame: Bytes, ttl: Duration) -> Result<Sent, SendError> {
        self.send_durable(to, frame, ttl, Durability::Fast).await
    }

    async fn send_durable(
        &self,
        to: &Destination,
        frame: Bytes,
        ttl: Duration,
        durability: Durability,
    ) -> Result<Sent, SendError> {
        let until = Instant::now() + ttl;
        match Target::of(to.clone(), &frame) {
            Ok(target) => {
                let enqueued = self.enqueue(target, frame, until, durability).await;
                enqueued.map(|()| Sent::default())
            }
            Err((scope, service)) => self.send_to_all(&scope, &service, frame, until, durability).await,
        }
    }

    fn try_send(&self, to: &Destination, frame: &Bytes, until: Instant, watch: &Arc<dyn SendWatch>) -> bool {
        let Ok(target) = Target::of(to.clone(), frame) else {
            return false;
        };
        let room = self.core.room_of(&target).clone();
        let Ok(permit) = room.try_acquire_many_owned(room_for(frame)) else {
            return false;
        };
        let op = SendOp::new(target, frame.clone(), until, permit).watched(watch.clone());
        self.core.push_send(op, Durability::Fast)
    }

    async fn post(&self, to: Destination, frame: Bytes, ttl: Duration) {
        let target = Target::of(to, &frame);
        let room = target
            .as_ref()
            .map_or(&self.core.room, |target| self.core.room_of(target));
        if let Ok(permit) = room.clone().acquire_many_owned(room_for(&frame)).await {
            self.push(target, frame, ttl, permit, false);
        }
    }

    fn try_post(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        self.try_push(to, frame, ttl, false)
    }

    fn try_resend(&self, to: Destination, frame: Bytes, ttl: Duration) -> bool {
        self.try_push(to, frame, ttl, true)
    }

    fn note(&self, call: uuid::Uuid, stage: Stage, detail: String) {
        let me = &self.core.me;
        self.core.push(Op::Note(Note {
            call,
            stage,
            by: format!("{} ({})", me.path, me.boot_id),
            detail,
        }));
    }

    async fn members(&self, scope: &NodePath) -> Result<Vec<MemberInfo>, BusError> {
        presence::members(&self.core, scope).await
    }

    async fn lease(&self, name: &Name, op: &LeaseOp) -> Result<LeaseAnswer, BusError> {
        lease::ask(&self.core, name, op).await
    }

    fn generations(&self) -> watch::Receiver<u64> {
        self.core.generations.subscribe()
    }

    fn ended(&self) -> watch::Receiver<Option<BusError>> {
        self.core.ended.subscribe()
    }

    async fn retire(&self) {
        self.core.retired.cancel();
        if timeout(CLOSE_TIMEOUT, presence::retire(&self.core))
            .await
            .is_err()
        {
            tracing::warn!("presence could not be taken back; it runs out by itself");
        }
    }

    async fn close(&self) {
        let (done, flushed) = oneshot::channel();
        let last = async {
            if self.core.queues.ops.send(Op::Flushed(done)).is_ok() && flushed.await.is_ok() {
                presence::forget(&self.core).await;
            }
        };
        if timeout(CLOSE_TIMEOUT, last).await.is_err() {
            tracing::warn!(
                "{} did not answer while the bus was closed; its queues run out by themselves",
                self.core.server
            );
        }
        self.core.room.close();
        self.core.urgent_room.close();
        self.core.stop.cancel();
        self.core.tasks.wait().await;
    }

    fn sever(&self) {
        // First of all: who retires in peace takes back that a request was begun, and a crash must not.
        self.core.stop.cancel();
        self.core.retired.cancel();
        self.core.urgent_room.close();
        self.core.room.close();
    }

    fn results(&self) -> Option<Arc<dyn ResultStore>> {
        let core = self.core.clone();
        Some(Arc::new(results::RedisResults { core }))
    }
}
