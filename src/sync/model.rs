//! Loom's, made to fit.
//!
//! Loom's atomics are made anew in each execution of a model, and by one thread before the others know of them.
//! The crate's lie in statics, in zeroed mappings, in arrays of thousands. So here an atomic is a place in memory
//! that starts at zero, and the first access in an execution gives one of loom's to its address. Outside of
//! a model it is the standard library's.
//!
//! What differs from the real ones:
//! - loom takes a sequentially consistent access for acquire and release, but knows the fence. Here each such
//!   access has one beside it: before a load, after anything else. That orders them among each other as far as
//!   the code relies on it, a store before a later load; what it orders besides, the relaxed accesses of the
//!   same thread, goes unchecked.
//! - `compare_exchange_weak` fails only where the strong one does, and `park` ends only when it is told to.
//! - time-outs: a nap is over at once, once others had a chance to run; a wait with a time-out has none, so
//!   that what nobody notifies is found. The clock moves on an hour whenever it is looked at.
//! - loom lets a store slip in between the two halves of another thread's read-modify-write that changes
//!   nothing, such as a `swap` that loses. Where that matters the code has `compare_exchange`, which does not
//!   store then.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::ops::{Add, Sub};
use std::rc::Rc;
use std::time::Duration;

pub(crate) use loom::sync::{Condvar, Mutex};

use self::atomic::Ordering;

thread_local! {
    /// The execution under way. Loom runs all threads of a model on one of the system's.
    static EXECUTION: RefCell<Option<Execution>> = const { RefCell::new(None) };
    static HOURS: Cell<u64> = const { Cell::new(0) };
}

type Raw = loom::sync::atomic::AtomicU64;

struct Execution {
    atomics: HashMap<usize, Rc<Raw>>,
    unused: Vec<Rc<Raw>>,
    contents: HashMap<usize, Rc<Plain>>,
    unused_contents: Vec<Rc<Plain>>,
    parkers: HashMap<loom::thread::ThreadId, thread::Thread>,
    /// The kernel's lock and sleepers, one of each for all futexes.
    futex: Rc<(Mutex<()>, Condvar)>,
}

/// Slots of the queues that one model comes to, at most.
const N_CONTENTS: usize = 10;

/// Tries every execution of `model` with at most `preemptions` places at which a thread is interrupted that could
/// go on, or all without a number. `n_atomics` are as many as it uses, at least.
pub(crate) fn check(
    preemptions: Option<usize>,
    n_atomics: usize,
    model: impl Fn() + Send + Sync + 'static,
) {
    let mut builder = loom::model::Builder::new();
    // What the environment says goes first.
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 20_000;
    let n_executions = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = n_executions.clone();
    let start = std::time::Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        // Made here, before there is another thread.
        let unused = (0..n_atomics).map(|_| Rc::new(Raw::new(0))).collect();
        let futex = Rc::new((Mutex::new(()), Condvar::new()));
        let execution = Execution {
            atomics: HashMap::new(),
            unused,
            contents: HashMap::new(),
            unused_contents: (0..N_CONTENTS).map(|_| Rc::new(Plain::new())).collect(),
            parkers: HashMap::new(),
            futex,
        };
        EXECUTION.set(Some(execution));
        HOURS.set(0);
        model();
    });
    EXECUTION.set(None);
    println!("{} executions, {:?}", n_executions.load(Ordering::Relaxed), start.elapsed());
}

/// Loom's atomic of this execution for the one at `address`.
fn raw(address: usize) -> Option<Rc<Raw>> {
    // None as well when the system's thread ends.
    let raw = |execution: &RefCell<Option<Execution>>| {
        let mut execution = execution.borrow_mut();
        let execution = execution.as_mut()?;
        let unused = &mut execution.unused;
        let new = || unused.pop().expect("the model uses more atomics than it says");
        Some(execution.atomics.entry(address).or_insert_with(new).clone())
    };
    EXECUTION.try_with(raw).ok()?
}

/// The atomic at `address` is gone, or has its value in memory again.
fn forget(address: usize) -> Option<Rc<Raw>> {
    // Also while a model that failed is taken apart.
    let forget = |execution: &RefCell<Option<Execution>>| {
        execution.try_borrow_mut().ok()?.as_mut()?.atomics.remove(&address)
    };
    EXECUTION.try_with(forget).ok()?
}

fn load(raw: &Raw, order: Ordering) -> u64 {
    match order {
        Ordering::SeqCst => {
            atomic::fence(Ordering::SeqCst);
            raw.load(Ordering::Acquire)
        }
        order => raw.load(order),
    }
}

