//! Dead letters of a bus with seals: who may put them back, and what nobody can make an operator send.

use super::world::*;
use crate::{
    common::{RedisServer, left_out, words::*},
    guarded::Guarded,
};
use redis::AsyncCommands;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use vbm_core::{Error, ErrorKind};
use vbm_rpc::{
    Bus, Context, Member, Method, Route, Router, Transport,
    admin::{Admin, DeadLetter},
    auth::{Bound, KeyPair, Keys, Ring, Security, Trust, Trusted, seal_for_any},
    envelope::Kind,
    redis::RedisTransport,
};

const LETTERS: &str = "vbm:v1:{eu/r1}:dlq";

/// Panics until it is told not to.
struct Touchy;
impl Method for Touchy {
    const NAME: &'static str = "test.touchy";
    type Request = ();
    type Reply = ();
}

struct Scene {
    server: RedisServer,
    bus: Arc<Guarded>,
    panics: Arc<AtomicBool>,
    ran: Arc<AtomicUsize>,
}

impl Scene {
    async fn set() -> Self {
        let server = RedisServer::start().await;
        let bus = Arc::new(Guarded::with_operator(&server).await);
        Self {
            server,
            bus,
            panics: Arc::new(AtomicBool::new(true)),
            ran: Arc::default(),
        }
    }

