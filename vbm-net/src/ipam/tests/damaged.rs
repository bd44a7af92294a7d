//! Records that are damaged, changed, of another version or of another subnet: refused, or sound.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};

fn plan() -> Plan<Ipv4Addr> {
    Plan::v4(&spec("10.0.0.0/16")).unwrap()
}

fn record(taken: &[u8], resting: &[u8]) -> State {
    record_of("7", &STANDARD.encode(taken), &STANDARD.encode(resting)).unwrap()
}

fn record_of(next: &str, taken: &str, resting: &str) -> Result<State, serde_json::Error> {
    serde_json::from_value(serde_json::json!({
        "version": 1, "subnet": "10.0.0.0/16", "next": next, "taken": taken, "resting": resting
    }))
}

#[test]
fn a_record_of_another_version_is_refused_by_its_number() {
    let mut value = serde_json::to_value(Ipam::new(plan()).state()).unwrap();
    serde_json::from_value::<State>(value.clone()).unwrap();
    for version in [0_u32, 2, u32::MAX] {
        value["version"] = version.into();
        value["something_new"] = true.into();
        let error = serde_json::from_value::<State>(value.clone()).unwrap_err();
        assert!(
            error.to_string().contains(&format!("version {version}")),
            "{error}"
        );
    }
    value["version"] = 1.into();
    assert!(
        serde_json::from_value::<State>(value).is_err(),
        "a field that nobody knows"
    );
    for odd in [
        "{}",
        "[]",
        "null",
        "1",
        r#"{"version":"1"}"#,
        r#"{"version":-1}"#,
        r#"{"version":1}"#,
    ] {
        assert!(serde_json::from_str::<State>(odd).is_err(), "{odd}");
    }
}

#[test]
fn a_record_of_another_subnet_is_refused() {
    let state = Ipam::new(Plan::v4(&spec("10.0.0.0/24")).unwrap()).state();
    let error = Ipam::restore(plan(), &state).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.why().contains("10.0.0.0/24"), "{error}");
}

