//! `vbm volume`.

use super::{args::Volume, human, session::Session, table::Table};
use std::collections::BTreeMap;
use vbm_core::{Error, ImageId, Timestamp, VmId};

const NONE_YET: &str = "no volumes: each VM has one; make a VM with `vbm launch IMAGE NAME`";

pub(super) async fn run(on: &Session<'_>, verb: Volume) -> Result<(), Error> {
    let Volume::List(args) = verb;
    let mut listing = on.client.volumes().list();
    if let Some(vm) = &args.vm {
        listing = listing.vm(vm);
    }
    let volumes = listing.all().await?;
    let names = Names {
        vms: on
            .client
            .vms()
            .list()
            .all()
            .await?
            .into_iter()
            .map(|v| (v.vm.meta.id, v.vm.meta.name.to_string()))
            .collect(),
        images: on
            .client
            .images()
            .list()
            .all()
            .await?
            .into_iter()
            .map(|i| (i.meta.id, i.meta.name.to_string()))
            .collect(),
    };
    on.out.list(
        &volumes,
        |v| v.meta.name.to_string(),
        &table(&volumes, &names, on.now()),
        NONE_YET,
    )
}

/// The names of what volumes point at; what was deleted meanwhile is shown by its id.
struct Names {
    vms: BTreeMap<VmId, String>,
    images: BTreeMap<ImageId, String>,
}

fn table(volumes: &[vbm_core::Volume], names: &Names, now: Timestamp) -> Table {
    let mut table = Table::new(&["NAME", "SIZE", "VM", "IMAGE", "AGE"], &["ID"]);
    for volume in volumes {
        let (meta, spec) = (&volume.meta, &volume.spec);
        table.row([
            meta.name.to_string(),
            human::bytes(spec.virtual_bytes),
            names
                .vms
                .get(&spec.vm)
                .cloned()
                .unwrap_or_else(|| spec.vm.to_string()),
            names
                .images
                .get(&spec.image)
                .cloned()
                .unwrap_or_else(|| spec.image.to_string()),
            human::age(now, meta.created_at),
            meta.id.to_string(),
        ]);
    }
    table
}
