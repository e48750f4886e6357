//! Text from strangers inside one-line messages.

use std::fmt::{self, Display, Write};

/// The most characters of a name that a message shows: two names and their numbers must fit 503 bytes.
const SHOWN: usize = 80;

/// Shows `text` in double quotes on one line: control characters are escaped, a long middle is left out.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        // A name may be 100 MB long, so its length is asked for only as far as it matters.
        if self.0.chars().nth(SHOWN).is_none() {
            write!(f, "{}", self.0.escape_debug())?;
        } else {
            let head: String = self.0.chars().take(SHOWN / 2).collect();
            let tail: Vec<char> = self.0.chars().rev().take(SHOWN / 2).collect();
            let tail: String = tail.into_iter().rev().collect();
            write!(f, "{}...{}", head.escape_debug(), tail.escape_debug())?;
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_shows_short_names_as_they_are() {
        assert_eq!(Quoted("model.权重").to_string(), "\"model.权重\"");
        assert_eq!(Quoted("").to_string(), "\"\"");
    }

    #[test]
    fn quoted_escapes_what_would_break_a_line_or_a_terminal() {
        assert_eq!(Quoted("a\n\u{1b}[31m\"").to_string(), r#""a\n\u{1b}[31m\"""#);
    }

    #[test]
    fn quoted_keeps_both_ends_of_a_long_name() {
        let shown = Quoted(&format!("head{}tail", "x".repeat(1 << 20))).to_string();
        assert!(shown.starts_with("\"head") && shown.ends_with("tail\""));
        assert!(shown.contains("...") && shown.len() < 100);
    }
}
