//! `vbm image export`.

use super::super::{args::ImageExport, human, progress::Progress, session::Session};
use vbm_core::Error;

pub(super) async fn run(on: &Session<'_>, args: &ImageExport) -> Result<(), Error> {
    let file = args.file.display().to_string();
    let mut progress = Progress::new(on.out);
    let mut download = on
        .client
        .images()
        .download(&args.image, &args.file)
        .format(args.format.clone());
    if on.timeout.is_some() {
        download = download.deadline(on.left());
    }
    let bytes = download
        .on_progress(|bytes| progress.moved("received", &file, bytes, 0))
        .await?;
    drop(progress);
    let saved = serde_json::json!({ "file": file, "bytes": bytes });
    on.out
        .done(&saved, &file, &format!("saved {file}: {}", human::bytes(bytes)))
}