#[test]
fn each_way_to_be_damaged_is_told_from_the_others() {
    let raw_empty = [vec![0, 1], vec![0; 4_096]].concat();
    for (taken, why) in [
        (&[0][..], "ends in the middle"),
        (&[0, 0, 1], "ends in the middle"),
        (&[0, 1, 0], "ends in the middle"),
        (&[0, 2], "unknown kind"),
        (&[0, 0, 0], "empty"),
        (&*raw_empty, "empty"),
        (&[2, 0, 1, 0, 0], "outside of the subnet"),
        (&[0, 0, 1, 0xff, 0xff, 1, 9], "leaves its page"),
        (&[0, 0, 2, 5, 0, 0, 0], "two runs touch"),
        (&[0, 0, 1, 0x80, 0], "spelled oddly"),
        (&[0xff; 40], "too large"),
    ] {
        let error = Ipam::restore(plan(), &record(taken, &[0])).unwrap_err();
        assert!(error.why().contains(why), "{taken:?}: {error}");
    }
    let good = [0, 0, 1, 5, 1];
    for (resting, why) in [
        (&[][..], "ends in the middle"),
        (&[1], "ends in the middle"),
        (&[1, 0, 9], "that is free"),
        (&[2, 0, 5, 0, 5], "rests twice"),
        (&[0, 0], "behind its end"),
        (&[0xff, 0xff, 0x7f], "too many"),
    ] {
        let error = Ipam::restore(plan(), &record(&good, resting)).unwrap_err();
        assert!(error.why().contains(why), "{resting:?}: {error}");
    }
    let short = Plan::v4(&spec("10.0.0.0/24")).unwrap();
    let mut value = serde_json::to_value(record(&[0, 0, 1, 0x80, 2, 0], &[0])).unwrap();
    value["subnet"] = "10.0.0.0/24".into();
    let outside = Ipam::restore(short, &serde_json::from_value(value).unwrap()).unwrap_err();
    assert!(outside.why().contains("an address is outside"), "{outside}");
    for (next, taken) in [
        ("x", ""),
        ("-1", ""),
        ("", ""),
        ("7", "*"),
        ("7", "AA"),
        ("7", "é"),
    ] {
        let error = Ipam::restore(plan(), &record_of(next, taken, "AA==").unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    let huge = "A".repeat(STATE_MAX_BYTES + 4);
    let error = Ipam::restore(plan(), &record_of("7", &huge, "AA==").unwrap()).unwrap_err();
    assert!(error.why().contains("are the most"), "{error}");
}

#[test]
fn a_small_record_cannot_make_a_large_ipam() {
    let mut spec = spec("10.0.0.0/24");
    spec.ipv6 = Some(vbm_core::Ipv6Spec::new("fd00::/64".parse().unwrap()).unwrap());
    let plan = Plan::v6(&spec).unwrap().unwrap();
    // Each page is a run of 200: six bytes that become a bitmap of 4 KiB.
    let bomb: Vec<u8> = std::iter::repeat_n([0, 0, 1, 0, 0xc7, 1], 200_000)
        .flatten()
        .collect();
    let mut value = serde_json::to_value(record(&bomb, &[0])).unwrap();
    value["subnet"] = "fd00::/64".into();
    let error = Ipam::restore(plan, &serde_json::from_value(value).unwrap()).unwrap_err();
    assert!(error.why().contains("more than fits"), "{error}");
}

/// Whatever is read is sound: what it says is written again as it was, all can be taken and given back.
fn sound(state: &State) -> Result<(), TestCaseError> {
    let Ok(mut ipam) = Ipam::restore(plan(), state) else {
        return Ok(());
    };
    let used = ipam.utilisation(START);
    prop_assert_eq!(used.pool, used.taken + used.resting + used.free);
    let again = ipam.state();
    prop_assert_eq!(Ipam::restore(plan(), &again).unwrap().state(), again);
    let before: BTreeSet<_> = ipam.taken().collect();
    for _ in 0..64 {
        if let Ok(got) = ipam.allocate(None, Timestamp::from_micros(0)) {
            prop_assert!(!before.contains(&got));
        }
    }
    for address in before.iter().take(64) {
        ipam.release(*address, START);
    }
    Ok(())
}

proptest! {
    #[test]
    fn garbage_is_refused_or_sound(next in ".{0,12}", taken: Vec<u8>, resting: Vec<u8>) {
        sound(&record_of(&next, &STANDARD.encode(taken), &STANDARD.encode(resting)).unwrap())?;
    }

    /// A good record with a few bytes changed, cut or doubled: what a fuzzer finds first.
    #[test]
    fn a_changed_record_is_refused_or_sound(
        taken in prop::collection::btree_set(2u32..60_000, 0..300), released in 0usize..50,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 0..4), in_resting: bool
    ) {
        let mut small = spec("10.0.0.0/16");
        small.quarantine_seconds = 60;
        let mut ipam = Ipam::v4(&small).unwrap();
        let all: Vec<Ipv4Addr> = taken.iter().map(|o| (u32::from(small.cidr.network()) + o).into()).collect();
        for address in &all { ipam.pin(*address, None, START).unwrap(); }
        for address in all.iter().take(released) { ipam.release(*address, START); }
        let value = serde_json::to_value(ipam.state()).unwrap();
        let field = |name: &str| STANDARD.decode(value[name].as_str().unwrap()).unwrap();
        let (mut taken, mut resting) = (field("taken"), field("resting"));
        let bytes = if in_resting { &mut resting } else { &mut taken };
        for (at, byte, kind) in edits {
            if bytes.is_empty() { break }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.truncate(at),
                _ => bytes.insert(at, byte),
            }
        }
        sound(&record(&taken, &resting))?;
    }

    #[test]
    fn any_json_is_refused_or_sound(text in r#"\{"version":[0-2],"[a-z]{0,8}":("[A-Za-z0-9+/=]{0,20}"|[0-9]{0,4})\}|.{0,60}"#) {
        if let Ok(state) = serde_json::from_str::<State>(&text) { sound(&state)?; }
    }
}
