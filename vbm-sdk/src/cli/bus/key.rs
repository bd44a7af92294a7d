//! `vbm bus key`: the keys of this host. Secrets are never printed.

use crate::cli::{
    args::{BusKey, BusKeyNew, BusKeyOne, BusKeyShow},
    session::Session,
};
use serde::Serialize;
use std::path::Path;
use vbm_core::{Error, ErrorKind, NodePath};
use vbm_rpc::auth::{Epochs, Keys, Trusted};

pub(super) fn run(on: &Session<'_>, verb: BusKey) -> Result<(), Error> {
    match verb {
        BusKey::New(args) => new(on, &args),
        BusKey::Show(args) => show(on, &args),
        BusKey::Use(args) => {
            let id = args.key.parse()?;
            change(&args, |keys| keys.sealing_with(id))?;
            told(on, &args.key, "seals from the next start of vbmd on")
        }
        BusKey::Drop(args) => {
            let id = args.key.parse()?;
            change(&args, |keys| keys.without(id))?;
            told(
                on,
                &args.key,
                "is forgotten; remove its lines from the trust lists",
            )
        }
    }
}

fn told(on: &Session<'_>, key: &str, now: &str) -> Result<(), Error> {
    on.out.done(&key, key, &format!("{key} {now}"))
}

fn change(args: &BusKeyOne, change: impl FnOnce(&Keys) -> Result<Keys, Error>) -> Result<(), Error> {
    change(&Keys::load(&args.keys.file)?)?.save(&args.keys.file)
}

fn new(on: &Session<'_>, args: &BusKeyNew) -> Result<(), Error> {
    let file = &args.keys.file;
    let keys = match args.next {
        true => Keys::load(file)?.with_next()?,
        false if exists(file)? => {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("there are keys in {}", file.display()),
                "they would be lost, and with them the trust in this host",
                "add one with --next, or give another file with --file",
            ));
        }
        false => Keys::generate()?,
    };
    keys.save(file)?;
    let made = keys
        .all()
        .last()
        .map(|pair| pair.id().to_string())
        .unwrap_or_default();
    let text = format!("key {made} is in {}", file.display());
    on.out.done(&made, &made, &text)?;
    on.out
        .hint("put what `vbm bus key show PATH` prints into the trust list of every node");
    Ok(())
}

fn exists(file: &Path) -> Result<bool, Error> {
    file.try_exists().map_err(|e| {
        Error::new(
            ErrorKind::PermissionDenied,
            format!("{} cannot be looked at", file.display()),
            e.to_string(),
            "run it as the user of vbmd, or give another file with --file",
        )
    })
}

/// One line of a trust list.
#[derive(Serialize)]
struct Line {
    path: NodePath,
    key: String,
    seals: bool,
    line: String,
}

fn show(on: &Session<'_>, args: &BusKeyShow) -> Result<(), Error> {
    let keys = Keys::load(&args.keys.file)?;
    for path in &args.paths {
        let path: NodePath = path.parse()?;
        for (at, pair) in keys.all().iter().enumerate() {
            let mut trusted = Trusted::new(*pair.public());
            if args.commands {
                trusted = trusted.commands(Epochs::ANY);
            }
            if args.relays {
                trusted = trusted.relays();
            }
            let note = if at == 0 { "" } else { ", not sealing yet" };
            let line = Line {
                path: path.clone(),
                key: pair.id().to_string(),
                seals: at == 0,
                line: format!("{path} {trusted}    # {}{note}", pair.id()),
            };
            on.out.streamed(&line, &line.key, &line.line)?;
        }
    }
    Ok(())
}
