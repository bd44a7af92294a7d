//! The only place that prints. Answers go to stdout, in the format asked for; hints, progress and errors to
//! stderr. A reader that went away (`vbm list | head -1`) is no failure: what comes after it is dropped.

use super::{args::Format, table::Table};
use crate::api::Problem;
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};
use vbm_core::{Error, ErrorKind};

/// Where answers and everything else go.
#[derive(Debug)]
pub(super) struct Output {
    format: Format,
    quiet: bool,
    closed: AtomicBool,
}

impl Output {
    pub(super) const fn new(format: Format, quiet: bool) -> Self {
        Self {
            format,
            quiet,
            closed: AtomicBool::new(false),
        }
    }

    /// Whether the reader of stdout went away.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether answers are for programs: then stderr carries errors only.
    pub(super) const fn is_for_programs(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Whether hints and progress are wanted.
    pub(super) const fn is_chatty(&self) -> bool {
        !self.quiet && !self.is_for_programs()
    }

    /// How answers are printed.
    pub(super) const fn format(&self) -> Format {
        self.format
    }

    /// The width of the terminal that answers go to, if it is one.
    pub(super) fn width() -> Option<u16> {
        width()
    }

    /// Whether stderr is a terminal, where a line may be redrawn.
    pub(super) fn can_redraw() -> bool {
        io::stderr().is_terminal()
    }

    /// A list. When it is empty, `hint` tells on stderr what to type next.
    pub(super) fn list<T: Serialize>(
        &self,
        items: &[T],
        name: impl Fn(&T) -> String,
        table: &Table,
        hint: &str,
    ) -> Result<(), Error> {
        match self.format {
            Format::Json | Format::Yaml => self.structured(&items),
            Format::Name => items.iter().try_for_each(|item| self.line(&name(item))),
            Format::Table | Format::Wide if items.is_empty() => {
                self.hint(hint);
                Ok(())
            }
            // Wide is for wide terminals: folded ids can be read and copied by nobody.
            Format::Wide => self.line(&table.render(true, None)),
            Format::Table => self.line(&table.render(false, width())),
        }
    }

    /// One thing: `text` is for people.
    pub(super) fn item<T: Serialize>(&self, item: &T, name: &str, text: &str) -> Result<(), Error> {
        match self.format {
            Format::Json | Format::Yaml => self.structured(item),
            Format::Name => self.line(name),
            Format::Table | Format::Wide => self.line(text),
        }
    }

    /// What was done: told to people that want to know; programs get `item`, `-o name` the name.
    pub(super) fn done<T: Serialize>(&self, item: &T, name: &str, text: &str) -> Result<(), Error> {
        match self.format {
            Format::Table | Format::Wide if self.quiet => self.line(name),
            _ => self.item(item, name, text),
        }
    }

    /// One of a stream of things: a line each, JSON included.
    pub(super) fn streamed<T: Serialize>(&self, item: &T, name: &str, text: &str) -> Result<(), Error> {
        match self.format {
            Format::Json => self.line(&serde_json::to_string(item).map_err(|e| unwritable(&e))?),
            Format::Yaml => self.write(format!("---\n{}", yaml(item)?).as_bytes()),
            Format::Name => self.line(name),
            Format::Table | Format::Wide => self.line(text),
        }
    }

    fn structured<T: Serialize + ?Sized>(&self, item: &T) -> Result<(), Error> {
        match self.format {
            Format::Yaml => self.write(yaml(item)?.as_bytes()),
            _ => self.line(&serde_json::to_string_pretty(item).map_err(|e| unwritable(&e))?),
        }
    }

    /// Bytes as they are.
    pub(super) fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        self.write(bytes)
    }

