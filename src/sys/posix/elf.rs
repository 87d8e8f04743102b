//! What the linker says of the program, or the library, of which this code is part.

use std::slice;

use libc::Elf64_Phdr as ProgramHeader;

/// As much of a file's header as is needed (`Elf64_Ehdr` in elf.h).
#[repr(C)]
struct Header {
    _before: [u8; 32],
    /// From here to the program headers.
    to_headers: u64,
    _between: [u8; 16],
    n_headers: u16,
}

unsafe extern "C" {
    /// Put by the linker where the program or the library begins.
    static __ehdr_start: Header;
}

const PT_INTERP: u32 = 3;

/// Whether this code, at whatever address, is part of the program itself: that alone names a dynamic linker, and is not
/// found by its name on FreeBSD, see `stay_loaded`. (A static program names none, and nothing can be unloaded there.)
pub(in crate::sys) fn is_in_program(_here: usize) -> bool {
    let start = &raw const __ehdr_start;
    // SAFETY: headers that are mapped with the code and stay as they are.
    let headers = unsafe {
        let first = start.byte_add((*start).to_headers as usize).cast::<ProgramHeader>();
        slice::from_raw_parts(first, (*start).n_headers.into())
    };
    headers.iter().any(|header| header.p_type == PT_INTERP)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_is_a_program() {
        assert_eq!(super::is_in_program(0), cfg!(not(target_feature = "crt-static")));
        assert!(crate::sys::stay_loaded());
    }
}
