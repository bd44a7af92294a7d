//! Plain pages: what somebody sees who has no other page.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

/// A page that says something. All text is escaped: it may be anything, also what somebody else sent.
pub(super) fn message(status: StatusCode, title: &str, lines: &[&str]) -> Response {
    page(status, title, lines, "")
}

/// The same, with a link.
pub(super) fn message_with_link(
    status: StatusCode,
    title: &str,
    lines: &[&str],
    link: (&str, &str),
) -> Response {
    let link = format!("<p><a href=\"{}\">{}</a></p>\n", escape(link.0), escape(link.1));
    page(status, title, lines, &link)
}

fn page(status: StatusCode, title: &str, lines: &[&str], after: &str) -> Response {
    let title = escape(title);
    let lines: String = lines
        .iter()
        .map(|line| format!("<p>{}</p>\n", code(&escape(line))))
        .collect();
    let text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>VBM: {title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<style>\n\
         :root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }}\n\
         body {{ max-width: 40rem; margin: 15vh auto 0; padding: 0 1.5rem; }}\n\
         code {{ font-size: 1.05em; padding: .1em .3em; border: 1px solid #8884; border-radius: .25em; }}\n\
         </style>\n</head>\n<body>\n<h1>{title}</h1>\n{lines}{after}</body>\n</html>\n"
    );
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Shows what stands between backticks as something to be typed.
fn code(escaped: &str) -> String {
    let mut html = String::with_capacity(escaped.len());
    let mut parts = escaped.split('`').enumerate().peekable();
    while let Some((n, part)) = parts.next() {
        match (n % 2 == 1, parts.peek().is_some()) {
            (true, true) => html.extend(["<code>", part, "</code>"]),
            // A backtick without its partner stays what it is.
            (true, false) => html.extend(["`", part]),
            (false, _) => html.push_str(part),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_whatever_it_is() {
        assert_eq!(
            code(&escape("<script>alert(\"网络\")</script> & 'x'")),
            "&lt;script&gt;alert(&quot;网络&quot;)&lt;/script&gt; &amp; &#39;x&#39;"
        );
        assert_eq!(
            code(&escape("run `vbm <x>` or `y")),
            "run <code>vbm &lt;x&gt;</code> or `y"
        );
    }
}
