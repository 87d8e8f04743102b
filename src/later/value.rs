//! A value whose type has been forgotten but for its size and how to drop it.

use std::alloc::{self, Layout};
use std::fmt;
use std::mem::{self, MaybeUninit};
use std::ptr::{self, NonNull};

/// Room for a `HashMap`, two `Vec`s or six `Box`es. With its kind and the queue's stamp, a value
/// then takes one cache line.
const WORDS: usize = 6;

/// Not initialised as far as the compiler knows: it copies padding and pointers as they are.
type Words = [MaybeUninit<usize>; WORDS];

/// Drops what it holds when it is dropped, wherever that is.
pub(super) struct Value {
    kind: &'static Kind,
    words: Words,
}

/// What remains of a type.
struct Kind {
    weight: usize,
    /// Drops the value in `words` and frees its block, if it has one. To be called once.
    drop: unsafe fn(&mut Words),
}

// SAFETY: a value is only made from a `T: Send`, and nothing but dropping it is done with it.
unsafe impl Send for Value {}

impl Value {
    /// Whether a `T` has room in the words.
    pub(super) const fn in_place<T: Send + 'static>() -> bool {
        Of::<T>::IN_PLACE
    }

    /// Bytes that a waiting `T` takes itself, in its slot and in its block; nothing that it points
    /// to. Even, and never 0.
    pub(super) const fn weight_of<T: Send + 'static>() -> usize {
        Of::<T>::KIND.weight
    }

    /// Forgets the type of a value that has room in the words.
    #[inline]
    pub(super) fn new<T: Send + 'static>(value: T) -> Value {
        assert!(Of::<T>::IN_PLACE);
        let mut this = Value { kind: &Of::<T>::KIND, words: [MaybeUninit::uninit(); WORDS] };
        if size_of::<T>() == 0 {
            // There is nothing to be written, and it may be aligned higher than the words.
            mem::forget(value);
        } else {
            // SAFETY: `IN_PLACE` says that size and alignment fit.
            unsafe { this.words.as_mut_ptr().cast::<T>().write(value) };
        }
        this
    }

    /// Forgets the type of any other value; gives it back when there is no memory for it.
    pub(super) fn boxed<T: Send + 'static>(value: T) -> Result<Value, T> {
        assert!(!Of::<T>::IN_PLACE);
        // SAFETY: what has no room in the words is not empty.
        let block = unsafe { alloc::alloc(Layout::new::<T>()) }.cast::<T>();
        let Some(block) = NonNull::new(block) else {
            return Err(value);
        };
        let mut words = [MaybeUninit::uninit(); WORDS];
        // SAFETY: a fresh block of this layout, and room for a pointer in the words.
        unsafe {
            block.write(value);
            words.as_mut_ptr().cast::<NonNull<T>>().write(block);
        }
        Ok(Value { kind: &Of::<T>::KIND, words })
    }

    pub(super) fn weight(&self) -> usize {
        self.kind.weight
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: `words` holds what `kind` was made for, and is dropped only here.
        unsafe { (self.kind.drop)(&mut self.words) };
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value").field("weight", &self.weight()).finish_non_exhaustive()
    }
}

/// The facts about one type, as constants.
struct Of<T>(T);

impl<T: Send + 'static> Of<T> {
    const IN_PLACE: bool = size_of::<T>() == 0
        || size_of::<T>() <= size_of::<Words>() && align_of::<T>() <= align_of::<Words>();

    const KIND: Kind = Kind {
        weight: SLOT_BYTES
            + if Self::IN_PLACE { 0 } else { size_of::<T>().next_multiple_of(align_of::<Words>()) },
        drop: Self::drop,
    };

    /// # Safety
    /// `words` was filled by `Value::new::<T>` and is not used again.
    unsafe fn drop(words: &mut Words) {
        let words = words.as_mut_ptr();
        // SAFETY: as `new` or `boxed` wrote it. A value of size 0 may be aligned higher than the words; any
        // aligned address is good for it. The block came from `alloc` with this layout, as a box's
        // does, and the box frees it even if the value's drop unwinds.
        unsafe {
            if size_of::<T>() == 0 {
                ptr::drop_in_place(NonNull::<T>::dangling().as_ptr());
            } else if Self::IN_PLACE {
                ptr::drop_in_place(words.cast::<T>());
            } else {
                mem::drop(Box::from_raw(words.cast::<NonNull<T>>().read().as_ptr()));
            }
        }
    }
}

/// A value and the queue's stamp.
pub(super) const SLOT_BYTES: usize = size_of::<Value>() + size_of::<u64>();
