//! What the control groups of this process say about memory and CPUs.

use std::ffi::CStr;

use super::file;

/// The least `memory.max` from this process's control group up to the root (version 2, or version
/// 1's `limit_in_bytes`), see `Documentation/admin-guide/cgroup-v2.rst` of the kernel.
pub(super) fn memory_limit() -> Option<usize> {
    let mut least = None;
    for_each_group(b"memory", |root, path, version| {
        let name: &[u8] = if version == 2 { b"memory.max" } else { b"memory.limit_in_bytes" };
        let mut content = [0; FILE_BYTES];
        least = min_known(least, group_file(root, path, name, &mut content).and_then(number));
    });
    least
}

/// Whole CPUs by the least `cpu.max` (version 1: `cpu.cfs_quota_us` and `cpu.cfs_period_us`).
pub(super) fn n_cpus() -> Option<usize> {
    let mut least = None;
    for_each_group(b"cpu", |root, path, version| {
        let (mut first, mut second) = ([0; FILE_BYTES], [0; FILE_BYTES]);
        let (quota, period) = if version == 2 {
            let max = group_file(root, path, b"cpu.max", &mut first);
            let mut fields = max.unwrap_or_default().splitn(2, |&byte| byte == b' ');
            (fields.next().and_then(number), fields.next().and_then(number))
        } else {
            (
                group_file(root, path, b"cpu.cfs_quota_us", &mut first).and_then(number),
                group_file(root, path, b"cpu.cfs_period_us", &mut second).and_then(number),
            )
        };
        if let (Some(quota), Some(period @ 1..)) = (quota, period) {
            least = min_known(least, Some(quota / period));
        }
    });
    least
}

fn min_known(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A number with nothing but blanks around it; `None` for `max` and `-1`.
fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Calls `f` with root, path and version for each control group with `controller` that this process
/// is in, and for those above it.
fn for_each_group(controller: &[u8], mut f: impl FnMut(&[u8], &[u8], u32)) {
    let mut content = [0u8; 4096];
    let Some(groups) = file::read(c"/proc/self/cgroup", &mut content) else {
        return;
    };
    for line in groups.split(|&byte| byte == b'\n') {
        // hierarchy-id : controllers : path
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (Some(_), Some(controllers), Some(mut path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, version): (&[&[u8]], u32) = if controllers.is_empty() {
            (&[b"/sys/fs/cgroup"], 2)
        } else if controllers.split(|&byte| byte == b',').any(|c| c == controller) {
            (&[b"/sys/fs/cgroup/", controller], 1)
        } else {
            continue;
        };
        let mut full_root = [0u8; 64];
        let Some(len) = concatenate(&mut full_root, root) else {
            continue;
        };
        loop {
            f(&full_root[..len], path, version);
            match path.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => path = &path[..slash],
                None => break,
            }
        }
    }
}

fn concatenate(buffer: &mut [u8], parts: &[&[u8]]) -> Option<usize> {
    let mut len = 0;
    for part in parts {
        buffer.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    Some(len)
}

/// More than the few numbers in a control group's file take.
const FILE_BYTES: usize = 64;

/// The contents of `root/path/name`.
fn group_file<'a>(
    root: &[u8],
    path: &[u8],
    name: &[u8],
    content: &'a mut [u8; FILE_BYTES],
) -> Option<&'a [u8]> {
    let mut full = [0u8; 1024];
    let len = concatenate(&mut full, &[root, path, b"/", name, b"\0"])?;
    file::read(CStr::from_bytes_with_nul(&full[..len]).ok()?, content)
}
