//! An asynchronous call: submit gives a ticket, a line of text with which any process polls, awaits or cancels it, also
//! when the submitter is gone; and a callback tells somebody else.
//!
//! `cargo run --bin 09-rpc-submit [-- --redis redis://HOST:PORT]`
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/bus.rs"]
mod bus;

use std::{sync::Arc, time::Duration};
use tokio::sync::{Notify, mpsc};
use vbm_core::{Error, ErrorKind};
use vbm_rpc::{
    Bus, CallOptions, Context, Fate, Member, Method, Route, Router, SubmitOptions, Ticket, TicketOutcome,
    TicketState,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Work that takes longer than anybody wants to hold a line for.
struct Backup;
impl Method for Backup {
    const NAME: &'static str = "example.backup";
    type Request = String;
    type Reply = u64;
}

/// Who wants to hear how a backup ended, has a method for it. It commands nothing, so it is not fenced.
struct BackupEnded;
impl Method for BackupEnded {
    const NAME: &'static str = "example.backup.ended";
    const FENCED: bool = false;
    type Request = TicketOutcome;
    type Reply = ();
}

fn nobody_wants_it() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the backup was given up",
        "nobody wants it any more",
        "submit it again",
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let transport = bus::transport().await?;
    let member = |path: &str| path.parse().map(|path| Member::new(path, "boot-1"));

    // The worker: takes until it is told to go on.
    let go_on = Arc::new(Notify::new());
    let waits = go_on.clone();
    let router = Router::new().method::<Backup, _, _>(move |context: Context, _vm: String| {
        let waits = waits.clone();
        async move {
            tokio::select! {
                () = waits.notified() => Ok(4_096),
                () = context.cancelled.cancelled() => Err(nobody_wants_it()),
            }
        }
    });
    let worker = Bus::attach(transport.clone(), member("lab/worker")?, router).await?;

    // Who is told.
    let (told, mut tellings) = mpsc::channel(8);
    let router =
        Router::new().method::<BackupEnded, _, _>(move |_context: Context, outcome: TicketOutcome| {
            let told = told.clone();
            async move {
                told.send(outcome)
                    .await
                    .map_err(|_gone| Error::internal("nobody listens", "the example ended"))
            }
        });
    let ui = Bus::attach(transport.clone(), member("lab/ui")?, router).await?;

    // The submitter: keeps the text of the ticket, and is gone.
    let route = Route::node("lab/worker".parse()?);
    let submitter = Bus::attach(transport.clone(), member("lab/submitter")?, Router::new()).await?;
    let options = SubmitOptions::from(
        CallOptions::new()
            .deadline(PATIENCE)
            .idempotency_key("backup-of-web-7"),
    )
    .callback::<BackupEnded>(&Route::node("lab/ui".parse()?));
    let ticket = submitter
        .submit::<Backup>(&route, &"web".to_owned(), options)
        .await?;
    let text = ticket.to_string();
    submitter.shutdown().await;
    println!(
        "the submitter is gone, its ticket is a line of {} characters",
        text.len()
    );

    // Another process, with nothing but that line: looks, and waits.
    let other = Bus::attach(transport, member("lab/other")?, Router::new()).await?;
    let ticket: Ticket<Backup> = text.parse()?;
    let handle = other.ticket(&ticket)?;
    loop {
        match handle.poll().await? {
            TicketState::Running { by, .. } => break println!("polled: {by} is at it"),
            TicketState::Pending { .. } => tokio::time::sleep(Duration::from_millis(5)).await,
            state => return Err(format!("expected a running backup, got {state:?}").into()),
        }
    }
    go_on.notify_one();
    match handle.wait(PATIENCE).await? {
        TicketState::Ended(Ok(bytes)) => println!("awaited by another process: {bytes} bytes"),
        state => return Err(format!("expected the end of the backup, got {state:?}").into()),
    }
    let outcome = tokio::time::timeout(PATIENCE, tellings.recv()).await?;
    let outcome = outcome.ok_or("nobody called back")?;
    println!("called back: {} bytes", outcome.read::<Backup>()??);

    // What nobody wants any more is cancelled by whoever holds the ticket; the end is the same for all.
    let options = SubmitOptions::from(CallOptions::new().deadline(PATIENCE));
    let unwanted = other
        .submit::<Backup>(&Route::node("lab/nobody".parse()?), &"db".to_owned(), options)
        .await;
    match unwanted {
        Err(fate @ Fate::NoRoute { .. }) => println!("no ticket without a receiver: {fate}"),
        other => return Err(format!("expected no route, got {other:?}").into()),
    }
    let options = SubmitOptions::from(CallOptions::new().deadline(PATIENCE));
    let second = other.submit::<Backup>(&route, &"db".to_owned(), options).await?;
    let handle = other.ticket(&second)?;
    handle.cancel().await?;
    match handle.wait(PATIENCE).await? {
        TicketState::Ended(Err(fate)) => println!("cancelled by whoever holds the ticket: {fate}"),
        state => return Err(format!("expected a cancelled backup, got {state:?}").into()),
    }

    other.shutdown().await;
    ui.shutdown().await;
    worker.shutdown().await;
    Ok(())
}
