//! Streams: order, window, ends.

use super::*;
use crate::{Fate, ItemSink, ItemStream, StreamMethod, StreamOptions, limits};

/// What a stream is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Wanted {
    items: u64,
    /// How long each item is.
    bytes: usize,
    /// Refuses after the items.
    refuse: bool,
    /// Waits for the end of its reader after the items.
    hang: bool,
}

/// Gives items with growing numbers, and says at the end how many there were.
struct Feed;
impl Method for Feed {
    const NAME: &'static str = "conformance.feed";
    const FENCED: bool = false;
    type Request = Wanted;
    type Reply = u64;
}
impl StreamMethod for Feed {
    type Item = (u64, String);
}

fn wanted(items: u64) -> Wanted {
    Wanted {
        items,
        bytes: 10,
        refuse: false,
        hang: false,
    }
}

/// Counts the items it has sent in `count`, and its ends by a failed send or a cancel in `cancelled`.
async fn feed(seen: Seen, context: Context, want: Wanted, mut items: ItemSink<Feed>) -> Result<u64, Error> {
    seen.started.fetch_add(1, Ordering::SeqCst);
    let body = "x".repeat(want.bytes);
    for n in 0..want.items {
        if let Err(error) = items.send(&(n, body.clone())).await {
            seen.cancelled.fetch_add(1, Ordering::SeqCst);
            return Err(error);
        }
        seen.count.fetch_add(1, Ordering::SeqCst);
    }
    if want.hang {
        context.cancelled.cancelled().await;
        seen.cancelled.fetch_add(1, Ordering::SeqCst);
    }
    match want.refuse {
        true => Err(Error::new(ErrorKind::Conflict, "no", "because", "do this")),
        false => Ok(want.items),
    }
}

async fn feeder(transport: &Arc<dyn Transport>, at: &str, seen: &Seen) -> Bus {
    let member = Member::new(path(at), boot()).service(worker());
    let shared = seen.clone();
    let streams =
        Router::new().stream::<Feed, _, _>(move |context: Context, want: Wanted, items: ItemSink<Feed>| {
            feed(shared.clone(), context, want, items)
        });
    Bus::attach(transport.clone(), member, router(&path(at), seen).merge(streams))
        .await
        .expect("a worker attaches")
}

async fn open(bus: &Bus, route: &Route, want: Wanted) -> ItemStream<Feed> {
    soon(
        "opening",
        bus.stream::<Feed>(route, &want, StreamOptions::new().idle(PATIENCE)),
    )
    .await
    .expect("a stream")
}

fn sent(seen: &Seen) -> u64 {
    seen.count.load(Ordering::SeqCst)
}

/// Reads on to the end; checks that no item is missing or out of order.
async fn read_on(stream: &mut ItemStream<Feed>, mut next: u64) -> (u64, Option<Fate>) {
    while let Some(item) = soon("an item", stream.next()).await {
        match item {
            Ok((n, _)) => assert_eq!(n, next, "items come in order"),
            Err(fate) => {
                assert!(
                    soon("the end", stream.next()).await.is_none(),
                    "a fate is the last"
                );
                return (next, Some(fate));
            }
        }
        next += 1;
    }
    (next, None)
}

/// A stream gives its items in order, none missing, and then its end; from a node and from any member.
pub async fn a_stream_gives_its_items_in_order_and_then_its_end(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        feeder(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    ];
    for (route, items) in [
        (Route::node(path("eu/n1")), 1_000),
        (Route::any(path("eu"), worker()), 500),
        (Route::node(path("eu/n1")), 0),
    ] {
        let mut stream = open(&buses[1], &route, wanted(items)).await;
        assert_eq!(stream.end(), None, "no end before the end");
        assert_eq!(read_on(&mut stream, 0).await, (items, None));
        assert_eq!((stream.end(), stream.end()), (Some(items), None));
    }
    assert_eq!(sent(&seen), 1_500);
    end(buses).await;
}

/// Without a read no more than the window is sent; reading lets the rest come.
pub async fn a_slow_reader_stops_the_sender(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let mut stream = open(&buses[1], &n1, wanted(500)).await;
    until("the window is full", || {
        sent(&seen) == limits::STREAM_WINDOW_ITEMS
    })
    .await;
    sleep(SHORT).await;
    assert_eq!(
        sent(&seen),
        limits::STREAM_WINDOW_ITEMS,
        "it waits for its reader"
    );
    for n in 0..100 {
        let item = soon("an item", stream.next()).await.expect("an item");
        assert_eq!(item.expect("an item").0, n);
        assert!(
            sent(&seen) <= n + 1 + limits::STREAM_WINDOW_ITEMS,
            "never more than a window ahead"
        );
    }
    assert_eq!(read_on(&mut stream, 100).await, (500, None));
    end(buses).await;
}

