//! The documents: the same facts in the forms of EC2 and of NoCloud. Pure.
//!
//! What must be YAML is written as JSON, which is YAML too: no text of a user can break out of its place.

use super::{Instance, respond::Subject};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use vbm_core::Mac;

/// The versions of EC2's form: those that cloud-init asks for. All are the same here.
pub(super) const VERSIONS: [&str; 4] = ["2009-04-04", "2018-09-24", "2021-03-23", "latest"];

/// Plain text.
const TEXT: &str = "text/plain; charset=utf-8";
/// Bytes that are given as they came.
const BYTES: &str = "application/octet-stream";
const JSON: &str = "application/json";

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) kind: &'static str,
    pub(super) body: Vec<u8>,
}

fn text(text: impl Into<String>) -> Document {
    Document {
        kind: TEXT,
        body: text.into().into_bytes(),
    }
}

/// The document at a path, if there is one.
pub(super) fn at(subject: &Subject, path: &str) -> Option<Document> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match &parts[..] {
        [] => Some(text(VERSIONS.join("\n") + "\nnocloud")),
        ["nocloud", rest @ ..] => nocloud(subject, rest),
        [version, rest @ ..] if VERSIONS.contains(version) => ec2(subject, rest),
        _ => None,
    }
}

fn ec2(subject: &Subject, rest: &[&str]) -> Option<Document> {
    match rest {
        [] => {
            let data = if subject.user_data().is_some() {
                "\nuser-data"
            } else {
                ""
            };
            Some(text(format!("dynamic\nmeta-data{data}")))
        }
        ["user-data"] => subject.user_data().map(|data| Document {
            kind: BYTES,
            body: data.to_vec(),
        }),
        ["meta-data", rest @ ..] => listed(&facts(subject), rest),
        ["dynamic"] => Some(text("instance-identity/")),
        ["dynamic", "instance-identity"] => Some(text("document")),
        ["dynamic", "instance-identity", "document"] => Some(Document {
            kind: JSON,
            body: identity(subject).to_string().into_bytes(),
        }),
        _ => None,
    }
}

/// A leaf of the tree, or the list of what is below a branch: branches end in `/`.
fn listed(facts: &BTreeMap<String, String>, path: &[&str]) -> Option<Document> {
    let path = path.join("/");
    if let Some(leaf) = facts.get(&path) {
        return Some(text(leaf.clone()));
    }
    // EC2 lists keys by number and name, unlike any other branch.
    if path == "public-keys" {
        let keys = facts
            .keys()
            .filter_map(|k| k.strip_prefix("public-keys/")?.split('/').next());
        let lines: Vec<String> = keys.map(|number| format!("{number}=key-{number}")).collect();
        return (!lines.is_empty()).then(|| text(lines.join("\n")));
    }
    let prefix = if path.is_empty() { path } else { path + "/" };
    let mut lines: Vec<String> = Vec::new();
    for rest in facts.keys().filter_map(|k| k.strip_prefix(&prefix)) {
        let line = match rest.split_once('/') {
            Some((branch, _)) => format!("{branch}/"),
            None => rest.to_owned(),
        };
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    (!lines.is_empty()).then(|| text(lines.join("\n")))
}

/// All leaves below `meta-data/`.
fn facts(subject: &Subject) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut put = |key: &str, value: String| {
        facts.insert(key.to_owned(), value);
    };
    put("ami-id", "ami-none".into());
    put("ami-launch-index", "0".into());
    put("hostname", subject.full_name());
    put("local-hostname", subject.full_name());
    put("instance-id", subject.instance_id());
    put("instance-type", "vbm".into());
    put("local-ipv4", subject.address.to_string());
    put("mac", subject.mac.to_string());
    put("reservation-id", format!("r-{}", subject.port.short()));
    if let Some(node) = subject.instance.as_ref().and_then(|i| i.node.clone()) {
        put("placement/availability-zone", node);
    }
    for (number, key) in subject.ssh_keys().iter().enumerate() {
        put(&format!("public-keys/{number}/openssh-key"), key.clone());
    }
    for (number, mac) in subject.macs().iter().enumerate() {
        let below = format!("network/interfaces/macs/{mac}");
        put(&format!("{below}/mac"), mac.to_string());
        put(&format!("{below}/device-number"), number.to_string());
        // Of its other NICs this network knows no more than that they are there.
        if *mac == subject.mac {
            put(&format!("{below}/local-hostname"), subject.full_name());
            put(&format!("{below}/local-ipv4s"), subject.address.to_string());
            put(
                &format!("{below}/subnet-ipv4-cidr-block"),
                subject.cidr.to_string(),
            );
            put(
                &format!("{below}/interface-id"),
                format!("eni-{}", subject.port.short()),
            );
        }
    }
    facts
}

