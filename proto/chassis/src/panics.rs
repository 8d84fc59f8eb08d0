//! Panics: a line of the log each, and those that are caught on purpose.
//!
//! A library that panics on damaged input is called through [`catch`]; its words are for whoever
//! looks into it (`debug`), the caller says what it means. Every other panic is a fault of ours.

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};

thread_local! {
    /// How many [`catch`] this thread is in.
    static CAUGHT: Cell<u32> = const { Cell::new(0) };
}

/// From now on panics are written to the log and not to standard error as they are.
pub(crate) fn log() {
    set_hook(Box::new(write));
}

/// What `f` returns, or what it panicked with. What `f` left half done must not be used again.
///
/// # Errors
/// The payload of the panic.
pub fn catch<T>(f: impl FnOnce() -> T) -> std::thread::Result<T> {
    CAUGHT.set(CAUGHT.get().saturating_add(1));
    let outcome = catch_unwind(AssertUnwindSafe(f));
    CAUGHT.set(CAUGHT.get().saturating_sub(1));
    outcome
}

fn write(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    let place = place.unwrap_or_default();
    let words = panic.payload_as_str().unwrap_or_default();
    if CAUGHT.get() > 0 {
        tracing::debug!(%place, words, "a panic was caught");
    } else {
        let backtrace = Backtrace::capture();
        tracing::error!(%place, words, %backtrace, "a panic, which is a fault of this program");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_caught_is_counted_in_and_out_again() {
        let inner = || {
            assert_eq!(CAUGHT.get(), 2);
            std::panic::resume_unwind(Box::new("words"))
        };
        let payload = catch(|| catch::<()>(inner)).unwrap().unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"words"));
        assert_eq!(CAUGHT.get(), 0);
    }
}
