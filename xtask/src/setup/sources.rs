//! Reading apt's sources, and deriving a backports entry from the machine's own mirror. Pure.
//!
//! Both formats are understood: deb822 stanzas (`*.sources`) and one-line entries (`*.list`). Only what a new
//! entry needs is kept; mirrors are copied, never named here.

/// One entry of apt's sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) uris: Vec<String>,
    pub(super) suites: Vec<String>,
    pub(super) components: Vec<String>,
    /// The value of `Signed-By`, continuation lines of an inline key included.
    pub(super) signed_by: Option<String>,
}

/// Reads a `*.sources` file: stanzas between empty lines. Disabled and source-only stanzas are left out.
pub(super) fn parse_deb822(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter_map(stanza)
        .collect()
}

fn stanza(lines: &[&str]) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut()?;
            value.push('\n');
            value.push_str(line);
        } else {
            let (name, value) = line.split_once(':')?;
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |name: &str| {
        fields
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    };
    let words =
        |name: &str| field(name).map(|value| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    if field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"))
        || !words("types")?.iter().any(|word| word == "deb")
    {
        return None;
    }
    Some(Source {
        uris: words("uris")?,
        suites: words("suites")?,
        components: words("components").unwrap_or_default(),
        signed_by: field("signed-by").map(str::to_owned),
    })
}

/// Reads a `*.list` file: `deb [options] uri suite component...`.
pub(super) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.map(|value| value.replace(',', " ")),
    })
}

/// Whether some entry already offers the backports of this release.
pub(super) fn has_backports(sources: &[Source], codename: &str) -> bool {
    let suite = format!("{codename}-backports");
    sources.iter().any(|source| source.suites.contains(&suite))
}

/// The entry that has the release's component main.
pub(super) fn main_of<'a>(sources: &'a [Source], codename: &str) -> Option<&'a Source> {
    sources.iter().find(|source| {
        source.suites.iter().any(|suite| suite == codename)
            && source.components.iter().any(|part| part == "main")
    })
}

/// A deb822 file that offers backports from the mirror of the release's main component.
pub(super) fn backports_file(sources: &[Source], codename: &str) -> Option<String> {
    let source = main_of(sources, codename)?;
    let mut text = format!(
        "# Made by `cargo xtask setup`: QEMU here comes from backports. Remove at will.\n\
         Types: deb\nURIs: {}\nSuites: {codename}-backports\nComponents: main\n",
        source.uris.join(" ")
    );
    if let Some(key) = &source.signed_by {
        text.push_str(&format!("Signed-By: {key}\n"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
        Components: main contrib\nSigned-By: /usr/share/keyrings/a.gpg\n\n\
        Types: deb-src\nURIs: http://mirror.test/src\nSuites: bookworm\nComponents: main\n\n\
        Enabled: no\nTypes: deb\nURIs: http://off.test\nSuites: bookworm-backports\nComponents: main\n";

    #[test]
    fn deb822_keeps_enabled_binary_stanzas() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/usr/share/keyrings/a.gpg"));
        assert!(!has_backports(&sources, "bookworm"));
    }

    #[test]
    fn an_inline_key_keeps_its_lines() {
        let text = "Types: deb\nURIs: http://m.test\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n";
        let file = backports_file(&parse_deb822(text), "bookworm").unwrap();
        assert!(file.ends_with("Signed-By: \n -----BEGIN\n .\n abc\n"), "{file}");
    }

    #[test]
    fn one_line_entries_are_read_with_and_without_options() {
        let text = "# deb http://no.test x main\ndeb http://m.test/debian bookworm main # here\n\
            deb [arch=amd64 signed-by=/k.gpg] https://m.test bookworm-backports main\ndeb-src http://m.test bookworm main\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].uris, ["http://m.test/debian"]);
        assert_eq!(sources[0].components, ["main"]);
        assert_eq!(sources[1].signed_by.as_deref(), Some("/k.gpg"));
        assert!(has_backports(&sources, "bookworm"));
    }

    #[test]
    fn backports_come_from_the_mirror_of_main() {
        let file = backports_file(&parse_deb822(DEB822), "bookworm").unwrap();
        assert!(
            file.contains("URIs: http://mirror.test/debian\nSuites: bookworm-backports\nComponents: main\n")
        );
        assert!(file.contains("Signed-By: /usr/share/keyrings/a.gpg\n"));
        assert_eq!(
            backports_file(
                &parse_list("deb http://sec.test bookworm-security main"),
                "bookworm"
            ),
            None
        );
    }
}
