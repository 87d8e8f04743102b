//! The thread's state in a thread-local variable that one instruction reaches, on ELF systems.
//!
//! What is read on the way of each free must not cost a call: one to find a `thread_local!`, as a library is
//! compiled for, saves registers around it, and dropping blocks that are not in the cache takes a third longer. So the
//! variable is defined and reached in assembly, by the initial-exec model: its place is fixed when the program starts, or,
//! in a library that is loaded at run time, taken from what the C library keeps for such variables (glibc: 1664 bytes
//! less what others took, `rtld.optional_static_tls`; mimalloc relies on the same). Who cannot rely on that has the
//! feature `local_dynamic_tls`, which puts `word.rs` in place of this.
//!
//! Source: "ELF Handling For Thread-Local Storage", Ulrich Drepper, sections 4.3.6 and 4.4.6; the ELF ABI supplement
//! for AArch64.

use std::arch::{asm, global_asm};
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr;

use super::Local;
use crate::{burst, sys};

// Hidden: two libraries that have this crate in them have two variables.
global_asm!(
    ".pushsection .tbss.deferfree_local,\"awT\",%nobits",
    ".p2align 6",
    ".hidden deferfree_local_0_1",
    ".globl deferfree_local_0_1",
    ".type deferfree_local_0_1, %object",
    ".size deferfree_local_0_1, {size}",
    "deferfree_local_0_1:",
    ".zero {size}",
    ".popsection",
    size = const size_of::<Local>(),
);

const _: () = assert!(align_of::<Local>() == 1 << 6 && offset_of!(Local, short_below) == 0);

/// A field of this thread's variable, by one instruction of that kind once its place is known.
#[cfg(target_arch = "x86_64")]
macro_rules! read {
    ($load:literal, $field:ident) => {{
        let value;
        // SAFETY: reads this thread's variable.
        unsafe {
            asm!(
                "mov {offset}, qword ptr [rip + deferfree_local_0_1@GOTTPOFF]",
                concat!($load, " ptr fs:[{offset} + {field}]"),
                offset = out(reg) _,
                value = out(reg) value,
                field = const offset_of!(Local, $field),
                options(nostack, preserves_flags, readonly),
            );
        }
        value
    }};
}

/// Has the function in which it stands begin at a cache line: functions have sections of their own, and a section
/// is aligned as what is in it asks for. Stands where it is seldom come by, as it may be an instruction of no effect.
#[inline(always)]
pub(crate) fn at_cache_line() {
    // SAFETY: one byte of padding at most.
    unsafe { asm!(".p2align 6,,1", options(nomem, nostack, preserves_flags)) };
}

/// See `Local`.
#[inline(always)]
pub(crate) fn short_below() -> u32 {
    #[cfg(target_arch = "x86_64")]
    return read!("mov {value:e}, dword", short_below);
    #[cfg(target_arch = "aarch64")]
    {
        let value: u32;
        // SAFETY: reads the first field of this thread's variable.
        unsafe {
            asm!(
                "mrs {thread}, tpidr_el0",
                "adrp {offset}, :gottprel:deferfree_local_0_1",
                "ldr {offset}, [{offset}, :gottprel_lo12:deferfree_local_0_1]",
                "ldr {value:w}, [{thread}, {offset}]",
                thread = out(reg) _,
                offset = out(reg) _,
                value = out(reg) value,
                options(nostack, preserves_flags, readonly),
            );
        }
        value
    }
}

/// Whether `own_pages` is of use.
pub(crate) const HAS_OWN_PAGES: bool = true;

/// See `Local`.
#[inline(always)]
pub(crate) fn own_pages() -> *const () {
    #[cfg(target_arch = "x86_64")]
    return read!("mov {value}, qword", own_pages);
    #[cfg(target_arch = "aarch64")]
    variable().own_pages.get()
}

/// See `Local`.
#[inline(always)]
pub(crate) fn is_fresh() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let value: u32 = read!("movzx {value:e}, byte", fresh);
        value != 0
    }
    #[cfg(target_arch = "aarch64")]
    variable().fresh.get()
}

/// This thread's state. There until the thread is gone, always.
#[inline(always)]
pub(crate) fn here() -> Option<&'static Local> {
    Some(variable())
}

/// As `here`.
pub(crate) fn already_here() -> Option<&'static Local> {
    here()
}

/// An address that lies with the thread's stack and is always the same: the C libraries put a thread's variables above it.
#[inline(always)]
pub(crate) fn near_stack() -> usize {
    ptr::from_ref(variable()).addr()
}

#[inline(always)]
fn variable() -> &'static Local {
    let address: *const Local;
    // SAFETY: an address is made of the thread's base and the variable's offset; all zero bytes, which it begins with,
    // are a `Local`, and only this thread gets at it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!(
            "mov {address}, qword ptr fs:[0]",
            "add {address}, qword ptr [rip + deferfree_local_0_1@GOTTPOFF]",
            address = out(reg) address,
            options(nostack, pure, readonly),
        );
        #[cfg(target_arch = "aarch64")]
        asm!(
            "mrs {address}, tpidr_el0",
            "adrp {offset}, :gottprel:deferfree_local_0_1",
            "ldr {offset}, [{offset}, :gottprel_lo12:deferfree_local_0_1]",
            "add {address}, {address}, {offset}",
            address = out(reg) address,
            offset = out(reg) _,
            options(nostack, pure, readonly, preserves_flags),
        );
        &*address
    }
}

/// Sees to it that the thread gives up its log when it exits; false when the system refuses.
pub(crate) fn hears_of_its_exit() -> bool {
    unsafe extern "C" fn thread_exits(_: *mut c_void) {
        burst::give_up_log(variable());
    }
    sys::at_thread_exit(thread_exits, ptr::without_provenance_mut(1))
}
