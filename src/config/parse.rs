//! The values of the environment variables: pure functions from bytes. `None` means "does not parse".

use super::{ReportTo, Reporting};

/// `on` or `off`, in any case; `1` and `0` mean the same.
pub(super) fn switch(value: &[u8]) -> Option<bool> {
    let value = value.trim_ascii();
    if value.eq_ignore_ascii_case(b"on") || value == b"1" {
        Some(true)
    } else if value.eq_ignore_ascii_case(b"off") || value == b"0" {
        Some(false)
    } else {
        None
    }
}

/// Bytes: digits, then optionally `K`, `M`, `G` or `T` (powers of 1024), then optionally `B` or,
/// after one of those letters, `iB`; in any case.
pub(super) fn size(value: &[u8]) -> Option<usize> {
    let (number, unit) = number_and_unit(value)?;
    let (prefix, rest) = match unit.split_first() {
        Some((letter, rest)) if !letter.eq_ignore_ascii_case(&b'b') => (Some(letter), rest),
        _ => (None, unit),
    };
    let shift = match prefix.map(u8::to_ascii_lowercase) {
        None => 0,
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        Some(_) => return None,
    };
    let known = rest.is_empty()
        || rest.eq_ignore_ascii_case(b"b")
        || (prefix.is_some() && rest.eq_ignore_ascii_case(b"ib"));
    if !known {
        return None;
    }
    usize::try_from(number).ok()?.checked_mul(1usize.checked_shl(shift)?)
}

/// Digits, or `off` in any case: `Some(None)`.
pub(super) fn count_or_off(value: &[u8]) -> Option<Option<u32>> {
    if value.trim_ascii().eq_ignore_ascii_case(b"off") {
        return Some(None);
    }
    let (number, unit) = number_and_unit(value)?;
    let number = u32::try_from(number).ok()?;
    unit.is_empty().then_some(Some(number))
}

/// Milliseconds: digits followed by `ms` or `s`, in any case.
pub(super) fn duration_ms(value: &[u8]) -> Option<u64> {
    let (number, unit) = number_and_unit(value)?;
    if unit.eq_ignore_ascii_case(b"ms") {
        Some(number)
    } else if unit.eq_ignore_ascii_case(b"s") {
        number.checked_mul(1000)
    } else {
        None
    }
}

/// Longest path of a report: shorter than any that the system takes.
const PATH_BYTES: usize = 1000;

