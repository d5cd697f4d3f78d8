//! Sizes, speeds and counts for people: decimal units, as disks and object stores tell them, and one digit after the point.
//!
//! For sentences alone. Fields of a log line, metrics and errors in which two numbers are compared give bytes.

use std::time::Duration;

const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];

/// `1.2 MB` for 1,234,567 bytes.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut unit = 1000_u128;
    let mut tenths = 0;
    for name in UNITS {
        tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        // Rounded first: 999,950 bytes are 1.0 MB, never 1000.0 kB.
        if tenths < 10_000 {
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
        unit *= 1000;
    }
    format!("{} EB", tenths / 10)
}

/// `50.0 MB/s` for 100,000,000 bytes in two seconds.
#[must_use]
pub fn format_rate(bytes: u64, elapsed: Duration) -> String {
    let a_second = u128::from(bytes) * 1_000_000 / elapsed.as_micros().max(1);
    format!("{}/s", format_bytes(u64::try_from(a_second).unwrap_or(u64::MAX)))
}

/// `1,234` for 1234.
#[must_use]
pub(crate) fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_units_and_one_digit_after_the_point() {
        let table = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_250, "1.3 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (1_234_567, "1.2 MB"),
            (102_502_400, "102.5 MB"),
            (7_000_000_000_000, "7.0 TB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (bytes, text) in table {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    #[test]
    fn speeds_are_sizes_a_second_and_no_time_at_all_is_no_division_by_zero() {
        assert_eq!(format_rate(100_000_000, Duration::from_secs(2)), "50.0 MB/s");
        assert_eq!(format_rate(5_000, Duration::from_secs(1)), "5.0 kB/s");
        assert_eq!(format_rate(1, Duration::ZERO), "1.0 MB/s");
        assert_eq!(format_rate(u64::MAX, Duration::ZERO), "18.4 EB/s");
    }

    #[test]
    fn counts_have_a_comma_for_each_thousand() {
        let table = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (count, text) in table {
            assert_eq!(format_count(count), text);
        }
    }
}
