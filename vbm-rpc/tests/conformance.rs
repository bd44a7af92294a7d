//! The conformance suite on every transport of this crate.

mod common;

mod memory {
    vbm_rpc::transport_conformance! {
        [#[tokio::test(start_paused = true)]]
        async { Some((vbm_rpc::memory::MemoryBus::new().into(), ())) }
    }
}

mod memory_on_real_threads {
    vbm_rpc::transport_conformance! {
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        async { Some((vbm_rpc::memory::MemoryBus::new().into(), ())) }
    }
}

mod redis {
    use super::common::{RedisServer, left_out};

    vbm_rpc::transport_conformance! {
        [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]]
        async {
            if left_out() {
                return None;
            }
            let server = RedisServer::start().await;
            Some((server.transport().await.into(), server))
        }
    }
}
