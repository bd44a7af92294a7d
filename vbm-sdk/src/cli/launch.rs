//! `vbm launch`.

use super::{args::Launch, forms, human, session::Session};
use crate::api::{LaunchRequest, VmView};
use vbm_core::{Error, ErrorKind};

pub(super) async fn run(on: &Session<'_>, args: Launch) -> Result<(), Error> {
    let made = on.client.vms().launch(request(&args)?).await?;
    if !on.finish(&made.operation).await? {
        return Ok(());
    }
    let vm = on.client.vms().get(made.item.vm.meta.id.to_string()).await?;
    let name = vm.vm.meta.name.to_string();
    on.out.done(&vm, &name, &told(&vm))?;
    on.out.hint(&if args.stopped {
        format!("start it with `vbm start {name}`")
    } else {
        format!("its console: `vbm console {name}`, all about it: `vbm info {name}`")
    });
    Ok(())
}

/// What was typed, as a request.
fn request(args: &Launch) -> Result<LaunchRequest, Error> {
    let memory = human::parse_mib(&args.memory)?;
    Ok(LaunchRequest {
        image: args.image.clone(),
        name: args.name.as_deref().map(str::parse).transpose()?,
        vcpus: args.cpus,
        memory_mib: u32::try_from(memory).map_err(|_| too_much(&args.memory))?,
        disk_mib: args.disk.as_deref().map(human::parse_mib).transpose()?,
        nics: forms::nics(
            &args.networks,
            &args.groups,
            args.address.as_deref(),
            args.mac.as_deref(),
        )?,
        driver: args.driver.as_deref().map(str::parse).transpose()?,
        node: args.node.as_deref().map(str::parse).transpose()?,
        stopped: args.stopped,
        labels: forms::labels(&args.labels)?,
        guest: forms::guest(args.user_data.as_deref(), &args.ssh_keys)?,
    })
}

fn too_much(text: &str) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("a VM cannot have {text} of memory"),
        "8T is the most",
        "choose less with --memory",
    )
}

/// `web1 is running: 10.0.0.2 on lan`.
fn told(vm: &VmView) -> String {
    let nics = vm.nics.iter().map(|nic| {
        let six = nic
            .port
            .spec
            .address6
            .map(|a| format!(" and {a}"))
            .unwrap_or_default();
        format!("{}{six} on {}", nic.port.spec.address, nic.network_name)
    });
    let nics = nics.collect::<Vec<_>>().join(", ");
    let head = format!("{} is {}", vm.vm.meta.name, vm.vm.status.power);
    if nics.is_empty() {
        format!("{head}, without network")
    } else {
        format!("{head}: {nics}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        args::{Cli, Command},
        list::tests::sample,
    };
    use super::*;
    use clap::Parser;

    fn typed(words: &str) -> Result<LaunchRequest, Error> {
        let cli = Cli::try_parse_from(format!("vbm launch {words}").split(' ')).unwrap();
        let Command::Launch(args) = cli.command else {
            panic!("{words}")
        };
        request(&args)
    }

    #[test]
    fn the_shortest_launch_is_an_image() {
        assert_eq!(typed("tiny").unwrap(), LaunchRequest::new("tiny"));
    }

    #[test]
    fn all_that_is_typed_reaches_the_request() {
        let request = typed(
            "tiny web1 --cpus 2 --memory 1G --disk 10G --network lan --group web --address 10.0.0.5 \
             --node eu/n1 --driver sim --stopped --label a=b",
        )
        .unwrap();
        assert_eq!(
            (request.vcpus, request.memory_mib, request.disk_mib),
            (2, 1_024, Some(10_240))
        );
        assert_eq!(request.nics[0].address.unwrap().to_string(), "10.0.0.5");
        assert_eq!(request.nics[0].groups, ["web"]);
        assert_eq!(request.node.unwrap().to_string(), "eu/n1");
        assert_eq!(request.driver, Some(vbm_core::DriverKind::Sim));
        assert!(request.stopped && request.labels["a"] == "b");
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_asked() {
        for bad in [
            "tiny Web1",
            "tiny --memory 1X",
            "tiny --memory 9999T",
            "tiny --node A",
            "tiny --driver xen",
            "tiny --address 10.0.0.5",
        ] {
            assert_eq!(typed(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn files_for_the_guest_are_read_and_those_that_do_not_serve_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let data = put("data", b"#cloud-config\n");
        let keys = put("keys", b"# mine\nssh-rsa AAAA a\n\nssh-ed25519 BBBB b\n");
        let guest = typed(&format!("tiny --user-data {data} --ssh-key {keys}"))
            .unwrap()
            .guest;
        assert_eq!(guest.user_data.unwrap().bytes().unwrap(), b"#cloud-config\n");
        assert_eq!(guest.ssh_keys, ["ssh-rsa AAAA a", "ssh-ed25519 BBBB b"]);
        let large = put("large", &vec![b'x'; vbm_core::limits::USER_DATA_MAX_BYTES + 1]);
        let private = put("private", b"-----BEGIN OPENSSH PRIVATE KEY-----\n");
        let empty = put("empty", b"# nothing\n");
        for bad in [
            format!("tiny --user-data {large}"),
            format!("tiny --ssh-key {private}"),
            format!("tiny --ssh-key {empty}"),
            "tiny --user-data /nowhere".to_owned(),
        ] {
            assert_eq!(typed(&bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn what_was_launched_is_told_in_a_line() {
        assert_eq!(told(&sample()), "web1 is running: 10.0.0.2 on lan");
    }
}
