//! The conformance suite on Valkey, where it is installed.

mod common;

use common::sets::{Server, VALKEY, installed, namespace};
use std::sync::{Arc, Weak};
use tokio::sync::Mutex;
use vbm_rpc::redis::RedisTransport;

async fn shared() -> Option<Arc<Server>> {
    static SHARED: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());
    if common::left_out() || !installed(VALKEY) {
        return None;
    }
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(Server::start(VALKEY, "").await);
    *shared = Arc::downgrade(&server);
    Some(server)
}

mod conformance {
    use super::{RedisTransport, namespace, shared};

    vbm_rpc::transport_conformance! {
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        async {
            let server = shared().await?;
            let config = server.config().namespace(&namespace());
            let transport = RedisTransport::connect(config).await.expect("Valkey is fit");
            Some((transport.into(), server))
        }
    }
}
