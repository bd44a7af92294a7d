//! Images in and out by `vbm`: from files of other hypervisors, from a web server that breaks off, into files of each format.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod cli;

use cli::Daemon;
use sha2::Digest as _;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is missing: install qemu-utils, or leave this out with VBM_LEAVE_OUT=qemu");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "qemu-img {args:?}: {text}");
}

fn left_out(level: &str) -> bool {
    let out = std::env::var("VBM_LEAVE_OUT").is_ok_and(|levels| levels.split(',').any(|l| l == level));
    if out {
        eprintln!("LEFT OUT: {level} is named in VBM_LEAVE_OUT");
    }
    out
}

fn content() -> Vec<u8> {
    (0..1_u32 << 20)
        .map(|n| {
            if n & 0x8000 == 0 {
                0
            } else {
                n.to_le_bytes()[1] | 1
            }
        })
        .collect()
}

fn sha(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A web server with one file, which breaks off its first answers; ends with this value.
struct Web {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// `breaks`: how many answers end in the middle.
    fn new(bytes: Vec<u8>, breaks: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                counts.fetch_add(serve(stream.unwrap(), &bytes, number < breaks), Ordering::Relaxed);
            }
        });
        Self {
            address,
            stop,
            sent,
            thread: Some(thread),
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        drop(self.thread.take().unwrap().join());
    }
}

/// Answers one request. Returns how much of the file was sent.
fn serve(mut stream: TcpStream, bytes: &[u8], breaks: bool) -> usize {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let head: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    if head.first().is_some_and(|line| line.contains("/none")) {
        drop(stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"));
        return 0;
    }
    let range = head.iter().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("range: bytes=")
            .map(str::to_owned)
    });
    let from: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let rest = &bytes[from..];
    let status = match from {
        0 => "200 OK".to_owned(),
        from => format!(
            "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
            bytes.len() - 1,
            bytes.len()
        ),
    };
    let sent = if breaks { rest.len() / 2 } else { rest.len() };
    let head = format!(
        "HTTP/1.1 {status}\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n",
        rest.len()
    );
    drop(stream.write_all(head.as_bytes()));
    drop(stream.write_all(&rest[..sent]));
    sent
}

fn files_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, |entries| entries.count())
}

#[test]
fn an_image_comes_from_the_web_though_the_line_breaks() {
    let daemon = Daemon::start();
    let (bytes, cache) = (content(), daemon.path("cache/vbm/imports"));
    let web = Web::new(bytes.clone(), 3);
    let url = format!("http://{}/disk.raw?token=secret", web.address);
    let import = ["image", "import", "web", "--disk", &url, "--sha256", &sha(&bytes)];
    let said = daemon.vbm(&import);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(
        web.sent.load(Ordering::Relaxed),
        bytes.len(),
        "no byte came twice"
    );
    let info = daemon.json(&["image", "info", "web"]);
    assert_eq!(
        (&info["spec"]["disk"], &info["spec"]["format"]),
        (&sha(&bytes).into(), &"raw".into())
    );
    assert_eq!(
        files_in(&cache.join("sha256")) + files_in(&cache.join("tmp")),
        0,
        "nothing stays on the way"
    );

    let none = format!("http://{}/none", web.address);
    let said = daemon.vbm(&["image", "import", "x", "--disk", &none]);
    assert!(said.refused(3).contains("/none"), "{}", said.err);
    let wrong = [
        "-q",
        "image",
        "import",
        "x",
        "--disk",
        &url,
        "--sha256",
        &sha(b"other"),
    ];
    let said = daemon.vbm(&wrong);
    assert!(said.refused(2).contains("SHA-256"), "{}", said.err);
    assert!(!said.err.contains("secret"), "{}", said.err);
    let said = daemon.vbm(&["image", "import", "x", "--disk", "http://user:pw@host/x"]);
    assert!(
        said.refused(2).contains("address") && said.err.contains("password"),
        "{}",
        said.err
    );
    assert_eq!(files_in(&cache.join("sha256")) + files_in(&cache.join("tmp")), 0);
    assert_eq!(daemon.json(&["image", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn disks_of_other_hypervisors_are_kept_as_qcow2_and_leave_in_each_format() {
    if left_out("qemu") {
        return;
    }
    let daemon = Daemon::start();
    let path = |name: &str| daemon.path(name).to_str().unwrap().to_owned();
    std::fs::write(path("source"), content()).unwrap();
    for (name, format, options) in [
        ("a", "vmdk", &["-o", "subformat=streamOptimized"][..]),
        ("b", "vdi", &[]),
        ("c", "qcow2", &["-c"]),
    ] {
        let file = path(&format!("disk.{format}"));
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        args.extend(options);
        let source = path("source");
        args.extend([&*source, &*file]);
        qemu_img(&args);
        daemon.ok(&[
            "image",
            "import",
            name,
            "--disk",
            &file,
            "--sha256",
            &sha(&std::fs::read(&file).unwrap()),
        ]);
        assert_eq!(daemon.json(&["image", "info", name])["spec"]["format"], "qcow2");
        for out in ["raw", "qcow2", "vdi"] {
            let to = path(&format!("{name}.{out}"));
            daemon.ok(&["image", "export", name, &to, "--format", out]);
            qemu_img(&["compare", "-f", out, "-F", "raw", &to, &source]);
            let again = daemon.vbm(&["image", "export", name, &to]);
            assert!(again.refused(4).contains(&to), "{}", again.err);
        }
    }
    let before = files_in(daemon.place.path());
    let said = daemon.vbm(&["image", "export", "nope", &path("x")]);
    assert!(said.refused(3).contains("nope"));
    // Packed files, and disks in several files, are told by name.
    std::fs::write(path("packed.img"), b"\xfd7zXZ\0").unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "vmdk",
        "-o",
        "subformat=monolithicFlat",
        &path("flat.vmdk"),
        "1M",
    ]);
    for (file, word) in [("packed.img", "unxz"), ("flat.vmdk", "names other files")] {
        let mut said = daemon.vbm(&["image", "import", "x", "--disk", &path(file)]);
        // How far it came is told too, where there was time for it.
        let lines = said.err.lines().filter(|line| !line.starts_with("received "));
        said.err = lines.map(|line| format!("{line}\n")).collect();
        said.refusal(2).unwrap();
        assert!(said.err.contains(word), "{}", said.err);
    }
    assert_eq!(
        files_in(daemon.place.path()),
        before + 3,
        "the files of the test only"
    );
    let wrong = daemon.vbm(&[
        "-q",
        "image",
        "import",
        "x",
        "--disk",
        &path("disk.vdi"),
        "--sha256",
        &sha(b"other"),
    ]);
    assert!(wrong.refused(2).contains("SHA-256"), "{}", wrong.err);

    daemon.ok(&["network", "create", "lan", "10.0.0.0/24"]);
    daemon.ok(&["launch", "a", "vm1", "--network", "lan"]);
    let list = daemon.ok(&["image", "list"]);
    assert!(list.lines().next().unwrap().contains("VMS"), "{list}");
    assert!(daemon.ok(&["image", "info", "a"]).contains("vm1"));
}