/// The window is one of bytes too.
pub async fn large_items_stop_the_sender_by_their_bytes(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let bytes = 200 * 1024;
    let most = limits::STREAM_WINDOW_BYTES.div_ceil(bytes);
    let want = Wanted {
        bytes: usize::try_from(bytes).expect("a length"),
        ..wanted(20)
    };
    let mut stream = open(&buses[1], &n1, want).await;
    until("the window is full", || sent(&seen) == most).await;
    sleep(SHORT).await;
    assert_eq!(sent(&seen), most, "it waits for its reader");
    assert_eq!(read_on(&mut stream, 0).await, (20, None));
    end(buses).await;
}

/// A refusal of the handler ends the stream, behind all items it has sent.
pub async fn a_stream_that_fails_ends_in_its_refusal_behind_its_items(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let want = Wanted {
        refuse: true,
        ..wanted(200)
    };
    let mut stream = open(&buses[1], &n1, want).await;
    let expected = Error::new(ErrorKind::Conflict, "no", "because", "do this");
    assert_eq!(
        read_on(&mut stream, 0).await,
        (200, Some(Fate::Refused(expected)))
    );
    assert_eq!(stream.end(), None);
    end(buses).await;
}

/// A stream to nobody fails in the sending; one of a method that is not known there is a `NoRoute` too.
pub async fn a_stream_to_nobody_is_no_route_at_once(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let buses = [
        serve(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let nowhere = buses[1].stream::<Feed>(&Route::node(path("n9")), &wanted(1), StreamOptions::new());
    let fate = soon("a stream to nobody", nowhere).await.err();
    assert!(matches!(fate, Some(Fate::NoRoute { .. })), "{fate:?}");
    let mut unknown = open(&buses[1], &Route::node(path("n1")), wanted(1)).await;
    let fate = soon("the end", unknown.next()).await;
    assert!(matches!(fate, Some(Err(Fate::NoRoute { .. }))), "{fate:?}");
    end(buses).await;
}

/// `Echo`, asked for as a stream.
struct EchoItems;
impl Method for EchoItems {
    const NAME: &'static str = Echo::NAME;
    type Request = Ask;
    type Reply = (NodePath, String);
}
impl StreamMethod for EchoItems {
    type Item = String;
}

/// A call of a method that streams, and a stream of a method that does not, are refused; neither handler is started.
pub async fn a_stream_and_a_call_are_not_taken_for_each_other(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let invalid = |fate: &Fate| matches!(fate, Fate::Refused(e) if e.kind() == ErrorKind::InvalidInput);
    let call = buses[1].call::<Feed>(&n1, &wanted(1), within(PATIENCE));
    let fate = soon("a call", call).await.expect_err("no reply");
    assert!(invalid(&fate), "{fate:?}");
    let stream = buses[1].stream::<EchoItems>(&n1, &ask("x"), StreamOptions::new());
    let mut stream = soon("opening", stream).await.expect("a stream");
    let fate = soon("the end", stream.next()).await;
    assert!(matches!(&fate, Some(Err(fate)) if invalid(fate)), "{fate:?}");
    let all = Route::all(NodePath::root(), worker());
    let fate = buses[1]
        .stream::<Feed>(&all, &wanted(1), StreamOptions::new())
        .await
        .err();
    assert!(matches!(&fate, Some(fate) if invalid(fate)), "{fate:?}");
    assert_eq!(seen.started(), 0);
    end(buses).await;
}

/// Dropping a stream tells its sender, whether it waits for credit or for something else.
pub async fn a_dropped_stream_stops_its_sender(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    for (round, want) in [
        wanted(u64::MAX),
        Wanted {
            hang: true,
            ..wanted(3)
        },
    ]
    .into_iter()
    .enumerate()
    {
        let mut stream = open(&buses[1], &n1, want).await;
        assert!(matches!(soon("an item", stream.next()).await, Some(Ok((0, _)))));
        drop(stream);
        until("the sender is told", || {
            seen.cancelled.load(Ordering::SeqCst) == round + 1
        })
        .await;
    }
    echo(&buses[1], &n1, "still there").await;
    end(buses).await;
}

/// A stream whose sender dies ends in bounded time, in `Lost`, with who had begun; what had arrived is read first.
pub async fn a_stream_whose_sender_dies_ends_in_bounded_time(transport: Arc<dyn Transport>) {
    let seen = Seen::default();
    let (dying, bus) = (
        feeder(&transport, "eu/n1", &seen).await,
        client(&transport, "c1").await,
    );
    let want = Wanted {
        hang: true,
        ..wanted(5)
    };
    let mut stream = open(&bus, &Route::any(path("eu"), worker()), want).await;
    assert!(matches!(soon("an item", stream.next()).await, Some(Ok((0, _)))));
    assert!(matches!(soon("an item", stream.next()).await, Some(Ok((1, _)))));
    dying.kill().await;
    let begin = tokio::time::Instant::now();
    let (items, fate) = read_on(&mut stream, 2).await;
    match fate {
        Some(Fate::Lost {
            started: true,
            worker,
            ..
        }) => assert_eq!(worker, Some(path("eu/n1"))),
        other => panic!("{other:?}"),
    }
    assert!(items <= 5, "{items}");
    let most = limits::BEAT_EVERY * (limits::SILENT_BEATS + 8);
    assert!(begin.elapsed() < most, "{:?}", begin.elapsed());
    end([bus]).await;
}

/// A sender that shuts down ends its streams with a word.
pub async fn a_stream_whose_sender_shuts_down_ends_at_once(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let (feeding, bus) = (
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    );
    let mut stream = open(&bus, &n1, wanted(u64::MAX)).await;
    until("the window is full", || {
        sent(&seen) == limits::STREAM_WINDOW_ITEMS
    })
    .await;
    soon("a shutdown", feeding.shutdown()).await;
    let begin = tokio::time::Instant::now();
    let (_, fate) = read_on(&mut stream, 0).await;
    assert!(
        matches!(&fate, Some(Fate::Refused(e)) if e.kind() == ErrorKind::Cancelled),
        "{fate:?}"
    );
    assert!(begin.elapsed() < limits::BEAT_EVERY);
    end([bus]).await;
}

/// A sender whose reader died is told in bounded time, although nobody says a word.
pub async fn a_sender_whose_reader_died_is_told(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let (feeding, bus) = (
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    );
    let _waiting = open(&bus, &n1, wanted(u64::MAX)).await;
    let want = Wanted {
        hang: true,
        ..wanted(1)
    };
    let _hanging = open(&bus, &n1, want).await;
    until("both are under way", || {
        sent(&seen) == limits::STREAM_WINDOW_ITEMS + 1
    })
    .await;
    bus.kill().await;
    until("both are told", || seen.cancelled.load(Ordering::SeqCst) == 2).await;
    end([feeding]).await;
}

/// A stream that gives nothing for its idle time ends, and its sender is told.
pub async fn a_stream_that_stands_still_ends_at_its_idle_time(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let want = Wanted {
        hang: true,
        ..wanted(3)
    };
    let options = StreamOptions::new().idle(SHORT);
    let mut stream = soon("opening", buses[1].stream::<Feed>(&n1, &want, options))
        .await
        .expect("a stream");
    let (items, fate) = read_on(&mut stream, 0).await;
    assert_eq!(items, 3);
    assert!(
        matches!(&fate, Some(Fate::Lost { started: true, why, .. }) if why.contains("no item came")),
        "{fate:?}"
    );
    until("the sender is told", || {
        seen.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
    end(buses).await;
}

/// A reader that does something else for a while, longer than silence lasts, finds its stream as it was.
pub async fn a_reader_that_rests_keeps_its_stream(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let options = StreamOptions::new().idle(Duration::from_secs(2));
    let mut stream = soon("opening", buses[1].stream::<Feed>(&n1, &wanted(300), options))
        .await
        .expect("a stream");
    sleep(limits::BEAT_EVERY * (limits::SILENT_BEATS + 3)).await;
    assert_eq!(read_on(&mut stream, 0).await, (300, None));
    end(buses).await;
}

/// Items wait for their readers and not in the way of others: calls between the same two members pass.
pub async fn calls_pass_while_many_streams_stand_unread(transport: Arc<dyn Transport>) {
    let (seen, n1) = (Seen::default(), Route::node(path("n1")));
    let buses = [
        feeder(&transport, "n1", &seen).await,
        client(&transport, "c1").await,
    ];
    let mut streams = Vec::new();
    for _ in 0..limits::STREAMS_READ_MAX {
        streams.push(open(&buses[1], &n1, wanted(100)).await);
    }
    let windows = limits::STREAM_WINDOW_ITEMS * u64::try_from(streams.len()).expect("a number");
    until("all windows are full", || sent(&seen) == windows).await;
    let one_more = buses[1].stream::<Feed>(&n1, &wanted(1), StreamOptions::new());
    let fate = soon("one more", one_more).await.err();
    assert!(matches!(fate, Some(Fate::Overloaded { .. })), "{fate:?}");
    for _ in 0..50 {
        echo(&buses[1], &n1, "between the streams").await;
    }
    for stream in &mut streams {
        assert_eq!(read_on(stream, 0).await, (100, None));
    }
    drop(streams);
    let mut again = open(&buses[1], &n1, wanted(1)).await;
    assert_eq!(
        read_on(&mut again, 0).await,
        (1, None),
        "their places are free again"
    );
    end(buses).await;
}
