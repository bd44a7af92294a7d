//! Leases and elections.

use super::{PATIENCE, boot, end, path, soon, until, worker};
use crate::{
    Bus, CallOptions, Context, EpochGate, Fate, Member, MemoryEpochGate, Method, Route, Router,
    election::{Campaign, CampaignOptions, Elections},
    transport::Transport,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use vbm_core::{Epoch, ErrorKind, Name};

/// The lease of these tests: long enough for a busy machine.
const LEASE: Duration = Duration::from_secs(2);

/// A command that only the leader may give.
struct Command;
impl Method for Command {
    const NAME: &'static str = "conformance.command";
    type Request = ();
    type Reply = u64;
}

fn name() -> Name {
    "control".parse().expect("a name")
}

fn options() -> CampaignOptions {
    CampaignOptions::default().lease(LEASE)
}

/// Somebody who obeys and remembers.
async fn obedient(transport: &Arc<dyn Transport>, at: &str, gate: &Arc<MemoryEpochGate>) -> Bus {
    let router = Router::new()
        .with_epoch_gate(gate.clone())
        .method::<Command, _, _>(|context: Context, ()| async move { Ok(context.epoch.0) });
    let router = Elections::new().remember(name(), gate.clone()).serve(router);
    let member = Member::new(path(at), boot()).service(worker());
    let attached = Bus::attach(transport.clone(), member, router).await;
    attached.expect("a worker attaches")
}

async fn candidate(transport: &Arc<dyn Transport>, at: &str) -> (Bus, Campaign) {
    let member = Member::new(path(at), boot());
    let bus = Bus::attach(transport.clone(), member, Router::new())
        .await
        .expect("a candidate attaches");
    let campaign = Elections::new().campaign(&bus, name(), options());
    (bus, campaign.expect("it may stand"))
}

async fn command(bus: &Bus, to: &str, options: CallOptions) -> Result<u64, Fate> {
    let route = Route::node(path(to));
    soon(
        "a command",
        bus.call::<Command>(&route, &(), options.deadline(PATIENCE)),
    )
    .await
}

fn stale(result: Result<u64, Fate>) -> bool {
    matches!(result, Err(Fate::Refused(error)) if error.kind() == ErrorKind::Stale)
}

/// A lease is one holder's until it is given back, and each taking has a higher epoch.
pub async fn a_lease_has_one_holder_and_each_taking_a_higher_epoch(transport: Arc<dyn Transport>) {
    let bus = super::client(&transport, "a").await;
    let (leases, name) = (bus.leases(), name());
    let first = leases
        .take(&name, "x", LEASE)
        .await
        .expect("an answer")
        .expect("it is free");
    assert_eq!(leases.take(&name, "y", LEASE).await, Ok(None));
    assert_eq!(
        leases.take(&name, "x", LEASE).await,
        Ok(Some(first)),
        "the same again"
    );
    assert_eq!(leases.renew(&name, "x", first, LEASE).await, Ok(Some(first)));
    assert_eq!(leases.renew(&name, "y", first, LEASE).await, Ok(None));
    let holder = leases.look(&name).await.expect("an answer").expect("it is held");
    assert_eq!((holder.holder.as_str(), holder.epoch), ("x", first));
    assert!(holder.left <= LEASE);
    leases.release(&name, "y").await.expect("an answer");
    assert!(
        leases.look(&name).await.expect("an answer").is_some(),
        "only its holder gives it back"
    );
    leases.release(&name, "x").await.expect("an answer");
    assert_eq!(leases.look(&name).await, Ok(None));
    let second = leases
        .take(&name, "y", LEASE)
        .await
        .expect("an answer")
        .expect("it is free");
    assert!(second > first, "{second} after {first}");
    let other: Name = "other".parse().expect("a name");
    assert_eq!(
        leases.take(&other, "x", LEASE).await,
        Ok(Some(Epoch(1))),
        "another name is another lease"
    );
    end([bus]).await;
}

/// A lease that is not renewed is free again, and its holder cannot renew it then.
pub async fn a_lease_runs_out(transport: Arc<dyn Transport>) {
    let bus = super::client(&transport, "a").await;
    let (leases, name) = (bus.leases(), name());
    let short = Duration::from_millis(500);
    let first = leases
        .take(&name, "x", short)
        .await
        .expect("an answer")
        .expect("it is free");
    let taken = async {
        loop {
            if let Some(epoch) = leases.take(&name, "y", LEASE).await.expect("an answer") {
                return epoch;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(soon("a lease runs out", taken).await > first);
    assert_eq!(leases.renew(&name, "x", first, LEASE).await, Ok(None));
    end([bus]).await;
}

/// Of two candidates one leads; when it stops, the other leads at once, under a higher epoch.
pub async fn a_leader_that_stops_hands_over_at_once(transport: Arc<dyn Transport>) {
    let (one, mut first) = candidate(&transport, "a").await;
    let term = soon("an election", first.elected()).await.expect("it leads");
    let (two, mut second) = candidate(&transport, "b").await;
    sleep(LEASE * 2).await;
    assert!(term.is_valid(), "a leader that renews leads on");
    let began = Instant::now();
    soon("a hand-over", first.stop()).await;
    assert!(!term.is_valid());
    soon("the end of a term", term.lost()).await;
    let next = soon("an election", second.elected()).await.expect("it leads");
    assert!(began.elapsed() < LEASE, "{:?}", began.elapsed());
    assert!(next.epoch() > term.epoch());
    drop(second);
    end([one, two]).await;
}

/// A leader whose bus is shut down gives its lease back.
pub async fn a_shutdown_hands_over_too(transport: Arc<dyn Transport>) {
    let (one, mut first) = candidate(&transport, "a").await;
    let term = soon("an election", first.elected()).await.expect("it leads");
    let (two, mut second) = candidate(&transport, "b").await;
    let began = Instant::now();
    end([one]).await;
    let next = soon("an election", second.elected()).await.expect("it leads");
    assert!(began.elapsed() < LEASE, "{:?}", began.elapsed());
    assert!(next.epoch() > term.epoch() && !term.is_valid());
    end([two]).await;
}

/// A leader that is killed has a successor when its lease has run out, and not before.
pub async fn a_killed_leader_has_a_successor_after_its_lease(transport: Arc<dyn Transport>) {
    let (one, mut first) = candidate(&transport, "a").await;
    let term = soon("an election", first.elected()).await.expect("it leads");
    let (two, mut second) = candidate(&transport, "b").await;
    soon("a crash", one.kill()).await;
    let left = term.valid_for();
    let began = Instant::now();
    let next = soon("an election", second.elected()).await.expect("it leads");
    if let Some(left) = left {
        assert!(began.elapsed() >= left, "the dead one's term had {left:?} left");
    }
    assert!(next.epoch() > term.epoch());
    end([two]).await;
}

/// A successor tells its epoch to all who are present before it leads: the old leader's next command is refused.
pub async fn a_stale_leader_is_refused_by_those_who_never_heard_a_command_of_its_successor(
    transport: Arc<dyn Transport>,
) {
    let gate = Arc::new(MemoryEpochGate::default());
    let obeys = obedient(&transport, "w", &gate).await;
    let (one, mut first) = candidate(&transport, "a").await;
    let term = soon("an election", first.elected()).await.expect("it leads");
    assert_eq!(command(&one, "w", term.options()).await, Ok(term.epoch().0));
    soon("a hand-over", first.stop()).await;
    let (two, mut second) = candidate(&transport, "b").await;
    let next = soon("an election", second.elected()).await.expect("it leads");
    assert!(
        stale(command(&one, "w", term.options()).await),
        "fenced before the first command"
    );
    assert_eq!(command(&two, "w", next.options()).await, Ok(next.epoch().0));
    drop(second);
    end([one, two, obeys]).await;
}

/// A member has seen a higher epoch than the lease's server knows: the new leader is above it.
pub async fn an_epoch_is_above_all_that_members_saw(transport: Arc<dyn Transport>) {
    let gate = Arc::new(MemoryEpochGate::new(Epoch(40)));
    let obeys = obedient(&transport, "w", &gate).await;
    let (one, mut first) = candidate(&transport, "a").await;
    let term = soon("an election", first.elected()).await.expect("it leads");
    assert_eq!(term.epoch(), Epoch(41));
    assert_eq!(command(&one, "w", term.options()).await, Ok(41));
    drop(first);
    end([one, obeys]).await;
}

/// A leader that is refused as stale stands down, and its next term is above what the member saw.
pub async fn who_stands_down_leads_again_above_what_was_seen(transport: Arc<dyn Transport>) {
    let gate = Arc::new(MemoryEpochGate::default());
    let obeys = obedient(&transport, "w", &gate).await;
    let (one, mut first) = candidate(&transport, "a").await;
    let term = soon("an election", first.elected()).await.expect("it leads");
    // Somebody else's command came in between, from a time that was forgotten.
    gate.admit(Epoch(90)).await.expect("it is higher");
    assert!(stale(command(&one, "w", term.options()).await));
    first.stand_down();
    soon("the end of a term", term.lost()).await;
    let next = soon("an election", first.elected())
        .await
        .expect("it leads again");
    assert!(next.epoch() > Epoch(90), "{}", next.epoch());
    assert_eq!(command(&one, "w", next.options()).await, Ok(next.epoch().0));
    until("the old term is over", || !term.is_valid()).await;
    drop(first);
    end([one, obeys]).await;
}
