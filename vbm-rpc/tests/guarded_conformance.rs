//! The whole contract again, with a Redis user of least rights for each member and every entry sealed.

mod common;
mod guarded;

mod redis_with_users_and_seals {
    use super::{
        common::{RedisServer, left_out},
        guarded::Guarded,
    };
    use std::sync::Arc;

    vbm_rpc::transport_conformance! {
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        async {
            if left_out() {
                return None;
            }
            let server = RedisServer::start().await;
            let transport: Arc<dyn vbm_rpc::Transport> = Arc::new(Guarded::with_operator(&server).await);
            Some((transport, server))
        }
    }
}
