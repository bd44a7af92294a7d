//! `vbm orphans VERB`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Orphans {
    /// List processes and run directories that no daemon looks after, and why
    #[command(alias = "ls")]
    List(OrphanPlaces),
    /// Clear away what is dead; end what lives only if it is named with --vm
    Gc(OrphansGc),
    /// Hand a VM whose daemon never comes back over to another one; both must be stopped, and the VM runs on
    Adopt(OrphanAdopt),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OrphanPlaces {
    /// Also look into this run directory of VMs; those of known instances, and of all that runs, are looked into anyway
    #[arg(long = "run-dir", value_name = "DIR")]
    pub(in crate::cli) run_dirs: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vbm orphans gc
  vbm orphans gc --dry-run
  vbm orphans gc --vm 0199c8d2-5b4e-7d7b-9a43-0c2f5e0f6a11")]
pub(in crate::cli) struct OrphansGc {
    #[command(flatten)]
    pub(in crate::cli) places: OrphanPlaces,
    /// Also end this VM, by its whole id, though it runs or cannot be understood; may be repeated
    #[arg(long = "vm", value_name = "ID")]
    pub(in crate::cli) vms: Vec<vbm_core::VmId>,
    /// Only say what would be done
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vbm orphans adopt ID --from /run/vbm/OLD/vm --from-state /var/lib/old/vm --into /run/vbm/NEW/vm --into-state /var/lib/vbm/vm")]
pub(in crate::cli) struct OrphanAdopt {
    /// The VM, by its whole id
    pub(in crate::cli) vm: vbm_core::VmId,
    /// The run directory of VMs that it is in
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) from: PathBuf,
    /// The state directory that goes with it; the run directory when left out
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) from_state: Option<PathBuf>,
    /// The run directory of VMs of the daemon that shall have it
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) into: PathBuf,
    /// The state directory that goes with that
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) into_state: Option<PathBuf>,
}
