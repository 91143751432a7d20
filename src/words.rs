//! How values are written for people: text from elsewhere, counts, sizes, times.
//!
//! Text that others chose never reaches a terminal with its control characters in it. Deliberately does not know any
//! command or page, nor what a value means.

use std::time::Duration;

/// Text that fits a line: control characters as escapes, the end cut off.
pub fn one_line(value: &[u8], characters_max: usize) -> String {
    // No more bytes are looked at than can be shown.
    let beginning = value.get(..characters_max.saturating_mul(4)).unwrap_or(value);
    let mut line = String::new();
    for (count, c) in String::from_utf8_lossy(beginning).chars().enumerate() {
        if count == characters_max {
            line.push_str("...");
            return line;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// "1 record", "2 records".
pub fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// "1,234,567".
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Something a second: "0.4", "12.5", "1,234".
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // what is beyond u64 stays its largest
pub fn rate(per_second: f64) -> String {
    if per_second < 99.95 {
        format!("{:.1}", per_second.max(0.0))
    } else {
        grouped(per_second.round() as u64)
    }
}

/// "1.5 GiB".
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

/// "3m 12s": of long times the small units are left out.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    let unit = match seconds {
        0 => return "under 1s".to_owned(),
        1..3600 => 1,
        3600..86400 => 60,
        _ => 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds - seconds % unit)).to_string()
}

/// "12.5%"; none of nothing.
pub fn percent(part: u64, whole: u64) -> Option<String> {
    let tenths = (u128::from(part) * 1000).checked_div(u128::from(whole))?;
    Some(format!("{}.{}%", tenths / 10, tenths % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_any_size_and_content_is_one_short_line() {
        assert_eq!(one_line(b"{\"a\":1}", 120), "{\"a\":1}");
        assert_eq!(one_line(b"a\nb\x1b[2J", 120), "a\\nb\\u{1b}[2J");
        assert_eq!(one_line("\u{9b}2J".as_bytes(), 120), "\\u{9b}2J");
        assert_eq!(one_line(&[b'x'; 10_000], 120).len(), 123);
        let bytes = one_line(&[0xff, 0xfe], 120);
        assert!(bytes.chars().all(|c| c == char::REPLACEMENT_CHARACTER));
    }

    #[test]
    fn numbers_are_written_as_people_write_them() {
        assert_eq!(counted(0, "record"), "0 records");
        assert_eq!(counted(1, "record"), "1 record");
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [-1.0, 0.04, 12.34, 99.96, 1234.5].map(rate),
            ["0.0", "0.0", "12.3", "100", "1,235"]
        );
        assert_eq!(size(0), "0 B");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(percent(0, 0), None);
        assert_eq!(percent(1, 8).as_deref(), Some("12.5%"));
        assert_eq!(percent(u64::MAX, u64::MAX).as_deref(), Some("100.0%"));
    }

    #[test]
    fn a_long_time_is_told_without_its_seconds() {
        let told = |seconds: u64| time(Duration::from_secs(seconds));
        assert_eq!(time(Duration::from_millis(999)), "under 1s");
        assert_eq!(told(192), "3m 12s");
        assert_eq!(told(3600 * 5 + 61), "5h 1m");
        assert_eq!(told(86_400 * 2 + 3600 + 61), "2days 1h");
        assert!(told(u64::MAX).contains("years"));
    }
}
