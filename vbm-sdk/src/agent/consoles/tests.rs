//! Sessions over a bus in memory: what a reader gets, whatever becomes of its stream.

use super::*;
use tokio::io::DuplexStream;
use vbm_rpc::{Bus, Context, Fate, ItemStream, Member, Route, Router, StreamOptions, memory::MemoryBus};

const PATIENCE: Duration = Duration::from_secs(30);

/// Sessions on a node, and somebody who reads them from elsewhere.
struct Node {
    consoles: Arc<OpenConsoles>,
    node: Bus,
    reader: Bus,
}

/// A reader, and how far it has come.
struct Reading {
    stream: ItemStream<ConsoleOpen>,
    got: Vec<u8>,
}

impl Node {
    async fn new() -> Self {
        let hub = MemoryBus::new();
        let consoles = Arc::new(OpenConsoles::default());
        let served = consoles.clone();
        let answer =
            move |_context: Context, request: ConsoleOpenRequest, mut items: ItemSink<ConsoleOpen>| {
                let consoles = served.clone();
                async move { consoles.read(request.resume.unwrap(), &mut items).await }
            };
        let router = Router::new().stream::<ConsoleOpen, _, _>(answer);
        let attach = async |path: &str, router| {
            let member = Member::new(path.parse().unwrap(), "boot");
            Bus::attach(hub.clone(), member, router).await.unwrap()
        };
        Self {
            node: attach("lab/n1", router).await,
            reader: attach("lab/c1", Router::new()).await,
            consoles,
        }
    }

    /// A session, and the hypervisor's side of it.
    fn open(&self, buffer: usize) -> (ConsoleId, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(buffer);
        (self.consoles.insert(Box::new(ours)).unwrap(), theirs)
    }

    async fn read(&self, console: ConsoleId, from: u64) -> Reading {
        let request = ConsoleOpenRequest {
            vm: VmId::from_uuid(uuid::Uuid::from_u128(1)),
            kind: ConsoleKind::Serial,
            resume: Some(ConsoleResume { console, from }),
        };
        let route = Route::node("lab/n1".parse().unwrap());
        let options = StreamOptions::new().idle(PATIENCE);
        Reading {
            stream: self.reader.stream(&route, &request, options).await.unwrap(),
            got: Vec::new(),
        }
    }

    async fn end(self) {
        self.reader.shutdown().await;
        self.node.shutdown().await;
    }
}

impl Reading {
    /// Reads on until there are so many bytes; gives what ended it otherwise.
    async fn until(&mut self, count: usize) -> std::result::Result<(), Option<Fate>> {
        while self.got.len() < count {
            match self.stream.next().await {
                Some(Ok(ConsoleItem::Open(_))) => {}
                Some(Ok(ConsoleItem::Said(bytes))) => {
                    assert!((1..=CONSOLE_ITEM_MAX_BYTES).contains(&bytes.0.len()));
                    self.got.extend(bytes.0);
                }
                Some(Err(fate)) => return Err(Some(fate)),
                None => return Err(None),
            }
        }
        Ok(())
    }

    fn come_to(&self) -> u64 {
        self.got.len() as u64
    }
}

fn refusal(end: std::result::Result<(), Option<Fate>>) -> Error {
    match end {
        Err(Some(Fate::Refused(error))) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_broke_is_read_on_from_where_it_was_and_no_byte_is_lost_or_doubled() {
    let node = Node::new().await;
    let (console, mut vm) = node.open(4096);
    vm.write_all(b"one").await.unwrap();
    let mut first = node.read(console, 0).await;
    first.until(3).await.unwrap();
    // Taken from the hypervisor, and perhaps never read.
    vm.write_all(b"two").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let come_to = first.come_to();
    drop(first);
    vm.write_all(b"three").await.unwrap();
    let mut second = node.read(console, come_to).await;
    second.until(8).await.unwrap();
    assert_eq!(second.got, b"twothree");
    // From any byte, also within what came at once.
    let mut third = node.read(console, 1).await;
    third.until(10).await.unwrap();
    assert_eq!(third.got, b"netwothree");
    // Whoever read before is told, and not that it ended.
    let error = refusal(second.until(9).await);
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    drop(vm);
    assert_eq!(third.until(11).await, Err(None));
    // The end is there for who missed it.
    assert_eq!(node.read(console, 11).await.until(1).await, Err(None));
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn all_that_a_reader_can_have_missed_is_kept_and_what_is_older_is_refused() {
    let node = Node::new().await;
    let (console, mut vm) = node.open(4 * TAIL_MAX_BYTES);
    let said: Vec<u8> = (0..=250).cycle().take(4 * TAIL_MAX_BYTES).collect();
    vm.write_all(&said).await.unwrap();
    let mut first = node.read(console, 0).await;
    first.until(TAIL_MAX_BYTES).await.unwrap();
    // The node has given as much as the window lets it, and no more: the hypervisor waits.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let come_to = first.got.len();
    drop(first);
    let mut second = node.read(console, come_to as u64).await;
    second.until(said.len() - come_to).await.unwrap();
    assert!(second.got == said[come_to..], "a byte was lost or doubled");
    for nonsense in [0, said.len() as u64 + 1, u64::MAX] {
        let error = refusal(node.read(console, nonsense).await.until(1).await);
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.why().contains("are kept"), "{error}");
    }
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn closing_ends_a_reader_that_waits_and_lets_go_of_the_hypervisor_at_once() {
    let node = Node::new().await;
    let (console, mut vm) = node.open(16);
    let mut reading = node.read(console, 0).await;
    let (end, ()) = tokio::join!(reading.until(1), async {
        tokio::task::yield_now().await;
        node.consoles.close(console);
    });
    assert_eq!(end, Err(None));
    assert_eq!(
        vm.read(&mut [0]).await.unwrap(),
        0,
        "the hypervisor's side is open"
    );
    let gone = refusal(node.read(console, 0).await.until(1).await);
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    node.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_reads_is_closed_and_one_that_is_read_in_silence_is_not() {
    let node = Node::new().await;
    let (console, mut vm) = node.open(16);
    let mut reading = node.read(console, 0).await;
    let silence = tokio::time::timeout(10 * IDLE_MAX, reading.until(1));
    // Its own patience is the only thing that ends it.
    assert!(matches!(silence.await, Ok(Err(Some(Fate::Lost { .. })))));
    let mut reading = node.read(console, 0).await;
    vm.write_all(b"x").await.unwrap();
    reading.until(1).await.unwrap();
    tokio::time::advance(IDLE_MAX).await;
    node.consoles.sweep();
    vm.write_all(b"y").await.unwrap();
    reading.until(2).await.unwrap();
    drop(reading);
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.consoles.sweep();
    assert!(node.consoles.get(console).is_ok());
    tokio::time::sleep(IDLE_MAX).await;
    node.consoles.sweep();
    assert_eq!(vm.read(&mut [0]).await.unwrap(), 0);
    node.end().await;
}
