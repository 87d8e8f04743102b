//! Backings that are the system's allocator but for what a test wants to hear of.

/// Implements `GlobalAlloc` for a type with the system's allocator. Each free calls the function with its layout first,
/// if there is one.
macro_rules! on_system {
    ($Backing:ty $(, $before_dealloc:path)?) => {
        // SAFETY: all blocks are the system's.
        unsafe impl std::alloc::GlobalAlloc for $Backing {
            unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
                // SAFETY: the caller's layout.
                unsafe { std::alloc::System.alloc(layout) }
            }

            unsafe fn dealloc(&self, ptr: *mut u8, layout: std::alloc::Layout) {
                $($before_dealloc(layout);)?
                // SAFETY: the caller's block.
                unsafe { std::alloc::System.dealloc(ptr, layout) };
            }
        }
    };
}
pub(crate) use on_system;
