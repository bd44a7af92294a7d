//! What the actor goes by, purely: what may be done during which job, and how often the shutdown button is pressed.

use super::Job;
use vbm_core::{PauseReason, PowerEvent};

use crate::limits::{BUTTON_RESEND_FIRST, BUTTON_RESEND_MAX};
use std::time::Duration;

/// What ends a job that runs: `(asked, running)`. All other work is refused while a job runs; queries go past.
/// A force-off waits for another one instead.
pub(super) const PREEMPTS: &[(Job, &[Job])] = &[
    (Job::ForceOff, PREEMPTED_BY_FORCE_OFF),
    (Job::Abandon, &[Job::MigrateIn]),
];

/// What a force-off ends.
pub(crate) const PREEMPTED_BY_FORCE_OFF: &[Job] = &[
    Job::Start,
    Job::Stop,
    Job::Reset,
    Job::Pause,
    Job::Resume,
    Job::Remove,
    Job::TakeSnapshot,
    Job::RevertSnapshot,
    Job::DeleteSnapshot,
    Job::Save,
    Job::Restore,
    Job::DiscardSaved,
    Job::MigrateOut,
    Job::MigrateIn,
    Job::FinishArrival,
    Job::Abandon,
    Job::AttachDisk,
    Job::DetachDisk,
    Job::ResizeDisk,
    Job::AttachNic,
    Job::DetachNic,
    Job::ChangeMedium,
];

/// Whether `asked` ends `running` and takes its place.
pub(super) fn preempts(asked: Job, running: Job) -> bool {
    PREEMPTS
        .iter()
        .any(|(job, ends)| *job == asked && ends.contains(&running))
}

/// Whether a job makes the VM run that did not.
pub(super) const fn makes_run(job: Job) -> bool {
    matches!(
        job,
        Job::Start | Job::Restore | Job::RevertSnapshot | Job::MigrateIn
    )
}

/// What the power table is asked before a job begins. Where it has no word the driver judges.
pub(super) const fn event_of(job: Job) -> Option<PowerEvent> {
    Some(match job {
        Job::Start => PowerEvent::Start,
        Job::Stop => PowerEvent::Stop,
        Job::Reset => PowerEvent::Reset,
        Job::Pause => PowerEvent::Pause(PauseReason::Requested),
        Job::Resume => PowerEvent::Resume,
        Job::Save => PowerEvent::Save,
        Job::Restore | Job::RevertSnapshot => PowerEvent::Restore,
        Job::MigrateOut => PowerEvent::MigrateOut,
        Job::MigrateIn => PowerEvent::MigrateIn,
        Job::ForceOff
        | Job::Remove
        | Job::TakeSnapshot
        | Job::DeleteSnapshot
        | Job::DiscardSaved
        | Job::FinishArrival
        | Job::Abandon
        | Job::AttachDisk
        | Job::DetachDisk
        | Job::ResizeDisk
        | Job::AttachNic
        | Job::DetachNic
        | Job::ChangeMedium => return None,
    })
}

/// How long to wait after press number `pressed` (1 is the first) before the next one.
pub(super) fn pause_after(pressed: u32) -> Duration {
    let doubled = BUTTON_RESEND_FIRST.saturating_mul(2_u32.saturating_pow(pressed.saturating_sub(1)));
    doubled.min(BUTTON_RESEND_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Job] = &[
        Job::Start,
        Job::Stop,
        Job::ForceOff,
        Job::Reset,
        Job::Pause,
        Job::Resume,
        Job::Remove,
        Job::TakeSnapshot,
        Job::RevertSnapshot,
        Job::DeleteSnapshot,
        Job::Save,
        Job::Restore,
        Job::DiscardSaved,
        Job::MigrateOut,
        Job::MigrateIn,
        Job::FinishArrival,
        Job::Abandon,
        Job::AttachDisk,
        Job::DetachDisk,
        Job::ResizeDisk,
        Job::AttachNic,
        Job::DetachNic,
        Job::ChangeMedium,
    ];

    #[test]
    fn force_off_ends_every_job_but_another_force_off_and_little_else_ends_any() {
        for running in ALL {
            assert_eq!(
                preempts(Job::ForceOff, *running),
                *running != Job::ForceOff,
                "{running:?}"
            );
            for asked in ALL.iter().filter(|job| **job != Job::ForceOff) {
                let ends = (*asked, *running) == (Job::Abandon, Job::MigrateIn);
                assert_eq!(preempts(*asked, *running), ends, "{asked:?} during {running:?}");
            }
        }
    }

    #[test]
    fn the_button_is_pressed_again_after_2_4_8_10_10_seconds() {
        let pauses: Vec<_> = (1..6).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 10, 10]);
        assert_eq!(pause_after(u32::MAX), BUTTON_RESEND_MAX);
    }
}