fn store(raw: &Raw, value: u64, order: Ordering) {
    match order {
        Ordering::SeqCst => {
            raw.store(value, Ordering::Release);
            atomic::fence(Ordering::SeqCst);
        }
        order => raw.store(value, order),
    }
}

fn update<T>(order: Ordering, update: impl FnOnce(Ordering) -> T) -> T {
    match order {
        Ordering::SeqCst => {
            // It finds the last value there is without a fence before it.
            let result = update(Ordering::AcqRel);
            atomic::fence(Ordering::SeqCst);
            result
        }
        order => update(order),
    }
}

pub(crate) mod atomic {
    use super::*;

    pub(crate) use loom::sync::atomic::fence;
    pub(crate) use std::sync::atomic::Ordering;

    /// What `$Name` of the standard library can do and the crate uses; `$to` and `$from` are the way into a
    /// `u64` and back.
    macro_rules! atomic {
        ($Name:ident $(<$P:ident>)?, $Value:ty, $to:expr, $from:expr, {$($others:tt)*}) => {
            #[repr(transparent)]
            pub(crate) struct $Name $(<$P>)?(std::sync::atomic::$Name $(<$P>)?);

            impl $(<$P>)? $Name $(<$P>)? {
                pub(crate) const fn new(value: $Value) -> Self {
                    $Name(std::sync::atomic::$Name::new(value))
                }

                fn raw(&self) -> Option<Rc<Raw>> {
                    let raw = raw((&raw const *self).addr())?;
                    assert_eq!($to(self.0.load(Ordering::Relaxed)), 0);
                    Some(raw)
                }

                #[track_caller]
                pub(crate) fn load(&self, order: Ordering) -> $Value {
                    match self.raw() {
                        Some(raw) => $from(load(&raw, order)),
                        None => self.0.load(order),
                    }
                }

                #[track_caller]
                pub(crate) fn store(&self, value: $Value, order: Ordering) {
                    match self.raw() {
                        Some(raw) => store(&raw, $to(value), order),
                        None => self.0.store(value, order),
                    }
                }

                #[track_caller]
                #[allow(dead_code, reason = "not used with each type")]
                pub(crate) fn swap(&self, value: $Value, order: Ordering) -> $Value {
                    match self.raw() {
                        Some(raw) => $from(update(order, |order| raw.swap($to(value), order))),
                        None => self.0.swap(value, order),
                    }
                }

                #[track_caller]
                pub(crate) fn compare_exchange(
                    &self,
                    current: $Value,
                    new: $Value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$Value, $Value> {
                    let Some(raw) = self.raw() else {
                        return self.0.compare_exchange(current, new, success, failure);
                    };
                    let failure =
                        if failure == Ordering::SeqCst { Ordering::Acquire } else { failure };
                    update(success, |success| {
                        raw.compare_exchange($to(current), $to(new), success, failure)
                    })
                    .map($from)
                    .map_err($from)
                }

                #[track_caller]
                #[allow(dead_code, reason = "not used with each type")]
                pub(crate) fn compare_exchange_weak(
                    &self,
                    current: $Value,
                    new: $Value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$Value, $Value> {
                    self.compare_exchange(current, new, success, failure)
                }

                #[allow(dead_code, reason = "not used with each type")]
                pub(crate) fn get_mut(&mut self) -> &mut $Value {
                    if let Some(raw) = forget((&raw const *self).addr()) {
                        // SAFETY: `&mut self` says that no other thread is at it.
                        *self.0.get_mut() = $from(unsafe { raw.unsync_load() });
                    }
                    self.0.get_mut()
                }

                $($others)*
            }

            impl $(<$P>)? Drop for $Name $(<$P>)? {
                fn drop(&mut self) {
                    forget((&raw const *self).addr());
                }
            }

            impl $(<$P>)? fmt::Debug for $Name $(<$P>)? {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(stringify!($Name))
                }
            }
        };
    }

    macro_rules! integer {
        ($Name:ident, $Value:ty) => {
            integer!($Name, $Value, fetch_add fetch_sub fetch_and fetch_or fetch_min fetch_max);
        };
        ($Name:ident, $Value:ty, $($fetch:ident)*) => {
            atomic!($Name, $Value, |value: $Value| value as u64, |raw: u64| raw as $Value, {
                $(
                    #[track_caller]
                    #[allow(dead_code, reason = "not used with each type")]
                    pub(crate) fn $fetch(&self, value: $Value, order: Ordering) -> $Value {
                        match self.raw() {
                            Some(raw) => {
                                update(order, |order| raw.$fetch(value as u64, order)) as $Value
                            }
                            None => self.0.$fetch(value, order),
                        }
                    }
                )*
            });

            impl Default for $Name {
                fn default() -> Self {
                    $Name::new(0)
                }
            }
        };
    }

    integer!(AtomicU32, u32);
    integer!(AtomicI32, i32);
    integer!(AtomicU64, u64);
    integer!(AtomicUsize, usize);

    atomic!(AtomicBool, bool, |value: bool| value as u64, |raw: u64| raw != 0, {});

    impl Default for AtomicBool {
        fn default() -> Self {
            AtomicBool::new(false)
        }
    }

    atomic!(
        AtomicPtr<T>,
        *mut T,
        |ptr: *mut T| ptr.expose_provenance() as u64,
        |raw: u64| std::ptr::with_exposed_provenance_mut::<T>(raw as usize),
        {
            #[allow(dead_code, reason = "as the others have it")]
            pub(crate) fn as_ptr(&self) -> *mut *mut T {
                self.0.as_ptr()
            }
        }
    );
}

fn futex() -> Rc<(Mutex<()>, Condvar)> {
    EXECUTION.with_borrow(|execution| execution.as_ref().expect("inside of a model").futex.clone())
}

/// A wait with a time-out is over at once.
pub(crate) fn futex_wait(word: &atomic::AtomicU32, expected: u32, timeout: Option<Duration>) {
    let futex = futex();
    let guard = futex.0.lock().unwrap();
    // The kernel looks at what there is, however the program's threads look at it.
    if timeout.is_none() && word.load(Ordering::SeqCst) == expected {
        drop(futex.1.wait(guard).unwrap());
    }
}

pub(crate) fn futex_wake_one(_: &atomic::AtomicU32) {
    let futex = futex();
    let _guard = futex.0.lock().unwrap();
    futex.1.notify_all();
}

/// As `parker::Parker`, but for going away with a thread's `unpark` under way, which is a mistake here.
#[derive(Debug)]
pub(crate) struct Parker {
    token: Token,
    in_use: Plain,
}

impl Default for Parker {
    fn default() -> Parker {
        Parker { token: Token::new(), in_use: Plain::new() }
    }
}

impl Parker {
    pub(crate) fn park(&self) {
        self.token.wait();
    }

