//! Lines of somebody's own, run in the machine: to look around, and to record what VBoxManage says.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Times;
use super::image::Image;
use super::machine::{Machine, Plan};
use crate::demo::Interrupts;
use crate::fault::{Done, Fault};
use crate::say;

/// The longest that one line may take.
const LINE_WITHIN: Duration = Duration::from_secs(300);

/// Boots the machine, runs the lines of `script`, shows each with its output and exit status, ends the machine.
pub(super) fn play(
    dir: &Path,
    image: &Image,
    script: &Path,
    bring: &[PathBuf],
    interrupts: &Interrupts,
    times: &mut Times,
) -> Done {
    let text = std::fs::read_to_string(script).map_err(|error| Fault::file("read", script, &error))?;
    let plan = Plan {
        files: bring.iter().filter_map(|path| brought(path)).collect(),
        ..Plan::default()
    };
    let since = Instant::now();
    let mut machine = Machine::boot(dir, image, &plan, interrupts)?;
    times.note("machine", "up", since);
    for line in lines(&text) {
        say::line(&format!("# {line}"));
        let since = Instant::now();
        let reply = machine.run(line, LINE_WITHIN)?;
        say::line(reply.text.trim_end());
        say::line(&format!(
            "# status {} after {:.1} s",
            reply.status,
            since.elapsed().as_secs_f64()
        ));
    }
    machine.end()
}

fn brought(path: &Path) -> Option<(String, PathBuf)> {
    let name = path.file_name()?.to_str()?;
    Some((format!("brought/{name}"), path.to_owned()))
}

/// Empty lines and comments say nothing to the machine.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_are_not_sent() {
        assert_eq!(lines("# a\n\n  b c \n").collect::<Vec<_>>(), ["b c"]);
        assert_eq!(brought(Path::new("/x/y.vdi")).unwrap().0, "brought/y.vdi");
    }
}
