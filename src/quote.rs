//! Text from strangers inside one-line messages.

use std::fmt::{self, Display, Write};

/// The most bytes of either end of a name that a message shows, escapes included: a path, a name and their numbers must fit 503.
const END: usize = 56;

/// The most bytes of a name that are copied into an error: of either end twice what is shown, so that [`Quoted`] shows of the copy
/// what it would of the name.
const KEPT: usize = 4 * END;

/// Shows `text` in double quotes on one line: control characters are escaped, a long middle is left out.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        // A name may be 100 MB long, so no more of it is looked at than is shown.
        let head = fitting(self.0.chars());
        let rest = self.0.get(head..).unwrap_or_default();
        let tail = fitting(rest.chars().rev());
        let (middle, tail) = rest.split_at_checked(rest.len() - tail).unwrap_or((rest, ""));
        write!(f, "{}", self.0.get(..head).unwrap_or_default().escape_debug())?;
        if !middle.is_empty() {
            f.write_str("...")?;
        }
        write!(f, "{}\"", tail.escape_debug())
    }
}

/// How many bytes of text these characters are, as far as they fit [`END`] bytes when escaped.
fn fitting(characters: impl Iterator<Item = char>) -> usize {
    let (mut bytes, mut shown) = (0, 0);
    for character in characters {
        shown += character.escape_debug().map(char::len_utf8).sum::<usize>();
        if shown > END {
            break;
        }
        bytes += character.len_utf8();
    }
    bytes
}

/// A copy of `name` for an error: all of it, or both ends of a long one. An error must not need as much memory as a hostile file.
#[cold]
#[inline(never)]
pub(crate) fn excerpt(name: &str) -> String {
    if name.len() <= KEPT {
        return name.to_owned();
    }
    let is_boundary = |at: &usize| name.is_char_boundary(*at);
    let head = (0..=KEPT / 2).rev().find(is_boundary).unwrap_or(0);
    let tail = (name.len() - KEPT / 2..name.len()).find(is_boundary).unwrap_or(name.len());
    [name.get(..head), name.get(tail..)].map(Option::unwrap_or_default).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_shows_short_names_as_they_are() {
        assert_eq!(Quoted("model.权重").to_string(), "\"model.权重\"");
        assert_eq!(Quoted("").to_string(), "\"\"");
        let two_ends = "x".repeat(2 * END);
        assert_eq!(Quoted(&two_ends).to_string(), format!("\"{two_ends}\""));
    }

    #[test]
    fn quoted_escapes_what_would_break_a_line_or_a_terminal() {
        assert_eq!(Quoted("a\n\u{1b}[31m\"").to_string(), r#""a\n\u{1b}[31m\"""#);
    }

    #[test]
    fn quoted_keeps_both_ends_of_a_long_name_within_bounds() {
        for middle in ["x", "权", "\u{1b}", "\u{10ffff}", "é"] {
            let name = format!("head{}tail", middle.repeat(1000));
            for name in [&name, &excerpt(&name)] {
                let shown = Quoted(name).to_string();
                assert!(shown.starts_with("\"head") && shown.ends_with("tail\""), "{shown}");
                assert!(shown.contains("...") && shown.len() <= 2 * END + 5, "{shown}");
            }
        }
    }

    #[test]
    fn excerpt_is_short() {
        assert_eq!(excerpt("name"), "name");
        assert!(excerpt(&"权".repeat(1 << 20)).len() <= KEPT);
    }
}
