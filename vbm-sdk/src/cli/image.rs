//! `vbm image`, and `vbm screenshot`.

mod bring;
mod export;

use super::{
    args::{Image, ImageImport, Screenshot},
    guest, human,
    info::Lines,
    progress::Progress,
    session::Session,
    table::Table,
};
use crate::api::CreateImage;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use vbm_core::{Boot, Digest, Error, ErrorKind, ImageId, Timestamp};
use vbm_hyper::ImageFormat;

const NONE_YET: &str =
    "no images yet: make one with `vbm image import NAME --disk FILE`, or from `cargo xtask guest`";

pub(super) async fn run(on: &Session<'_>, verb: Image) -> Result<(), Error> {
    let images = on.client.images();
    match verb {
        Image::Import(args) => import(on, &args).await,
        Image::List => {
            let all = images.list().all().await?;
            let users = users(on).await?;
            on.out.list(
                &all,
                |i| i.meta.name.to_string(),
                &table(&all, &users, on.now()),
                NONE_YET,
            )
        }
        Image::Info(args) => {
            let image = images.get(&args.image).await?;
            let users = users(on).await?;
            on.out.item(
                &image,
                image.meta.name.as_str(),
                &detail(&image, &users, on.now()),
            )
        }
        Image::Export(args) => export::run(on, &args).await,
        Image::Delete(args) => {
            let act = |name: String| images.delete(name).into_future();
            on.each_at_once(&args.images, act, |name| format!("{name} is gone"))
                .await
        }
    }
}

/// The names of the VMs whose disks rest on an image.
type Users = BTreeMap<ImageId, Vec<String>>;

async fn users(on: &Session<'_>) -> Result<Users, Error> {
    let mut users = Users::new();
    for vm in on.client.vms().list().all().await? {
        users
            .entry(vm.vm.spec.image)
            .or_default()
            .push(vm.vm.meta.name.to_string());
    }
    Ok(users)
}

/// A file to send, and what its content should be where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) sha256: Option<Digest>,
}

/// All that an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) disk: Source,
    /// As it was said; recognised when absent.
    pub(super) format: Option<ImageFormat>,
    /// Kernel, initial RAM disk, command line.
    pub(super) kernel: Option<(Source, Source, String)>,
}

async fn import(on: &Session<'_>, args: &ImageImport) -> Result<(), Error> {
    let name = args.name.parse()?;
    let parts = parts(args).await?;
    let boot = match &parts.kernel {
        None => Boot::Disk,
        Some((kernel, initrd, cmdline)) => {
            let boot = Boot::Kernel {
                kernel: send(on, kernel).await?,
                initrd: send(on, initrd).await?,
                cmdline: cmdline.clone(),
            };
            boot.check()?;
            boot
        }
    };
    let disk = bring::bring(on, &parts.disk, parts.format).await?;
    let format = disk.format;
    let sent = send(on, &disk.source).await;
    disk.clear().await;
    let request = CreateImage {
        name,
        disk: sent?,
        format,
        boot,
    };
    let image = on.client.images().create(request).await?;
    let name = image.meta.name.to_string();
    let text = format!(
        "{name} is there: {} of {}",
        human::bytes(image.spec.virtual_bytes),
        image.spec.format
    );
    on.out.done(&image, &name, &text)?;
    on.out
        .hint(&format!("make a VM of it with `vbm launch {name} NAME`"));
    Ok(())
}

async fn parts(args: &ImageImport) -> Result<Parts, Error> {
    if let Some(dir) = &args.guest {
        return guest::read(dir).await;
    }
    let source = |path: &PathBuf| Source {
        path: path.clone(),
        sha256: None,
    };
    let Some(disk) = &args.disk else {
        return Err(Error::internal(
            "no disk was named",
            "clap lets --disk or --guest be left out",
        ));
    };
    let kernel = args.kernel.as_ref().zip(args.initrd.as_ref());
    let format = args.format.as_deref().map(str::parse::<ImageFormat>).transpose();
    Ok(Parts {
        disk: Source {
            path: disk.clone(),
            sha256: args.sha256.as_deref().map(str::parse).transpose()?,
        },
        format: format.map_err(|why| {
            Error::new(
                ErrorKind::InvalidInput,
                "the format is not known",
                why,
                "leave it out: it is recognised",
            )
        })?,
        kernel: kernel.map(|(kernel, initrd)| (source(kernel), source(initrd), args.cmdline.clone())),
    })
}

