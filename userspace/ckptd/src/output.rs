//! Text for people: sizes, times, tables, colours on a terminal; and JSON for scripts.

use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Writes to standard output, and ends ckptd quietly when nobody reads it any more.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// Writes to standard error, as far as that takes it: it may be a file that is full.
pub(crate) fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// One JSON document on standard output.
pub(crate) fn print_json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => tell(&format!("cannot write JSON: {error}\n")),
    }
}

/// A size in bytes: "0 B", "1.5 KiB", "12 MiB".
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// A length of time: "85 µs", "3.2 ms", "1.4 s", "2m 05s", "3h 07m".
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1e-3 {
        format!("{} µs", time.as_micros())
    } else if seconds < 1.0 {
        let ms = seconds * 1e3;
        if ms < 9.95 {
            format!("{ms:.1} ms")
        } else {
            format!("{ms:.0} ms")
        }
    } else if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else if seconds < 3600.0 {
        format!("{}m {:02}s", time.as_secs() / 60, time.as_secs() % 60)
    } else {
        format!(
            "{}h {:02}m",
            time.as_secs() / 3600,
            time.as_secs() / 60 % 60
        )
    }
}

/// A moment, given in nanoseconds since the epoch, as ISO 8601 UTC: "2026-01-31 17:05:00Z".
pub(crate) fn moment(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 146,097 days are 400 years; what is left is at most 400 steps.
    let mut year = 1970 + days / 146_097 * 400;
    let mut days = days % 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// A count and its noun: "1 process", "3 processes".
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A command line as a shell would take it.
pub(crate) fn command_line<S: AsRef<str>>(words: &[S]) -> String {
    let quote = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%^".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words
        .iter()
        .map(|word| quote(word.as_ref()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Text from an image or from /proc, made harmless for a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// How something is emphasised on a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    /// Headings.
    Bold,
    /// Less important.
    Dim,
    /// Good.
    Green,
    /// Worth a look.
    Yellow,
    /// Bad.
    Red,
}

/// `text` in that style when standard output is a terminal (and NO_COLOR is not set).
pub(crate) fn styled(style: Style, text: &str) -> String {
    if !std::io::stdout().is_terminal()
        || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => 1,
        Style::Dim => 2,
        Style::Green => 32,
        Style::Yellow => 33,
        Style::Red => 31,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Where a column's text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Names and words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of aligned columns under a heading.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with one text a column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Every line begins with `indent`.
    pub(crate) fn render(&self, indent: &str) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let cells = self.rows.iter().filter_map(|row| row.get(i));
                cells
                    .map(|cell| cell.chars().count())
                    .chain([self.columns[i].0.len()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |cells: &[String]| {
            let mut text = indent.to_owned();
            for (i, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
                match self.columns[i].1 {
                    Align::Left => text.extend([cell, pad.as_str()]),
                    Align::Right => text.extend([pad.as_str(), cell]),
                }
                text.push_str("  ");
            }
            text.trim_end().to_owned()
        };
        let heading: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let mut text = styled(Style::Bold, &line(&heading)) + "\n";
        for row in &self.rows {
            text += &line(row);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        let sizes = [
            0,
            1023,
            1024,
            1536,
            10 << 10,
            (1 << 20) - 1,
            3 << 30,
            u64::MAX,
        ];
        let shown = [
            "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "1.0 MiB", "3.0 GiB", "16 EiB",
        ];
        assert_eq!(sizes.map(size), shown);
    }

    #[test]
    fn durations_fit_their_size() {
        let times =
            [85, 3_210, 250_000, 1_400_000, 125_000_000, 11_220_000_000].map(Duration::from_micros);
        assert_eq!(
            times.map(duration),
            ["85 µs", "3.2 ms", "250 ms", "1.4 s", "2m 05s", "3h 07m"]
        );
    }

    #[test]
    fn moments_know_the_calendar() {
        let second = 1_000_000_000;
        assert_eq!(moment(0), "1970-01-01 00:00:00Z");
        assert_eq!(moment(951_782_400 * second), "2000-02-29 00:00:00Z");
        assert_eq!(moment(1_709_251_199 * second), "2024-02-29 23:59:59Z");
        assert_eq!(moment(1_769_879_100 * second), "2026-01-31 17:05:00Z");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(
            command_line(&["a", "b c", "it's", ""]),
            r"a 'b c' 'it'\''s' ''"
        );
    }

    #[test]
    fn tables_align() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right)]);
        table.row(vec!["x".into(), "100".into()]);
        assert_eq!(table.render(" "), " NAME    N\n x     100\n");
    }
}
