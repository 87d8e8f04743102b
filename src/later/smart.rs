//! A smart pointer that hands its value over.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use super::later;

/// A value that is handed to [`later`] where it would be dropped.
///
/// For fields and variables whose drop cannot be reached, or has many ways to happen. It is as large
/// as the value, dereferences to it and compares, hashes and prints as the value does.
///
/// ```
/// use std::collections::HashMap;
/// use deferfree::Later;
///
/// #[derive(Default)]
/// struct Document {
///     words: Later<HashMap<String, Vec<u32>>>,
/// }
///
/// let mut document = Document::default();
/// document.words.entry("free".to_owned()).or_default().push(1);
/// drop(document); // the map is dropped on another thread
/// ```
///
/// What is dropped on another thread must be `Send`:
///
/// ```compile_fail,E0277
/// deferfree::Later::new(std::rc::Rc::new(1));
/// ```
///
/// ```compile_fail,E0277
/// deferfree::later(std::rc::Rc::new(1));
/// ```
///
/// and must not borrow:
///
/// ```compile_fail,E0597
/// let name = String::from("free");
/// deferfree::later(vec![name.as_str()]);
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Later<T: Send + 'static> {
    /// Taken out by `into_inner` and `drop`, after neither of which `self` is used.
    value: ManuallyDrop<T>,
}

impl<T: Send + 'static> Later<T> {
    /// Wraps `value`. Costs nothing.
    #[inline]
    pub const fn new(value: T) -> Self {
        Later { value: ManuallyDrop::new(value) }
    }

    /// The value, which is then dropped where it usually would be.
    ///
    /// An associated function, so that it hides no method of the value: `Later::into_inner(this)`.
    #[inline]
    pub fn into_inner(this: Self) -> T {
        let mut this = ManuallyDrop::new(this);
        // SAFETY: `this` is not dropped, so nothing takes the value again.
        unsafe { ManuallyDrop::take(&mut this.value) }
    }
}

impl<T: Send + 'static> Drop for Later<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `self` ends here.
        later(unsafe { ManuallyDrop::take(&mut self.value) });
    }
}

impl<T: Send + 'static> Deref for Later<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Send + 'static> DerefMut for Later<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: Send + 'static> AsRef<T> for Later<T> {
    #[inline]
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: Send + 'static> AsMut<T> for Later<T> {
    #[inline]
    fn as_mut(&mut self) -> &mut T {
        self
    }
}

impl<T: Send + 'static> From<T> for Later<T> {
    #[inline]
    fn from(value: T) -> Self {
        Later::new(value)
    }
}

impl<T: Send + fmt::Debug + 'static> fmt::Debug for Later<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: Send + fmt::Display + 'static> fmt::Display for Later<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
