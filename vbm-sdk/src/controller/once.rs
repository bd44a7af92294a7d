//! Commands that would act twice when they are repeated.
//!
//! Most of what nodes are told is a state, which may be told again. What is an act (the reset button) carries an idempotency
//! key: of the operation and its step. A request that came with a key of its own gives its operation's place: repeated
//! after its controller died, perhaps at another one, it is still the same act, and the node gives its recorded answer.

use vbm_core::{Operation, VmId};
use vbm_rpc::{CallOptions, limits::IDEMPOTENCY_KEY_MAX_BYTES};

tokio::task_local! {
    static REQUEST_KEY: String;
}

/// Runs what a request with this idempotency key does.
pub(crate) async fn keyed<F: Future>(key: String, request: F) -> F::Output {
    REQUEST_KEY.scope(key, request).await
}

/// The options of a command that must act once for an operation and step.
pub(super) fn once(options: CallOptions, operation: &Operation, vm: VmId, step: &str) -> CallOptions {
    let of = REQUEST_KEY.try_with(Clone::clone);
    let of = of.unwrap_or_else(|_none| operation.id.to_string());
    let key = format!("{step}/{vm}/{of}");
    // Keys of clients may be longer than those of the bus: what stands for it is as good.
    match key.len() > IDEMPOTENCY_KEY_MAX_BYTES {
        true => options.idempotency_key(format!("{step}/{vm}/{}", digest(&of))),
        false => options.idempotency_key(key),
    }
}

fn digest(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    hex::encode(Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::VmReset;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };
    use vbm_core::{Generation, Kind, ObjectRef, OperationId, OperationState, Timestamp};
    use vbm_rpc::{Bus, Member, Route, Router, memory::MemoryBus};

    fn restart(vm: VmId) -> Operation {
        Operation {
            id: OperationId::from_uuid(uuid::Uuid::now_v7()),
            verb: "restart".into(),
            target: ObjectRef::new(Kind::Vm, vm, "web"),
            state: OperationState::Running,
            steps: Vec::new(),
            generation: Generation(0),
            created_at: Timestamp::default(),
            ended_at: None,
            error: None,
            trace: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_repeated_presses_the_button_once_whichever_controller_repeats_it() {
        let (hub, pressed) = (MemoryBus::new(), Arc::new(AtomicU32::new(0)));
        let counts = pressed.clone();
        let router = Router::new().method::<VmReset, _, _>(move |_, _| {
            counts.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        });
        let attach = async |path: &str, router| {
            let member = Member::new(path.parse().unwrap(), "boot");
            Bus::attach(hub.clone(), member, router).await.unwrap()
        };
        let node = attach("lab/n1", router).await;
        let controllers = [
            attach("control/a", Router::new()).await,
            attach("control/b", Router::new()).await,
        ];
        let route = Route::node("lab/n1".parse().unwrap());
        let [vm, other] = [1, 2].map(|n| VmId::from_uuid(uuid::Uuid::from_u128(n)));
        let press = async |controller: &Bus, vm: VmId| {
            let options = once(CallOptions::default(), &restart(vm), vm, "reset");
            controller.call::<VmReset>(&route, &vm, options).await.unwrap();
        };
        for key in ["7".to_owned(), "x".repeat(255)] {
            let before = pressed.load(Ordering::SeqCst);
            for controller in &controllers {
                keyed(key.clone(), press(controller, vm)).await;
            }
            assert_eq!(pressed.load(Ordering::SeqCst), before + 1);
            // The same word for another VM is another act.
            keyed(key, press(&controllers[0], other)).await;
            assert_eq!(pressed.load(Ordering::SeqCst), before + 2);
        }
        // Two requests without a key are two acts.
        let before = pressed.load(Ordering::SeqCst);
        press(&controllers[0], vm).await;
        press(&controllers[0], vm).await;
        assert_eq!(pressed.load(Ordering::SeqCst), before + 2);
        for bus in controllers.into_iter().chain([node]) {
            bus.shutdown().await;
        }
    }
}