fn identity(subject: &Subject) -> Value {
    let node = subject.instance.as_ref().and_then(|i| i.node.as_deref());
    json!({
        "version": "2017-09-30",
        "instanceId": subject.instance_id(),
        "instanceType": "vbm",
        "privateIp": subject.address,
        "region": "vbm",
        "availabilityZone": node.unwrap_or("vbm"),
    })
}

fn nocloud(subject: &Subject, rest: &[&str]) -> Option<Document> {
    let yaml = |value: Value| text(format!("{value:#}\n"));
    match rest {
        [] => Some(text("meta-data\nnetwork-config\nuser-data\nvendor-data")),
        ["meta-data"] => Some(yaml(json!({
            "instance-id": subject.instance_id(),
            "local-hostname": subject.full_name(),
            "public-keys": subject.ssh_keys(),
        }))),
        // Both must be there for the seed to count, even with nothing in them.
        ["user-data"] => Some(Document {
            kind: BYTES,
            body: subject.user_data().unwrap_or_default().to_vec(),
        }),
        ["vendor-data"] => Some(text("")),
        ["network-config"] => Some(yaml(network(&subject.macs()))),
        _ => None,
    }
}

/// Version 2: each NIC by its MAC, all else by DHCP. The way out, and the way here, are those of the first.
fn network(macs: &[Mac]) -> Value {
    let nic = |(number, mac): (usize, &Mac)| {
        let name = format!("eth{number}");
        let mut nic = json!({ "match": { "macaddress": mac.to_string() }, "set-name": name, "dhcp4": true });
        if number > 0 {
            nic["dhcp4-overrides"] = json!({ "use-routes": false });
        }
        (name, nic)
    };
    let ethernets: serde_json::Map<String, Value> = macs.iter().enumerate().map(nic).collect();
    json!({ "version": 2, "ethernets": ethernets })
}

impl Subject {
    fn user_data(&self) -> Option<&[u8]> {
        self.instance.as_ref()?.user_data.as_deref()
    }
    fn ssh_keys(&self) -> &[String] {
        self.instance
            .as_ref()
            .map(|i| &i.ssh_keys[..])
            .unwrap_or_default()
    }
    /// Without more, a VM is known by its port.
    fn instance_id(&self) -> String {
        let id = self.instance.as_ref().map(|i| i.id.clone());
        id.unwrap_or_else(|| format!("i-{}", self.port.uuid().simple()))
    }
    fn full_name(&self) -> String {
        let own = self.instance.as_ref().and_then(|i| i.name.as_ref());
        let host = own.unwrap_or(&self.hostname);
        match &self.domain {
            Some(domain) => format!("{host}.{domain}"),
            None => host.to_string(),
        }
    }
    fn macs(&self) -> Vec<Mac> {
        let known = self
            .instance
            .as_ref()
            .map(|i: &std::sync::Arc<Instance>| i.macs.clone());
        known
            .filter(|macs| macs.contains(&self.mac))
            .unwrap_or_else(|| vec![self.mac])
    }
}