    async fn member(&self, at: &str) -> Bus {
        let (panics, ran) = (self.panics.clone(), self.ran.clone());
        let router = Router::new().method::<Touchy, _, _>(move |_context: Context, ()| {
            let (panics, ran) = (panics.clone(), ran.clone());
            async move {
                assert!(!panics.load(Ordering::SeqCst), "on request of a test");
                ran.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        });
        let transport: Arc<dyn Transport> = self.bus.clone();
        let member = Member::new(path(at), "boot-1").service(worker());
        Bus::attach(transport, member, router).await.unwrap()
    }

    fn admin(&self) -> Arc<dyn Admin> {
        self.bus.admin().unwrap()
    }

    /// An operator with these keys, or none.
    async fn other_operator(&self, security: Security) -> Arc<dyn Admin> {
        let config = self.server.config().security(security);
        RedisTransport::connect(config).await.unwrap().admin().unwrap()
    }

    async fn letters(&self, count: usize) -> Vec<DeadLetter> {
        let mut found = Vec::new();
        until("dead letters", async || {
            found = self.admin().dead_letters(&path("/")).await.unwrap();
            found.len() == count
        })
        .await;
        found
    }
}

fn refused(result: Result<(), Error>) -> Error {
    result.expect_err("it is not replayed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_who_relays_replays_the_letters_of_a_sealed_bus_and_nobody_else_does() {
    if left_out() {
        return;
    }
    let scene = Scene::set().await;
    let (n1, c1) = (scene.member("eu/r1/n1").await, scene.member("eu/r1/c1").await);
    let routes = [node(), Route::any(path("eu/r1/n1"), worker())];
    for route in &routes {
        c1.cast::<Touchy>(route, &(), within(PATIENCE)).await.unwrap();
    }
    let letters = scene.letters(2).await;
    scene.panics.store(false, Ordering::SeqCst);
    // Without a key; with one that nobody knows; with that of a member, which does not relay.
    let strange = Security::On(Keys::generate().unwrap(), scene.bus.trust());
    let member = Security::On(scene.bus.keys(&path("eu/r1/c1")), scene.bus.trust());
    for (security, kind) in [
        (Security::Off, ErrorKind::Unsupported),
        (strange, ErrorKind::PermissionDenied),
        (member, ErrorKind::PermissionDenied),
    ] {
        let admin = scene.other_operator(security).await;
        for letter in &letters {
            let error = refused(admin.replay(&letter.id, None).await);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("relays"), "{error}");
        }
    }
    // One who believes itself to relay, and whom the members do not believe: its entry is refused there.
    let liar = Keys::generate().unwrap();
    let mut ring: Ring = (*scene.bus.trust().ring()).clone();
    ring.add(path("liar"), Trusted::new(*liar.active().public()).relays())
        .unwrap();
    let admin = scene.other_operator(Security::On(liar, Trust::fixed(ring))).await;
    let kept = scene.letters(2).await;
    admin.replay(&kept[0].id, Some(PATIENCE)).await.unwrap();
    until("the members refuse it", async || {
        scene.bus.refused_for("unknown-key") == 1
    })
    .await;
    assert_eq!(scene.ran.load(Ordering::SeqCst), 0);
    // And the one whom all trust for that.
    scene.panics.store(true, Ordering::SeqCst);
    c1.cast::<Touchy>(&routes[0], &(), within(PATIENCE))
        .await
        .unwrap();
    let letters = scene.letters(2).await;
    scene.panics.store(false, Ordering::SeqCst);
    for letter in &letters {
        scene.admin().replay(&letter.id, Some(PATIENCE)).await.unwrap();
    }
    until("both ran", async || scene.ran.load(Ordering::SeqCst) == 2).await;
    scene.letters(0).await;
    assert_eq!(
        scene.bus.refused_for("wrong-caller") + scene.bus.refused_for("wrong-epoch"),
        0
    );
    n1.shutdown().await;
    c1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_made_up_letter_is_not_replayed() {
    if left_out() {
        return;
    }
    let scene = Scene::set().await;
    let (n1, c1) = (scene.member("eu/r1/n1").await, scene.member("eu/r1/c1").await);
    let evil = KeyPair::generate().unwrap();
    scene
        .bus
        .ring
        .add(&path("eu/r1/evil"), Trusted::new(*evil.public()));
    scene.panics.store(false, Ordering::SeqCst);
    let mut raw = scene.server.raw().await;
    let _: usize = raw.sadd("vbm:v1:dlqs", "eu/r1").await.unwrap();
    let command = frame(Kind::Cast, "eu/r1/c1", "test.touchy").encode();
    let frames = packed(&[command]);
    let now = 1_000_000;
    // As `by` would vouch for a letter of that queue.
    let letter = |queue: &str, by: &str, key: &KeyPair| {
        let worker = format!("{by}|boot-1");
        let about = format!("{queue}\n1-1\nno reason\n1\n{worker}");
        let bound = Bound {
            stream: LETTERS,
            scope: &about,
            service: "",
            frames: &frames,
        };
        let seal = seal_for_any(key, speaker(by, 1, now), &bound);
        let text = |text: &str| text.as_bytes().to_vec();
        vec![
            ("f".to_owned(), frames.clone()),
            ("q".to_owned(), text(queue)),
            ("reason".to_owned(), text("no reason")),
            ("n".to_owned(), text("1")),
            ("by".to_owned(), text(&worker)),
            ("e".to_owned(), text("1-1")),
            ("sealed".to_owned(), text("1")),
            ("a".to_owned(), seal),
        ]
    };
    let with = |mut fields: Fields, more: Fields| {
        fields.extend(more);
        fields
    };
    let unsealed: Fields = letter(N1, "eu/r1/evil", &evil)
        .into_iter()
        .filter(|(name, _)| name != "a")
        .collect();
    let mut changed = letter(N1, "eu/r1/evil", &evil);
    *field(&mut changed, "reason") = b"another".to_vec();
    // A proof that the forger signed itself: it may speak in its own name only.
    let proof = Bound {
        stream: ANY,
        scope: "",
        service: "",
        frames: &frames,
    };
    let proof = seal_for_any(&evil, speaker("eu/r1/evil", 2, now), &proof);
    let proof = vec![("pf".to_owned(), frames.clone()), ("pa".to_owned(), proof)];
    let tries = [
        ("missing", unsealed),
        ("wrong-seal", changed),
        ("unknown-key", letter(N1, "eu/r1/n1", &evil)),
        // Of a queue that is not its own.
        ("no-say", letter(N1, "eu/r1/evil", &evil)),
        ("wrong-caller", with(letter(ANY, "eu/r1/evil", &evil), proof)),
    ];
    for (reason, fields) in tries {
        let mut add = redis::cmd("XADD");
        add.arg(LETTERS).arg("*");
        for (name, value) in &fields {
            add.arg(name).arg(value);
        }
        let _: String = add.query_async(&mut raw).await.unwrap();
        let found = scene.letters(1).await;
        let error = refused(scene.admin().replay(&found[0].id, None).await);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{reason}: {error}");
        assert_eq!(
            scene.bus.operator_refused().get(reason),
            Some(&1),
            "{reason}: {error}"
        );
        scene.admin().drop_letter(&found[0].id).await.unwrap();
    }
    // A letter for a service without a proof.
    let mut add = redis::cmd("XADD");
    add.arg(LETTERS).arg("*");
    for (name, value) in letter(ANY, "eu/r1/evil", &evil) {
        add.arg(name).arg(value);
    }
    let _: String = add.query_async(&mut raw).await.unwrap();
    let found = scene.letters(1).await;
    let error = refused(scene.admin().replay(&found[0].id, None).await);
    assert!(error.why().contains("proof"), "{error}");
    assert_eq!(scene.ran.load(Ordering::SeqCst), 0);
    n1.shutdown().await;
    c1.shutdown().await;
}
