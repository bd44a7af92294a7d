//! `vbm web`.

use super::{args::Web, session::Session};
use vbm_core::Error;

pub(super) async fn run(on: &Session<'_>, verb: Web) -> Result<(), Error> {
    let Web::Login = verb;
    let link = on.client.web().login_link().await?;
    on.out.item(&link, &link.url, &link.url)?;
    on.out
        .hint("open it in a browser on this machine; it works once, for ten minutes");
    Ok(())
}
