//! The capability matrix: what each driver can do, each "no" with its reason. A value, from which documents are made.

use crate::{Driver, Facet};
use vbm_core::DriverKind;

/// Every facet that a matrix has a row for, with its words.
const ROWS: &[(Facet, &str)] = &[
    (Facet::Consoles, "serial line, screenshot, VNC"),
    (Facet::TapNics, "NICs on tap devices"),
    (Facet::HostInterfaceNics, "NICs on interfaces of the host"),
    (Facet::Snapshots, "snapshots"),
    (Facet::SavedState, "saved memory"),
    (Facet::Migration, "live migration"),
    (Facet::Hotplug, "disks, NICs and media that come and go"),
];

/// What some drivers can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CapabilityMatrix {
    /// The drivers, in the order of the columns.
    pub drivers: Vec<DriverKind>,
    /// A row for each facet: its words, and for each driver why it is missing, if it is.
    pub rows: Vec<(&'static str, Vec<Option<String>>)>,
}

/// What these drivers can do, as they say themselves.
pub fn capability_matrix(drivers: &[&dyn Driver]) -> CapabilityMatrix {
    let row = |(facet, words): &(Facet, &'static str)| {
        (
            *words,
            drivers.iter().map(|driver| driver.missing(*facet)).collect(),
        )
    };
    CapabilityMatrix {
        drivers: drivers.iter().map(|driver| driver.kind()).collect(),
        rows: ROWS.iter().map(row).collect(),
    }
}

/// What a driver cannot do at all.
pub(super) fn missing(driver: &dyn Driver) -> Vec<(Facet, String)> {
    let missing = |(facet, _): &(Facet, &str)| Some((*facet, driver.missing(*facet)?));
    ROWS.iter().filter_map(missing).collect()
}

impl CapabilityMatrix {
    /// The matrix as a table of Markdown, with the reasons below it.
    pub fn to_markdown(&self) -> String {
        let mut text = String::from("| |");
        let mut rule = String::from("|---|");
        for driver in &self.drivers {
            text.push_str(&format!(" {driver} |"));
            rule.push_str("---|");
        }
        text = format!("{text}\n{rule}\n");
        let mut reasons: Vec<String> = Vec::new();
        for (words, missing) in &self.rows {
            text.push_str(&format!("| {words} |"));
            for why in missing {
                match why {
                    None => text.push_str(" yes |"),
                    Some(why) => {
                        let number = reasons.iter().position(|known| known == why).unwrap_or_else(|| {
                            reasons.push(why.clone());
                            reasons.len() - 1
                        });
                        text.push_str(&format!(" no ({}) |", number + 1));
                    }
                }
            }
            text.push('\n');
        }
        if !reasons.is_empty() {
            text.push('\n');
        }
        for (at, why) in reasons.iter().enumerate() {
            text.push_str(&format!("{}. {why}.\n", at + 1));
        }
        text
    }
}
