//! Text from a buffer of fixed size, and how numbers are shown to people.

use std::fmt::{self, Write};

/// Collects text and hands it on whenever the buffer is full, and at the end with `finish`.
pub(super) struct Out<'a> {
    bytes: [u8; 4096],
    len: usize,
    /// Takes all of the bytes; false when it could not, after which it is given no more.
    sink: &'a mut dyn FnMut(&[u8]) -> bool,
    taken: bool,
}

impl<'a> Out<'a> {
    pub(super) fn new(sink: &'a mut dyn FnMut(&[u8]) -> bool) -> Out<'a> {
        Out { bytes: [0; 4096], len: 0, sink, taken: true }
    }

    /// Whether the sink has taken everything.
    pub(super) fn finish(mut self) -> bool {
        self.hand_on();
        self.taken
    }

    fn hand_on(&mut self) {
        if self.taken && self.len > 0 {
            self.taken = (self.sink)(&self.bytes[..self.len]);
        }
        self.len = 0;
    }
}

impl Write for Out<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut rest = s.as_bytes();
        while self.taken && !rest.is_empty() {
            if self.len == self.bytes.len() {
                self.hand_on();
            }
            let room = &mut self.bytes[self.len..];
            let n = rest.len().min(room.len());
            room[..n].copy_from_slice(&rest[..n]);
            self.len += n;
            rest = &rest[n..];
        }
        if self.taken { Ok(()) } else { Err(fmt::Error) }
    }
}

/// A short text, to be aligned in a column. What does not fit is cut.
struct Short {
    bytes: [u8; 40],
    len: usize,
}

impl Short {
    fn pad(args: fmt::Arguments<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut short = Short { bytes: [0; 40], len: 0 };
        // Fails when it is cut.
        let _ = short.write_fmt(args);
        f.pad(std::str::from_utf8(&short.bytes[..short.len]).unwrap_or("?"))
    }
}

impl Write for Short {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + s.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(s.as_bytes());
        self.len += s.len();
        Ok(())
    }
}

/// Tenths of `unit` that `n` comes to, rounded down, without overflowing.
fn tenths(n: u64, unit: u64) -> u64 {
    n / unit * 10 + n % unit * 10 / unit
}

/// Bytes as `1536 B`, `272.0 KiB`, `1.5 GiB`.
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (log2, unit) = match self.0 {
            0..=0xfff => return Short::pad(format_args!("{} B", self.0), f),
            0x1000..=0xf_ffff => (10, "KiB"),
            0x10_0000..=0x3fff_ffff => (20, "MiB"),
            0x4000_0000..=0xff_ffff_ffff => (30, "GiB"),
            _ => (40, "TiB"),
        };
        let tenths = tenths(self.0, 1 << log2);
        Short::pad(format_args!("{}.{} {unit}", tenths / 10, tenths % 10), f)
    }
}

/// Nanoseconds as `40 ns`, `12.3 us`, `1.5 s`.
pub(super) struct Time(pub(super) u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nanos, unit) = match self.0 {
            0..=999 => return Short::pad(format_args!("{} ns", self.0), f),
            1_000..=999_999 => (1_000, "us"),
            1_000_000..=999_999_999 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s"),
        };
        let tenths = tenths(self.0, nanos);
        Short::pad(format_args!("{}.{} {unit}", tenths / 10, tenths % 10), f)
    }
}

/// A size as the variables take it: exact.
pub(super) struct Setting(pub(super) u64);

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0;
        match n.trailing_zeros() {
            _ if n == 0 => f.write_str("0"),
            40.. => write!(f, "{}T", n >> 40),
            30.. => write!(f, "{}G", n >> 30),
            20.. => write!(f, "{}M", n >> 20),
            10.. => write!(f, "{}K", n >> 10),
            _ => write!(f, "{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Out, Setting, Size, Time};
    use std::fmt::Write;

    #[test]
    fn numbers_for_people() {
        for (bytes, expected) in [
            (0, "0 B"),
            (4095, "4095 B"),
            (4096, "4.0 KiB"),
            (272 << 10, "272.0 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (3 << 19, "1.5 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), expected);
        }
        for (ns, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (12_345, "12.3 us"),
            (1_500_000_000, "1.5 s"),
            (u64::MAX, "18446744073.7 s"),
        ] {
            assert_eq!(Time(ns).to_string(), expected);
        }
        assert_eq!(format!("{:>9}|{:<9}|", Size(512), Time(7)), "    512 B|7 ns     |");
        for (bytes, expected) in
            [(0, "0"), (4097, "4097"), (256 << 10, "256K"), (3 << 30, "3G"), (1 << 40, "1T")]
        {
            assert_eq!(Setting(bytes).to_string(), expected);
        }
    }

    #[test]
    fn text_arrives_whole_and_in_order_however_long() {
        let mut seen = Vec::new();
        let mut sink = |bytes: &[u8]| {
            seen.extend_from_slice(bytes);
            true
        };
        let mut out = Out::new(&mut sink);
        let mut expected = String::new();
        for n in 0..3000 {
            write!(out, "{n} ").unwrap();
            write!(expected, "{n} ").unwrap();
        }
        assert!(out.finish());
        assert_eq!(String::from_utf8(seen).unwrap(), expected);
    }

    #[test]
    fn a_sink_that_refuses_is_given_no_more() {
        let mut n_calls = 0;
        let mut sink = |_: &[u8]| {
            n_calls += 1;
            false
        };
        let mut out = Out::new(&mut sink);
        for _ in 0..3 {
            let _ = out.write_str(&"x".repeat(5000));
        }
        assert!(!out.finish());
        assert_eq!(n_calls, 1);
    }
}
