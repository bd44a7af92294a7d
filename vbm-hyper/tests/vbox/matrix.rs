//! The page on hypervisors has the capability matrix as the drivers tell it.

use crate::vbox::FakeBench;
use std::path::Path;
use vbm_hyper::{Driver, QemuConfig, QemuDriver, SimDriver, capability_matrix};

const BEGIN: &str = "<!-- capabilities -->\n";
const END: &str = "<!-- /capabilities -->";

/// `VBM_BLESS=1` writes the page anew.
#[tokio::test]
async fn the_page_on_hypervisors_has_the_matrix_as_the_drivers_tell_it() {
    let bench = FakeBench::make().await;
    let (sim, virtualbox) = (SimDriver::new(), bench.driver().await);
    // What it can do does not depend on the host: the directory is all it needs.
    let qemu = QemuDriver::open(QemuConfig::new(bench.dir.path().join("qemu")))
        .await
        .unwrap();
    let drivers: [&dyn Driver; 3] = [&qemu, &virtualbox, &sim];
    let matrix = capability_matrix(&drivers).to_markdown();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hypervisors.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the page has a place for it");
    let (there, after) = rest.split_once(END).expect("the place has an end");
    if std::env::var_os("VBM_BLESS").is_some() {
        std::fs::write(&page, format!("{before}{BEGIN}{matrix}{END}{after}")).unwrap();
    } else {
        assert_eq!(there, matrix, "write it anew with VBM_BLESS=1");
    }
    for driver in drivers {
        driver.shutdown().await;
    }
}