    pub(crate) fn park_timeout(&self, _: Duration) {
        self.token.take();
    }

    pub(crate) fn unpark(&self) {
        self.token.leave();
        self.in_use.read();
    }
}

impl Drop for Parker {
    fn drop(&mut self) {
        // Not while a model that failed is taken apart.
        if !std::thread::panicking() {
            self.in_use.write();
        }
    }
}

/// What parking is made of. Loom's own forgets an `unpark` while the thread is at a lock.
#[derive(Debug)]
struct Token(Mutex<bool>, Condvar);

impl Token {
    fn new() -> Token {
        Token(Mutex::new(false), Condvar::new())
    }

    fn wait(&self) {
        let mut token = self.0.lock().unwrap();
        while !*token {
            token = self.1.wait(token).unwrap();
        }
        *token = false;
    }

    fn take(&self) {
        let was_left = std::mem::replace(&mut *self.0.lock().unwrap(), false);
        if !was_left {
            thread::yield_now();
        }
    }

    fn leave(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
}

pub(crate) mod thread {
    use super::*;
    use std::io;
    use std::sync::Arc;

    pub(crate) use loom::thread::yield_now;

    /// Words of a thread's stack.
    const STACK_WORDS: usize = 16 << 10;

    /// A thread that can be unparked.
    #[derive(Clone, Debug)]
    pub(crate) struct Thread(Arc<Token>);

    impl Thread {
        fn new() -> Thread {
            Thread(Arc::new(Token::new()))
        }

        /// The calling thread is this one.
        fn begin(self) {
            let id = loom::thread::current().id();
            EXECUTION.with_borrow_mut(|execution| {
                execution.as_mut().expect("inside of a model").parkers.insert(id, self);
            });
        }

        pub(crate) fn unpark(&self) {
            self.0.leave();
        }
    }

    pub(crate) fn current() -> Thread {
        let id = loom::thread::current().id();
        let known = EXECUTION.with_borrow(|execution| {
            execution.as_ref().and_then(|execution| execution.parkers.get(&id).cloned())
        });
        known.unwrap_or_else(|| {
            let thread = Thread::new();
            thread.clone().begin();
            thread
        })
    }

