//! `vbm bus acl`: the Redis user of a node. Its password is in a file, and never printed.

use crate::cli::{args::BusAcl, session::Session};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::{
    io::{ErrorKind as Io, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};
use vbm_core::{Error, ErrorKind, Name, NodePath};
use vbm_rpc::{
    Service,
    redis::{
        RedisConfig,
        acl::{self, Login, Reach},
    },
};

/// The random bytes of a password.
const PASSWORD_BYTES: usize = 32;
/// The longest password, in bytes.
const PASSWORD_MAX_BYTES: u64 = 1_024;

/// A user, as programs read it.
#[derive(Serialize)]
struct User<'a> {
    user: &'a str,
    line: String,
    file_line: String,
}

pub(super) async fn run(on: &Session<'_>, args: &BusAcl) -> Result<(), Error> {
    let node: NodePath = args.node.parse()?;
    let namespace: Name = args.namespace.parse()?;
    let services = services(&args.services)?;
    let reach = match (args.asks_all, args.asks.is_empty()) {
        (true, _) => Reach::Everybody,
        (false, true) => Reach::Answers,
        (false, false) => Reach::Services(self::services(&args.asks)?),
    };
    for pattern in &args.also {
        check_pattern(pattern)?;
    }
    let password = password(&args.password_file)?;
    let login = Login::Sha256(hex::encode(Sha256::digest(password.as_bytes())));
    let rule = acl::for_node(&namespace, &node, &services, &reach, &login);
    let rule = args
        .also
        .iter()
        .fold(rule, |rule, pattern| rule.and_all_of(pattern));
    let user = User {
        user: rule.user(),
        line: rule.to_string(),
        file_line: rule.file_line(),
    };
    match &args.redis {
        Some(redis) if args.apply => {
            acl::apply(&RedisConfig::from_url(redis)?, &rule).await?;
            let text = format!("{} may now do what {node} needs", rule.user());
            on.out.done(&user, rule.user(), &text)?;
            on.out
                .hint("it lasts until Redis ends; with an aclfile there, `redis-cli ACL SAVE` keeps it");
            Ok(())
        }
        _ => on.out.item(&user, rule.user(), &user.line),
    }
}

fn services(names: &[String]) -> Result<Vec<Service>, Error> {
    names.iter().map(|name| Service::new(name)).collect()
}

/// A pattern is one word of the line: anything that ends it would say something else.
fn check_pattern(pattern: &str) -> Result<(), Error> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || "()\"'~".contains(c);
    if pattern.is_empty() || pattern.starts_with('*') || pattern.contains(bad) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("'{pattern}' is no pattern of keys that may be given away"),
            "it is empty, begins with '*', or holds a space, a bracket, a quote or '~'",
            "write how the keys begin, such as {vbm:store:v1}:*",
        ));
    }
    Ok(())
}

/// What is in the file; a new one when it is not there.
fn password(file: &Path) -> Result<String, Error> {
    let fail = |kind, why: String| {
        Error::new(
            kind,
            format!("the password in {} cannot be used", file.display()),
            why,
            "name a file with one word in it, or one that is not there yet",
        )
    };
    let opened = std::fs::File::open(file);
    let found = match opened {
        Ok(opened) => opened,
        Err(e) if e.kind() == Io::NotFound => {
            let mut bytes = [0; PASSWORD_BYTES];
            getrandom::fill(&mut bytes).map_err(|e| fail(ErrorKind::Internal, e.to_string()))?;
            let made = hex::encode(bytes);
            let written = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(file)
                .and_then(|mut file| writeln!(file, "{made}").and_then(|()| file.sync_all()));
            written.map_err(|e| fail(ErrorKind::PermissionDenied, e.to_string()))?;
            return Ok(made);
        }
        Err(e) => return Err(fail(ErrorKind::PermissionDenied, e.to_string())),
    };
    let mut text = String::new();
    let read = found.take(PASSWORD_MAX_BYTES + 1).read_to_string(&mut text);
    read.map_err(|e| fail(ErrorKind::InvalidInput, e.to_string()))?;
    let word = text.trim();
    if word.is_empty() || text.len() as u64 > PASSWORD_MAX_BYTES || word.contains(char::is_whitespace) {
        let why = format!("it is not one word of at most {PASSWORD_MAX_BYTES} bytes");
        return Err(fail(ErrorKind::InvalidInput, why));
    }
    Ok(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_password_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("n1.pw");
        let made = password(&file).unwrap();
        assert_eq!(password(&file).unwrap(), made);
        assert_eq!(made.len(), 2 * PASSWORD_BYTES);
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        for bad in ["", " \n", "two words", &"x".repeat(2_000)] {
            std::fs::write(&file, bad).unwrap();
            assert!(password(&file).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pattern_cannot_say_more_than_which_keys() {
        assert!(check_pattern("{vbm:store:v1}:*").is_ok());
        for bad in ["", "*", "x ~*", "x) (~*", "x\n"] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }
}
