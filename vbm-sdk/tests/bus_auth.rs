//! A controller and an agent that believe only each other, each a Redis user that may do what it needs: set up by the
//! commands that an administrator types.
#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod cli;
#[path = "common/redis.rs"]
mod redis_server;

use cli::{Said, vbm_at};
use redis_server::Redis;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::Instant;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn vbm(words: &[&str]) -> Said {
    vbm_at(Path::new("/nonexistent/vbmd.sock"), words, "")
}

fn ok(words: &[&str]) -> String {
    let said = vbm(words);
    assert_eq!(said.code, 0, "vbm {words:?}\n{}{}", said.out, said.err);
    said.out
}

struct Daemon {
    process: Child,
    dir: PathBuf,
}

impl Daemon {
    /// `tag` is the instance's: its paths on the bus have it.
    fn start(place: &Path, role: &str, tag: &str, url: &str, more: &[&str]) -> Self {
        let dir = place.join(tag);
        fs::create_dir_all(dir.join("data")).unwrap();
        fs::write(dir.join("data/instance"), format!("{tag}\n")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_vbmd"))
            .arg(role)
            .args([
                "--driver",
                "sim",
                "--network",
                "sim",
                "--ephemeral",
                "--redis",
                url,
            ])
            .args(["--name", tag, "--node", "lab/n1", "--data-dir"])
            .arg(dir.join("data"))
            .arg("--run-dir")
            .arg(dir.join("run"))
            .arg("--socket")
            .arg(dir.join("s"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        let tag = fs::read_to_string(self.dir.join("data/instance")).unwrap_or_default();
        drop(fs::remove_file(format!("/run/vbm/instances/{}.json", tag.trim())));
    }
}

fn until(what: &str, logs: &[&Daemon], mut is_true: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_true() {
        if begin.elapsed() > PATIENCE {
            let logs: Vec<String> = logs.iter().map(|daemon| daemon.log()).collect();
            panic!("{what}\n{}", logs.join("\n---\n"));
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Tags of instances that no other test makes up: eight hexadecimal digits.
fn tag(role: u32) -> String {
    format!("{:08x}", std::process::id().wrapping_mul(4).wrapping_add(role))
}

#[test]
fn keys_are_made_shown_changed_and_never_printed() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("bus.key");
    let file = text(&file);
    ok(&["bus", "key", "new", "--file", file]);
    vbm(&["bus", "key", "new", "--file", file]).refused(4);
    let old = ok(&["bus", "key", "show", "eu/n1", "--file", file, "-o", "name"])
        .trim()
        .to_owned();
    ok(&["bus", "key", "new", "--next", "--file", file]);
    let both = ok(&["bus", "key", "show", "eu/n1", "--commands", "--file", file]);
    assert_eq!(both.lines().count(), 2);
    assert!(
        both.lines()
            .all(|line| line.starts_with("eu/n1 vbm-public-1:") && line.contains(" commands "))
    );
    let trusted: vbm_rpc::auth::Ring = both.parse().unwrap();
    assert_eq!(trusted.len(), 1, "what is shown is what a trust list reads");
    let ids = ok(&["bus", "key", "show", "eu/n1", "--file", file, "-o", "name"]);
    let new = ids.lines().find(|id| *id != old).unwrap();
    ok(&["bus", "key", "use", new, "--file", file]);
    ok(&["bus", "key", "drop", &old, "--file", file]);
    assert_eq!(
        ok(&["bus", "key", "show", "eu/n1", "--file", file, "-o", "name"]).trim(),
        new
    );
    vbm(&["bus", "key", "drop", new, "--file", file]).refused(2);
    vbm(&["bus", "key", "use", &old, "--file", file]).refused(3);
    vbm(&["bus", "key", "use", "nonsense", "--file", file]).refused(2);
    vbm(&["bus", "key", "show", "UP", "--file", file]).refused(2);
    let secrets = fs::read_to_string(file).unwrap();
    let secret = secrets
        .lines()
        .find_map(|line| line.strip_prefix("vbm-secret-1:"))
        .unwrap();
    assert!(!both.contains(secret));
}

#[test]
fn a_user_is_printed_or_made_and_bad_words_are_refused() {
    let Some(redis) = Redis::start() else { return };
    let place = tempfile::tempdir().unwrap();
    let password = place.path().join("n1.pw");
    let words = [
        "bus",
        "acl",
        "eu/n1",
        "--service",
        "agent",
        "--asks",
        "controller",
        "--password-file",
    ];
    let words: Vec<&str> = words.into_iter().chain([text(&password)]).collect();
    let line = ok(&words);
    assert!(line.starts_with("ACL SETUSER vbm.eu.n1 reset on #"), "{line}");
    let secret = fs::read_to_string(&password).unwrap();
    assert!(!line.contains(secret.trim()));
    assert_eq!(ok(&words), line, "the same password, the same line");
    let url = redis.url();
    ok(&[&words[..], &["--apply", "--redis", &url]].concat());
    let login = |secret: &str| {
        let client = redis::Client::open(format!("{url}?user=vbm.eu.n1&pass={secret}")).unwrap();
        client
            .get_connection()
            .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection))
    };
    assert_eq!(login(secret.trim()).unwrap(), "PONG");
    assert!(login("wrong").is_err());
    // Whoever it is now may not give itself more.
    let own = format!("{url}?user=vbm.eu.n1&pass={}", secret.trim());
    vbm(&[&words[..], &["--apply", "--redis", &own]].concat()).refused(7);
    for (bad, code) in [(["bus", "acl", "UP"], 2), (["bus", "acl", "a/b/"], 2)] {
        vbm(&[&bad[..], &["--password-file", text(&password)]].concat()).refused(code);
    }
    vbm(&[&words[..], &["--keys", "x) (~*"]].concat()).refused(2);
}

#[test]
fn a_controller_and_an_agent_work_with_seals_and_least_rights() {
    let Some(redis) = Redis::start() else { return };
    let place = tempfile::tempdir().unwrap();
    let (controller, agent) = (tag(1), tag(2));
    let trust = place.path().join("trust");
    let mut list = String::new();
    let paths = [
        (&controller, vec![format!("control/c{controller}")], true),
        (&agent, vec!["lab/n1".to_owned(), format!("door/a{agent}")], false),
    ];
    for (name, paths, commands) in &paths {
        let key = place.path().join(format!("{name}.key"));
        ok(&["bus", "key", "new", "--file", text(&key)]);
        let mut words = vec!["bus", "key", "show", "--file", text(&key)];
        words.extend(paths.iter().map(String::as_str));
        words.extend(commands.then_some("--commands"));
        list.push_str(&ok(&words));
    }
    fs::write(&trust, &list).unwrap();
    // A daemon is one user of Redis, with one path; the agent knocks at the door before it has its place.
    let url = redis.url();
    let keys = |name: &str| place.path().join(format!("{name}.key"));
    let start = |role: &str, name: &str, url: &str, more: &[&str]| {
        let key = keys(name);
        let security = ["--bus-key", text(&key), "--bus-trust", text(&trust)];
        Daemon::start(place.path(), role, name, url, &[&security[..], more].concat())
    };
    let password = place.path().join("c.pw");
    ok(&[
        "bus",
        "acl",
        &format!("control/c{controller}"),
        "--service",
        "controller",
        "--asks-all",
        "--password-file",
        text(&password),
        "--apply",
        "--redis",
        &url,
    ]);
    let login = format!(
        "{url}?user=vbm.control.c{controller}&pass={}",
        fs::read_to_string(&password).unwrap().trim()
    );
    let brain = start("controller", &controller, &login, &["--store", "redb"]);
    let hand = start("agent", &agent, &url, &[]);
    let listed = || {
        let said = vbm_at(&brain.dir.join("s"), &["node", "list", "-o", "json"], "");
        let nodes: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_default();
        nodes
            .as_array()
            .is_some_and(|nodes| nodes.iter().any(|node| node.to_string().contains("lab/n1")))
    };
    until("the controller knows the node", &[&brain, &hand], listed);

    // Somebody with the run of Redis, but no key, is not believed.
    let stranger = tag(3);
    ok(&["bus", "key", "new", "--file", text(&keys(&stranger))]);
    let third = start("agent", &stranger, &url, &[]);
    until("it is told", &[&third], || {
        third.log().contains("is not trusted on the bus")
    });
    assert!(
        third.log().contains(&format!("door/a{stranger}")),
        "{}",
        third.log()
    );
}
