//! Stories of a VM and its snapshots, told to a tiny model and to a driver: both must come to the same.
//!
//! ```text
//!   proptest --story--> Model (a page of plain Rust)  --.
//!                 `---> SimDriver, on paused time     --+--> the same power, disks, memory, tree after every act
//!   a few stories ----> QEMU without a guest          --'
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;
#[path = "snapshot_model/model.rs"]
mod model;
#[path = "snapshot_model/worlds.rs"]
mod worlds;

use model::{Act, Model};
use proptest::prelude::*;
use worlds::{QemuGround, SimGround, World};

/// Tells a story to both, and compares them after each act. What one refuses the other must refuse.
async fn tell(story: &[Act], world: &mut impl World) {
    let mut model = Model::new(world.disks());
    for (at, act) in story.iter().enumerate() {
        let expected = model.act(act);
        let done = world.act(act, &model.ids).await;
        assert_eq!(
            done.is_ok(),
            expected,
            "act {at}, {act:?}: {done:?}, of {:?}",
            &story[..=at]
        );
        let seen = world.look().await;
        model.matches(&seen, &format!("after act {at}, {act:?}, of {:?}", &story[..=at]));
    }
    world.end().await;
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let word = b'a'..=b'z';
    let which = 0..6_usize;
    let act = prop_oneof![
        3 => Just(Act::Start),
        2 => Just(Act::Kill),
        1 => Just(Act::Pause),
        1 => Just(Act::Resume),
        5 => (0..2_usize, word.clone()).prop_map(|(disk, word)| Act::Write(disk, word)),
        3 => word.prop_map(Act::Remember),
        5 => any::<bool>().prop_map(Act::Take),
        4 => which.clone().prop_map(Act::Revert),
        2 => which.prop_map(Act::Delete),
        1 => Just(Act::Save),
        2 => Just(Act::Restore),
        1 => Just(Act::Discard),
        1 => Just(Act::NewDriver),
    ];
    proptest::collection::vec(act, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_simulated_driver_comes_to_the_same_as_the_model(story in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async { tell(&story, &mut SimGround::new()).await });
    }
}

/// Chosen stories: branches, deletion in the middle, saved memory beside snapshots, a daemon that comes and goes.
fn chosen() -> Vec<Vec<Act>> {
    use Act::{
        Delete, Discard, Kill, NewDriver, Pause, Remember, Restore, Resume, Revert, Save, Start, Take, Write,
    };
    let branches = vec![
        Write(0, b'a'),
        Take(true),
        Start,
        Write(0, b'b'),
        Take(false),
        Write(0, b'c'),
        Take(true),
        Revert(0),
        Kill,
        Revert(0),
        Start,
        Write(0, b'd'),
        Take(true),
        Delete(1),
        NewDriver,
        Kill,
        Revert(1),
        Write(0, b'e'),
        Kill,
        Delete(0),
        Revert(1),
        Kill,
        Start,
        Delete(1),
        Kill,
    ];
    let saved = vec![
        Start,
        Remember(b'm'),
        Write(0, b'a'),
        Take(true),
        Pause,
        Take(true),
        Write(0, b'b'),
        Save,
        Take(true),
        NewDriver,
        Restore,
        Write(0, b'c'),
        Save,
        Revert(1),
        Pause,
        Resume,
        Kill,
        Restore,
        Start,
        Save,
        Delete(0),
        Discard,
        Write(0, b'd'),
        Take(true),
        Revert(0),
        Kill,
        Revert(1),
    ];
    vec![branches, saved]
}

#[test]
fn the_chosen_stories_hold_for_the_simulated_driver() {
    for story in chosen() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async { tell(&story, &mut SimGround::new()).await });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chosen_stories_hold_for_qemu() {
    if common::left_out("qemu") {
        return;
    }
    for story in chosen() {
        let begun = tokio::time::Instant::now();
        tell(&story, &mut QemuGround::new().await).await;
        println!("{} acts in {:?}", story.len(), begun.elapsed());
    }
}
