//! The path of a report, from the pattern in the environment.

use std::ffi::CStr;
use std::fmt::{self, Write};

/// Copies `pattern`, up to its first zero, to `path` with the process's number in place of `%p`; `None`
/// when there is no room for that.
pub(super) fn expand<'a>(pattern: &[u8], process: u32, path: &'a mut [u8]) -> Option<&'a CStr> {
    let mut copy = Path { bytes: path, len: 0 };
    let mut rest = pattern.split(|&byte| byte == 0).next()?;
    while let [byte, after @ ..] = rest {
        if let [b'%', b'p', after @ ..] = rest {
            rest = after;
            write!(copy, "{process}").ok()?;
        } else {
            rest = after;
            copy.push(*byte)?;
        }
    }
    copy.push(0)?;
    CStr::from_bytes_until_nul(path).ok()
}

struct Path<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl Path<'_> {
    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.len)? = byte;
        self.len += 1;
        Some(())
    }
}

impl Write for Path<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        s.bytes().try_for_each(|byte| self.push(byte)).ok_or(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn the_process_number_takes_its_place() {
        for (pattern, expected) in [
            (&b"/tmp/a.json\0\0"[..], &b"/tmp/a.json"[..]),
            (b"/%p/%p.json\0", b"/42/42.json"),
            (b"%\0", b"%"),
            (b"%%p\0", b"%42"),
            (b"a%d\xff/\0", b"a%d\xff/"),
        ] {
            let mut path = [1; 16];
            assert_eq!(expand(pattern, 42, &mut path).map(|path| path.to_bytes()), Some(expected));
        }
        for (pattern, fits) in [
            (&b"/very/long/%p\0"[..], true),
            (b"/very/long/p%p\0", false),
            (b"/very/long/ppp\0", false),
        ] {
            assert_eq!(expand(pattern, 42, &mut [1; 14]).is_some(), fits);
        }
    }
}