/// `1` or `on`, `0` or `off`, `latency`, in any case; a path; or `latency,` and a path.
pub(super) fn reporting(value: &[u8]) -> Option<Reporting> {
    let (latency, to) = match after_latency(value) {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let to = if report_path(value).is_some() {
        ReportTo::File
    } else if latency && to.is_empty() || switch(to) == Some(true) {
        ReportTo::StandardError
    } else if !latency && switch(to) == Some(false) {
        ReportTo::Nowhere
    } else {
        return None;
    };
    Some(Reporting { to, latency })
}

/// What follows `latency` and a comma, if that is how it begins; nothing if that is all.
fn after_latency(value: &[u8]) -> Option<&[u8]> {
    const LATENCY: &[u8] = b"latency";
    if value.trim_ascii().eq_ignore_ascii_case(LATENCY) {
        return Some(b"");
    }
    let (first, rest) = value.trim_ascii_start().split_at_checked(LATENCY.len())?;
    first
        .eq_ignore_ascii_case(LATENCY)
        .then(|| rest.trim_ascii_start().strip_prefix(b","))
        .flatten()
}

/// The path in such a value. It has a slash in it or ends in `.json`, so that a slip of the pen does not
/// make a file.
pub(super) fn report_path(value: &[u8]) -> Option<&[u8]> {
    let path = after_latency(value).unwrap_or(value);
    let is_path = path.contains(&b'/') || path.ends_with(b".json");
    (is_path && path.len() <= PATH_BYTES).then_some(path)
}

/// Splits after the leading digits, of which there must be one; blanks around the whole are ignored.
fn number_and_unit(value: &[u8]) -> Option<(u64, &[u8])> {
    let value = value.trim_ascii();
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    let mut number = 0u64;
    for digit in &value[..digits] {
        number = number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some((number, &value[digits..]))
}

#[cfg(test)]
mod tests {
    use super::{
        ReportTo, Reporting, count_or_off, duration_ms, report_path, reporting, size, switch,
    };

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("65536", Some(65536)),
            ("007", Some(7)),
            ("12B", Some(12)),
            ("12b", Some(12)),
            ("64K", Some(64 << 10)),
            ("64k", Some(64 << 10)),
            ("64KB", Some(64 << 10)),
            ("64KiB", Some(64 << 10)),
            ("64kib", Some(64 << 10)),
            ("64KIB", Some(64 << 10)),
            ("3M", Some(3 << 20)),
            ("3mB", Some(3 << 20)),
            ("2G", Some(2 << 30)),
            ("2GiB", Some(2 << 30)),
            ("1T", Some(1 << 40)),
            ("1tib", Some(1 << 40)),
            (" 1M", Some(1 << 20)),
            ("1M\t", Some(1 << 20)),
            ("18446744073709551615", Some(usize::MAX)),
            ("16777215T", Some(16_777_215 << 40)),
            ("", None),
            (" ", None),
            ("K", None),
            ("B", None),
            ("-1", None),
            ("+1", None),
            ("1 M", None),
            ("1M B", None),
            ("1MM", None),
            ("1MiBB", None),
            ("1Mi", None),
            ("12iB", None),
            ("1X", None),
            ("1P", None),
            ("1.5M", None),
            ("1e6", None),
            ("0x10", None),
            ("1_000", None),
            ("18446744073709551616", None),
            ("16777216T", None),
            ("99999999999999999999999999", None),
            ("\u{661}", None),
            ("1\0", None),
        ] {
            assert_eq!(size(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(size(b"\xff"), None);
        assert_eq!(size(b"1\xff"), None);
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("0ms", Some(0)),
            ("250ms", Some(250)),
            ("250MS", Some(250)),
            ("2s", Some(2000)),
            ("2S", Some(2000)),
            (" 2s ", Some(2000)),
            ("18446744073709551615ms", Some(u64::MAX)),
            ("", None),
            ("250", None),
            ("ms", None),
            ("-1s", None),
            ("1 s", None),
            ("1m", None),
            ("1us", None),
            ("1.5s", None),
            ("1sms", None),
            ("18446744073709551615s", None),
            ("18446744073709551616ms", None),
        ] {
            assert_eq!(duration_ms(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(duration_ms(b"1\xfes"), None);
    }

    #[test]
    fn counts() {
        for (text, expected) in [
            ("0", Some(Some(0))),
            ("256", Some(Some(256))),
            (" 256 ", Some(Some(256))),
            ("4294967295", Some(Some(u32::MAX))),
            ("off", Some(None)),
            ("OFF ", Some(None)),
            ("", None),
            ("on", None),
            ("4294967296", None),
            ("256K", None),
            ("-1", None),
            ("2 56", None),
        ] {
            assert_eq!(count_or_off(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(count_or_off(b"of\xff"), None);
    }

    #[test]
    fn switches() {
        for (text, expected) in [
            ("on", Some(true)),
            ("ON", Some(true)),
            ("1", Some(true)),
            ("off", Some(false)),
            ("Off", Some(false)),
            ("0", Some(false)),
            (" off ", Some(false)),
            ("", None),
            ("o n", None),
            ("yes", None),
            ("true", None),
            ("2", None),
        ] {
            assert_eq!(switch(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(switch(b"on\xff"), None);
    }

    #[test]
    fn reports() {
        use ReportTo::{File, Nowhere, StandardError};
        let long = [b'/'; 1001];
        for (text, expected) in [
            (&b"off"[..], Some((Nowhere, false))),
            (b"0", Some((Nowhere, false))),
            (b"1", Some((StandardError, false))),
            (b"On", Some((StandardError, false))),
            (b"latency", Some((StandardError, true))),
            (b"Latency ", Some((StandardError, true))),
            (b"latency,1", Some((StandardError, true))),
            (b"a.json", Some((File, false))),
            (b"./a", Some((File, false))),
            (b"/a b/\xff", Some((File, false))),
            (b"latency,/a", Some((File, true))),
            (b" latency ,/a", Some((File, true))),
            (b"latency/a", Some((File, false))),
            (&long[..1000], Some((File, false))),
            (&long, None),
            (b"", None),
            (b"yes", None),
            (b"2", None),
            (b"true", None),
            (b"latency,", Some((StandardError, true))),
            (b"latency,off", None),
            (b"latency,yes", None),
            (b"latencyx", None),
        ] {
            let expected = expected.map(|(to, latency)| Reporting { to, latency });
            assert_eq!(reporting(text), expected, "{}", text.escape_ascii());
        }
        assert_eq!(report_path(b"latency,./a"), Some(&b"./a"[..]));
        assert_eq!(report_path(b" latency ,/a"), Some(&b"/a"[..]));
        assert_eq!(report_path(b"latency"), None);
    }
}
