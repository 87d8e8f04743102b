//! What the kernel says of the program.

use std::ptr;

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

pub(crate) fn environment() -> *const *const libc::c_char {
    // SAFETY: a variable of the C library's.
    unsafe { environ }
}

use libc::Elf64_Phdr as ProgramHeader;

/// Whether an address lies in the program itself, not in a library.
pub(crate) fn is_in_program(address: usize) -> bool {
    // SAFETY: reads numbers that the kernel passed to the process.
    let (first, n_headers) =
        unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    let first = ptr::with_exposed_provenance::<ProgramHeader>(first as usize);
    if first.is_null() {
        return false;
    }
    // SAFETY: the kernel maps the headers with the program, where they stay.
    let headers = unsafe { std::slice::from_raw_parts(first, n_headers as usize) };
    let start = |header: &ProgramHeader| header.p_vaddr as usize;
    // The headers say where they would be themselves, had the program not been moved.
    let moved_by = headers
        .iter()
        .find(|header| header.p_type == libc::PT_PHDR)
        .map_or(0, |header| first.addr().wrapping_sub(start(header)));
    headers.iter().filter(|header| header.p_type == libc::PT_LOAD).any(|header| {
        address.wrapping_sub(moved_by).wrapping_sub(start(header)) < header.p_memsz as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_libraries_are_told_apart() {
        static HERE: u8 = 0;
        assert!(is_in_program((&raw const HERE).addr()));
        assert!(is_in_program(is_in_program as *const () as usize));
        let block = Box::new(0u8);
        assert!(!is_in_program((&raw const *block).addr()));
        assert!(!is_in_program((&raw const HERE).addr() + (1 << 40)));
        assert!(crate::sys::stay_loaded());
    }
}