/// Sends a file; what arrives must be what was expected.
async fn send(on: &Session<'_>, source: &Source) -> Result<Digest, Error> {
    let mut progress = Progress::new(on.out);
    let file = source
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut upload = on.client.images().upload(&source.path);
    if on.timeout.is_some() {
        upload = upload.deadline(on.left());
    }
    let blob = upload
        .on_progress(|sent, total| progress.bytes(&file, sent, total))
        .await?;
    match source.sha256 {
        Some(expected) if expected != blob.digest => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{} is not what was said of it", source.path.display()),
            format!("its SHA-256 is {}, and not {expected}", blob.digest),
            "fetch it again; make a guest again with `cargo xtask guest`",
        )),
        _ => Ok(blob.digest),
    }
}

pub(super) async fn screenshot(on: &Session<'_>, args: &Screenshot) -> Result<(), Error> {
    let png = on.client.vms().screenshot(&args.vm).await?;
    if args.file == Path::new("-") {
        return on.out.bytes(&png);
    }
    tokio::fs::write(&args.file, &png).await.map_err(|error| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("cannot write {}", args.file.display()),
            error.to_string(),
            "name a file that you may write",
        )
    })?;
    let file = args.file.display().to_string();
    let saved = serde_json::json!({ "file": file, "bytes": png.len() });
    on.out.done(
        &saved,
        &file,
        &format!("saved {file}: {}", human::bytes(png.len() as u64)),
    )
}

fn boots(image: &vbm_core::Image) -> &'static str {
    match image.spec.boot {
        Boot::Kernel { .. } => "kernel",
        _ => "disk",
    }
}

fn table(images: &[vbm_core::Image], users: &Users, now: Timestamp) -> Table {
    let mut table = Table::new(
        &["NAME", "SIZE", "FILE", "FORMAT", "BOOT", "VMS", "AGE"],
        &["ID", "SHA256"],
    );
    for image in images {
        let (meta, spec) = (&image.meta, &image.spec);
        table.row([
            meta.name.to_string(),
            human::bytes(spec.virtual_bytes),
            human::bytes(spec.file_bytes),
            spec.format.to_string(),
            boots(image).to_owned(),
            users.get(&meta.id).map_or(0, Vec::len).to_string(),
            human::age(now, meta.created_at),
            meta.id.to_string(),
            spec.disk.to_string(),
        ]);
    }
    table
}

fn detail(image: &vbm_core::Image, users: &Users, now: Timestamp) -> String {
    let spec = &image.spec;
    let mut lines = Lines::default();
    lines.meta(&image.meta, now);
    lines.put(
        "Disk",
        format!(
            "{}, {} file of {}",
            human::bytes(spec.virtual_bytes),
            spec.format,
            human::bytes(spec.file_bytes)
        ),
    );
    lines.put("SHA-256", spec.disk.to_string());
    if let Some(users) = users.get(&image.meta.id) {
        lines.put("VMs on it", users.join(", "));
    }
    match &spec.boot {
        Boot::Kernel {
            kernel,
            initrd,
            cmdline,
        } => {
            lines.put("Boots", "by a kernel of its own");
            lines.put("  kernel", kernel.to_string());
            lines.put("  initrd", initrd.to_string());
            lines.put("  cmdline", &**cmdline);
        }
        _ => lines.put("Boots", "from its disk"),
    }
    lines.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{DiskFormat, ImageSpec, Meta};

    #[test]
    fn images_are_listed_with_their_sizes() {
        let image = vbm_core::Image {
            meta: Meta::new(
                ImageId::from_uuid(uuid::Uuid::from_u128(7)),
                "tiny".parse().unwrap(),
                Timestamp::from_micros(0),
            ),
            spec: ImageSpec {
                disk: Digest::new([7; 32]),
                format: DiskFormat::Qcow2,
                file_bytes: 3 << 20,
                virtual_bytes: 64 << 20,
                boot: Boot::Disk,
            },
        };
        assert_eq!(
            table(
                std::slice::from_ref(&image),
                &Users::from([(image.meta.id, vec!["a".into(), "b".into()])]),
                Timestamp::from_micros(0)
            )
            .render(false, Some(80)),
            "NAME  SIZE  FILE  FORMAT  BOOT  VMS  AGE\ntiny  64M   3M    qcow2   disk  2    0s"
        );
    }
}