    fn line(&self, text: &str) -> Result<(), Error> {
        self.write(format!("{text}\n").as_bytes())
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(Error::new(
                ErrorKind::Internal,
                "the answer cannot be printed",
                error.to_string(),
                "look where stdout leads to",
            )),
            Ok(()) => Ok(()),
        }
    }

    /// What to type next, or what goes on: for people only.
    pub(super) fn hint(&self, text: &str) {
        if self.is_chatty() {
            to_stderr(text);
        }
    }

    /// A failure: three lines, or problem JSON.
    pub(super) fn error(&self, error: &Error) {
        match self.format {
            Format::Json => match serde_json::to_string_pretty(&problem(error)) {
                Ok(json) => to_stderr(&json),
                Err(_) => to_stderr(&three_lines(error)),
            },
            _ => to_stderr(&three_lines(error)),
        }
    }
}

/// Prints what clap has to say, with its colours where they are wanted.
pub(super) fn raw(message: &clap::Error) {
    // Nobody is left to tell when this fails.
    let _printed: io::Result<()> = message.print();
}

/// Prints the help of a command: as an answer, or as what is missing.
pub(super) fn help(help: &clap::builder::StyledStr, answer: bool) {
    let text = |colours: bool| {
        if colours {
            help.ansi().to_string()
        } else {
            help.to_string()
        }
    };
    // Nobody is left to tell when this fails.
    let _written: io::Result<()> = if answer {
        write!(io::stdout().lock(), "{}", text(io::stdout().is_terminal()))
    } else {
        write!(io::stderr().lock(), "{}", text(io::stderr().is_terminal()))
    };
}

fn to_stderr(text: &str) {
    // Nobody is left to tell when this fails.
    let _written: io::Result<()> = writeln!(io::stderr().lock(), "{text}");
}

/// `error:`, `why:` and `fix:`, a line each.
fn three_lines(error: &Error) -> String {
    let flat = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    format!(
        "error: {}\n  why: {}\n  fix: {}",
        flat(error.what()),
        flat(error.why()),
        flat(error.fix())
    )
}

/// The error as the API would tell it.
fn problem(error: &Error) -> Problem {
    Problem {
        type_: format!("urn:vbm:problem:{}", error.kind()),
        title: error.what().to_owned(),
        status: status(error.kind()),
        detail: error.why().to_owned(),
        error: error.clone(),
    }
}

/// The HTTP status that stands for a kind of failure.
const fn status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::InvalidInput => 400,
        ErrorKind::PermissionDenied => 403,
        ErrorKind::NotFound => 404,
        ErrorKind::AlreadyExists | ErrorKind::Conflict => 409,
        ErrorKind::Stale => 412,
        ErrorKind::Exhausted => 507,
        ErrorKind::Unsupported | ErrorKind::MissingDependency => 501,
        ErrorKind::Unavailable => 503,
        ErrorKind::DeadlineExceeded => 504,
        _ => 500,
    }
}

/// The width of the terminal that answers go to; `None` when they go elsewhere and shall not be folded.
fn width() -> Option<u16> {
    if io::stdout().is_terminal() {
        comfy_table::Table::new().width()
    } else {
        None
    }
}

fn yaml<T: Serialize + ?Sized>(item: &T) -> Result<String, Error> {
    serde_yaml_ng::to_string(item).map_err(|e| unwritable(&e))
}

fn unwritable(error: &dyn std::fmt::Display) -> Error {
    Error::internal("the answer cannot be written in this format", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_three_lines_whatever_is_in_it() {
        let error = Error::new(ErrorKind::Conflict, "a\nb", "c\n\n  d", "e");
        assert_eq!(three_lines(&error), "error: a b\n  why: c  d\n  fix: e");
    }

    #[test]
    fn an_error_for_programs_is_problem_json_that_reads_back() {
        let error = Error::not_found("vm", "web1");
        let json = serde_json::to_string(&problem(&error)).unwrap();
        let back: Problem = serde_json::from_str(&json).unwrap();
        assert_eq!((back.error, back.status), (error, 404));
        assert_eq!(back.type_, "urn:vbm:problem:not-found");
    }
}
