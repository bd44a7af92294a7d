//! With the feature `web`: makes the table of the page's files, for `src/http/web/page.rs` to include.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
};

/// The deepest folder that is looked into: a bundler makes two.
const DEPTH_MAX: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_WEB").is_none() {
        return Ok(());
    }
    let dist = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("web/dist");
    println!("cargo::rerun-if-changed={}", dist.display());
    let mut files = Vec::new();
    if dist.join("index.html").is_file() {
        list(&dist, DEPTH_MAX, &mut files)?;
        files.sort();
    }
    let mut table = String::from("&[\n");
    for file in &files {
        // The list is made anew when a file changes, comes or goes.
        println!("cargo::rerun-if-changed={}", file.display());
        let path = file
            .strip_prefix(&dist)?
            .to_str()
            .ok_or("a file name is not UTF-8")?;
        let mut hash = DefaultHasher::new();
        hash.write(&fs::read(file)?);
        writeln!(
            table,
            "File {{ path: {:?}, content_type: {:?}, etag: {:?}, bytes: include_bytes!({:?}) }},",
            format!("/{path}"),
            content_type(file),
            format!("\"{:016x}\"", hash.finish()),
            file
        )?;
    }
    table.push(']');
    // Lints and documents do not need the page.
    if files.is_empty() {
        table = "{\n#[cfg(not(any(clippy, doc)))]\ncompile_error!(\"the page of the web console is not built: run `cargo xtask web`, \
                 or build without the feature `web`\");\n&[]\n}"
            .to_owned();
    }
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("page.rs"), table)?;
    Ok(())
}

fn list(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true if depth == 0 => return Err(format!("{} is too deep", path.display()).into()),
            true => list(&path, depth - 1, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

fn content_type(file: &Path) -> &'static str {
    match file.extension().and_then(|e| e.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("webp") => "image/webp",
        Some("ico") => "image/x-icon",
        Some("woff2") => "font/woff2",
        Some("woff") => "font/woff",
        Some("ttf") => "font/ttf",
        Some("wasm") => "application/wasm",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
