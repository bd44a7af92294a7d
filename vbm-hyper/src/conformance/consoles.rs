//! Serial line, screen and VNC.

use super::*;

/// What is typed into the serial line is answered; a later reader, and the scrollback, see what was said before.
pub async fn the_serial_line_answers_and_remembers(bench: &dyn Bench) -> Verdict {
    let definition = match bench.obedient() {
        Ok(definition) => definition,
        Err(why) => return Verdict::LeftOut(why),
    };
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.start(&definition).await;
    bench.booted(&*ground.driver, id).await;
    let (typed, answer) = bench.dialogue();
    let first = consoles.serial(id).await.expect("it runs");
    let (mut reader, mut writer) = tokio::io::split(first);
    let type_again = async {
        // A shell that still starts throws away what was typed before.
        loop {
            writer.write_all(typed.as_bytes()).await.expect("it can be typed");
            sleep(TYPE_AGAIN).await;
        }
    };
    tokio::select! {
        _ = read_until(&mut reader, answer, bench.patience()) => {}
        () = type_again => unreachable!("it types for ever"),
    }
    let mut second = consoles.serial(id).await.expect("many may read");
    read_until(&mut second, answer, bench.patience()).await;
    let past = consoles.scrollback(id, 64 * 1024).await.expect("it runs");
    assert!(String::from_utf8_lossy(&past).contains(answer));
    assert_eq!(
        consoles.scrollback(id, 3).await.expect("it runs").len(),
        3,
        "no more than was asked for"
    );
    ground.kill(id).await;
    let past = consoles.scrollback(id, 64 * 1024).await.expect("it is known");
    assert!(
        String::from_utf8_lossy(&past).contains(answer),
        "the scrollback outlives the run"
    );
    ground.done(&[id]).await
}

/// The serial line ends when the VM does, and reading it ends without an error.
pub async fn the_serial_line_ends_with_the_run(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.started().await;
    let mut stream = consoles.serial(id).await.expect("it runs");
    ground.kill(id).await;
    let mut rest = Vec::new();
    let end = ground.patiently("the end of the serial line", stream.read_to_end(&mut rest));
    end.await.expect("it ends in peace");
    ground.done(&[id]).await
}

/// A screenshot is a PNG.
pub async fn a_screenshot_is_a_png(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.started().await;
    let (a, b) = tokio::join!(consoles.screenshot(id), consoles.screenshot(id));
    for png in [a, b] {
        let png = png.expect("it runs");
        assert!(
            png.starts_with(b"\x89PNG\r\n\x1a\n") && png.ends_with(b"IEND\xaeB`\x82"),
            "it is whole"
        );
    }
    ground.done(&[id]).await
}

/// A VNC session begins with the version of RFC 6143; there may be several.
pub async fn a_vnc_session_begins_with_its_version(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let id = ground.started().await;
    for _ in 0..2 {
        let mut vnc = consoles.vnc(id).await.expect("it runs");
        let mut version = [0; 12];
        let read = ground.patiently("the version", vnc.read_exact(&mut version));
        read.await.expect("it speaks first");
        assert_eq!(&version, b"RFB 003.008\n");
    }
    ground.done(&[id]).await
}

/// Consoles of a VM that is off, or unknown, are refused.
pub async fn consoles_need_a_vm_that_runs(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let consoles = match ground.consoles() {
        Ok(consoles) => consoles,
        Err(left_out) => return left_out,
    };
    let unknown = bench.definition().id;
    for result in [
        consoles.serial(unknown).await.map(drop),
        consoles.screenshot(unknown).await.map(drop),
        consoles.scrollback(unknown, 1).await.map(drop),
        consoles.vnc(unknown).await.map(drop),
    ] {
        assert_eq!(result.expect_err("it is unknown").kind(), ErrorKind::NotFound);
    }
    let id = ground.started().await;
    ground.kill(id).await;
    refused(
        consoles.serial(id).await.map(drop),
        "serial line of a VM that is off",
    );
    refused(consoles.screenshot(id).await, "screenshot of a VM that is off");
    refused(consoles.vnc(id).await.map(drop), "screen of a VM that is off");
    ground.done(&[id]).await
}

/// A facet that is missing says why; one that is there does not.
pub async fn a_missing_facet_says_why_and_one_that_is_there_does_not(bench: &dyn Bench) -> Verdict {
    let ground = Ground::open(bench).await;
    let driver = &ground.driver;
    for (facet, there) in [
        (Facet::Consoles, driver.consoles().is_some()),
        (Facet::Snapshots, driver.snapshots().is_some()),
        (Facet::SavedState, driver.saved_state().is_some()),
        (Facet::Migration, driver.migration().is_some()),
        (Facet::Hotplug, driver.hotplug().is_some()),
    ] {
        let why = driver.missing(facet);
        assert_eq!(why.is_none(), there, "{facet:?}: {why:?}");
        assert!(
            why.is_none_or(|why| why.len() > 10),
            "{facet:?}: a reason for people"
        );
    }
    ground.done(&[]).await
}