    pub(crate) fn park() {
        current().0.wait();
    }

    pub(crate) fn park_timeout(_: Duration) {
        current().0.take();
    }

    pub(crate) fn sleep(_: Duration) {
        yield_now();
    }

    /// What goes from one thread of a model to another.
    struct Sent<T>(T);

    // SAFETY: loom runs all threads on one of the system's.
    unsafe impl<T> Send for Sent<T> {}

    impl<T> Sent<T> {
        fn into_inner(self) -> T {
            self.0
        }
    }

    pub(crate) struct JoinHandle<T> {
        inner: loom::thread::JoinHandle<Sent<T>>,
        thread: Thread,
    }

    impl<T> JoinHandle<T> {
        pub(crate) fn thread(&self) -> &Thread {
            &self.thread
        }

        pub(crate) fn join(self) -> T {
            self.inner.join().unwrap().into_inner()
        }
    }

    pub(crate) fn spawn<T: 'static>(f: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
        let thread = Thread::new();
        let this = thread.clone();
        let f = Sent(f);
        let run = move || {
            this.begin();
            Sent(f.into_inner()())
        };
        let inner = loom::thread::Builder::new().stack_size(STACK_WORDS).spawn(run).unwrap();
        JoinHandle { inner, thread }
    }

    /// Starts the real code's threads.
    pub(crate) struct Builder(());

    impl Builder {
        pub(crate) fn new() -> Builder {
            Builder(())
        }

        pub(crate) fn name(self, _: String) -> Builder {
            self
        }

        pub(crate) fn stack_size(self, _: usize) -> Builder {
            self
        }

        pub(crate) fn spawn<T: 'static>(
            self,
            f: impl FnOnce() -> T + Send + 'static,
        ) -> io::Result<JoinHandle<T>> {
            Ok(spawn(f))
        }
    }
}

/// Something that is not atomic, in a model: loom says so when nothing orders two threads that are at it.
///
/// Loom does not tell a look at such a thing from the last atomic access or fence before it, so each look
/// has one of its own first.
#[derive(Debug)]
pub(crate) struct Plain(atomic::AtomicBool, loom::cell::UnsafeCell<()>);

// SAFETY: loom runs all threads on one of the system's, and says when two of its own are at it.
unsafe impl Sync for Plain {}

impl Plain {
    pub(crate) fn new() -> Plain {
        Plain(atomic::AtomicBool::new(false), loom::cell::UnsafeCell::new(()))
    }

    #[track_caller]
    pub(crate) fn read(&self) {
        self.0.load(Ordering::Relaxed);
        self.1.with(|_| ());
    }

    #[track_caller]
    pub(crate) fn write(&self) {
        self.0.load(Ordering::Relaxed);
        self.1.with_mut(|_| ());
    }
}

/// What lies in memory and is not atomic: `Plain` where it is looked at.
#[repr(transparent)]
pub(crate) struct Contents<T>(std::cell::UnsafeCell<T>);

impl<T> Contents<T> {
    pub(crate) const fn new(value: T) -> Self {
        Contents(std::cell::UnsafeCell::new(value))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// # Safety
    /// As for `ptr::read`, and no other thread is at it.
    #[track_caller]
    pub(crate) unsafe fn read(&self) -> T {
        self.look(Plain::read);
        // SAFETY: the caller's word.
        unsafe { self.0.get().read() }
    }

    /// # Safety
    /// No other thread is at it.
    #[track_caller]
    pub(crate) unsafe fn write(&self, value: T) {
        self.look(Plain::write);
        // SAFETY: the caller's word.
        unsafe { self.0.get().write(value) };
    }

    #[track_caller]
    fn look(&self, look: impl FnOnce(&Plain)) {
        let plain = EXECUTION.with_borrow_mut(|execution| {
            let execution = execution.as_mut()?;
            let unused = &mut execution.unused_contents;
            let new = || unused.pop().expect("the model uses more slots of queues than there are");
            Some(execution.contents.entry(self.0.get().addr()).or_insert_with(new).clone())
        });
        if let Some(plain) = plain {
            look(&plain);
        }
    }
}

/// A time of the model's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Instant {
        let hours = HOURS.get() + 1;
        HOURS.set(hours);
        Instant(Duration::from_secs(3600 * hours))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Instant::now() - self
    }

    pub(crate) fn checked_add(self, duration: Duration) -> Option<Instant> {
        self.0.checked_add(duration).map(Instant)
    }

    pub(crate) fn saturating_duration_since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0 + duration)
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.0 - earlier.0
    }
}
