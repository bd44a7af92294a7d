//! What the user of a member may do on Redis.

use super::world::*;
use crate::common::{left_out, words::*};
use tokio::time::sleep;
use vbm_core::NodePath;
use vbm_rpc::{Lane, Route, TicketState, redis::acl::Reach};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_of_a_node_does_what_it_needs_and_nothing_else() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, c1) = (world.serve("eu/r1/n1", "boot-1").await, world.client().await);
    let mut user = as_user(&world, "eu/r1/evil", &Reach::Answers).await;
    let forbidden = [
        // Another's queue, inbox, presence.
        "XREAD STREAMS vbm:v1:{eu/r1}:n:eu/r1/n1 0",
        "XRANGE vbm:v1:{eu/r1}:n:eu/r1/n1 - +",
        "XREAD STREAMS vbm:v1:{eu/r1}:r:eu/r1/c1:boot-c 0",
        "XADD vbm:v1:{eu/r1}:n:eu/r1/n1 * f x",
        "XADD vbm:v1:{eu/r1}:g:eu/r1:controller * f x",
        "XADD vbm:v1:{eu/r1}:g:eu/r1:controller:ctl * f x",
        "XADD vbm:v1:{eu/r1}:n:eu/r1/n1:ctl * f x",
        "XREAD STREAMS vbm:v1:{eu/r1}:n:eu/r1/n1:ctl 0",
        "XREADGROUP GROUP workers x STREAMS vbm:v1:{eu/r1}:g:eu/r1:controller:ctl >",
        // Another's recorded answers and tickets, and who leads.
        "HGET vbm:v1:{eu/r1}:idem:n:eu/r1/n1:1 i",
        "HSET vbm:v1:{eu/r1}:idem:n:eu/r1/n1:1 i x",
        "HSET vbm:v1:{eu/r1}:idem:g:eu/r1:controller:1 i x",
        "HSET vbm:v1:{eu/r1}:t:n:eu/r1/n1:00000000000000000000000000000001 e x",
        "HGET vbm:v1:{eu/r1}:t:n:eu/r1/n1:00000000000000000000000000000001 e",
        "SET vbm:v1:{e:lead}:lease x",
        "SET vbm:v1:{e:lead}:epoch 9",
        "XRANGE vbm:v1:{eu/r1}:dlq - +",
        "XDEL vbm:v1:{eu/r1}:dlq 1-1",
        "SMEMBERS vbm:v1:dlqs",
        "XDEL vbm:v1:{eu/r1}:n:eu/r1/n1 1-1",
        "XTRIM vbm:v1:{eu/r1}:n:eu/r1/n1 MAXLEN 0",
        "DEL vbm:v1:{eu/r1}:n:eu/r1/n1",
        "DEL vbm:v1:{eu/r1}:r:eu/r1/c1:boot-c",
        "UNLINK vbm:v1:{eu/r1}:n:eu/r1/n1",
        "PEXPIRE vbm:v1:{eu/r1}:n:eu/r1/n1 1",
        "RENAME vbm:v1:{eu/r1}:n:eu/r1/n1 x",
        "SET vbm:v1:{eu/r1}:p:eu/r1/n1 x",
        "ZADD vbm:v1:{eu/r1}:l:eu/r1:controller 1 eu/r1/evil",
        "ZREM vbm:v1:{eu/r1}:l:eu/r1:controller eu/r1/c1",
        "XGROUP CREATE vbm:v1:{eu/r1}:g:eu/r1:controller g 0",
        // Through a script.
        "EVAL return(redis.call('DEL','vbm:v1:{eu/r1}:n:eu/r1/n1')) 0",
        "EVAL return(redis.call('XRANGE',KEYS[1],'-','+')) 1 vbm:v1:{eu/r1}:n:eu/r1/n1",
        "EVAL return(redis.call('KEYS','*')) 0",
        // Other keys, and the server.
        "GET other",
        "SET other x",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "ACL SETUSER x on",
        "CLIENT KILL TYPE normal",
        "CLIENT LIST",
        "CLIENT PAUSE 100",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "FAILOVER",
        "MONITOR",
        "SAVE",
        "BGREWRITEAOF",
        "MODULE LIST",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "SLOWLOG GET",
        "PUBLISH x y",
        "SUBSCRIBE x",
        "MIGRATE h 1 k 0 1",
        "OBJECT ENCODING vbm:v1:{eu/r1}:n:eu/r1/n1",
        "DUMP vbm:v1:{eu/r1}:n:eu/r1/n1",
        "COPY vbm:v1:{eu/r1}:n:eu/r1/n1 vbm:v1:{eu/r1}:n:eu/r1/evil",
    ];
    for line in forbidden {
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        let answer: redis::RedisResult<redis::Value> = command.query_async(&mut user).await;
        let error = answer.expect_err(line).to_string();
        assert!(
            ["NOPERM", "permissions", "can't run this command", "can't access"]
                .iter()
                .any(|word| error.contains(word)),
            "{line}: {error}"
        );
    }
    // What it was not given, it was not given by the wider reach either; but it may ask.
    let mut asking = as_user(&world, "eu/r1/evil", &Reach::Everybody).await;
    let added: redis::RedisResult<String> = redis::cmd("XADD")
        .arg(N1)
        .arg("*")
        .arg("f")
        .arg("x")
        .query_async(&mut asking)
        .await;
    assert!(added.is_ok());
    for command in ["DEL", "TTL", "GET"] {
        let denied: redis::RedisResult<redis::Value> =
            redis::cmd(command).arg(N1).query_async(&mut asking).await;
        assert!(denied.is_err(), "{command}");
    }
    until("the unsealed entry was refused", async || {
        world.bus.refused_for("missing") == 1
    })
    .await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    c1.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_life_on_the_bus_is_never_denied_anything() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let (n1, n2, c1) = (
        world.serve("eu/r1/n1", "boot-1").await,
        world.serve("eu/r1/deep/x/n2", "boot-1").await,
        world.client().await,
    );
    for route in [node(), any(), Route::any(NodePath::root(), worker())] {
        assert_eq!(call(&c1, &route).await, Ok(42));
        let control = within(PATIENCE).lane(Lane::Control);
        assert_eq!(c1.call::<Double>(&route, &21, control).await, Ok(42));
        // Kept, found, ended, forgotten.
        let keyed = || within(PATIENCE).idempotency_key(format!("{route}"));
        for _ in 0..2 {
            assert_eq!(c1.call::<Double>(&route, &21, keyed()).await, Ok(42));
        }
        let ticket = c1
            .submit::<Double>(&route, &21, within(PATIENCE).into())
            .await
            .unwrap();
        let handle = c1.ticket(&ticket).unwrap();
        assert_eq!(handle.wait(PATIENCE).await.unwrap(), TicketState::Ended(Ok(42)));
        handle.forget().await.unwrap();
    }
    let steer = within(PATIENCE).lane(Lane::Control);
    let mut steered = c1
        .broadcast::<Double>(&Route::all(NodePath::root(), worker()), &21, steer)
        .await
        .unwrap();
    while let Some((_, reply)) = steered.next().await {
        assert_eq!(reply, Ok(42));
    }
    let everywhere = Route::all(NodePath::root(), worker());
    let mut replies = c1
        .broadcast::<Double>(&everywhere, &21, within(PATIENCE))
        .await
        .unwrap();
    let mut answered = 0;
    while replies.next().await.is_some() {
        answered += 1;
    }
    assert_eq!(answered, 2);
    assert!(call(&c1, &Route::node(path("eu/r1/gone"))).await.is_err());
    // A death, so that its work and its consumer are looked after; two heartbeats and more.
    n2.kill().await;
    sleep(vbm_rpc::limits::PRESENCE_TTL + vbm_rpc::limits::HEARTBEAT_EVERY * 2).await;
    assert_eq!(call(&c1, &node()).await, Ok(42));
    c1.shutdown().await;
    n1.shutdown().await;
    let denied: Vec<redis::Value> = redis::cmd("ACL")
        .arg("LOG")
        .query_async(&mut world.server.raw().await)
        .await
        .unwrap();
    // CONFIG GET would tell passwords too: a member may not, and its look at the start goes without.
    let denied: Vec<_> = denied
        .iter()
        .filter(|entry| !format!("{entry:?}").contains("config|get"))
        .collect();
    assert!(denied.is_empty(), "{denied:?}");
}
