//! Locks that survive a panic of another holder.
//!
//! A panic ends one task; the process decides elsewhere whether it goes on. What the locks of this workspace
//! guard is replaced in one step, so that a holder that panicked leaves no half-written value.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A mutex without poisoning.
#[derive(Debug, Default)]
pub struct Locked<T>(Mutex<T>);

impl<T> Locked<T> {
    /// Guards `value`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader-writer lock without poisoning.
#[derive(Debug, Default)]
pub struct RwLocked<T>(RwLock<T>);

impl<T> RwLocked<T> {
    /// Guards `value`.
    pub const fn new(value: T) -> Self {
        Self(RwLock::new(value))
    }

    /// Waits until there is no writer.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is no other holder.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_usable_after_a_holder_has_panicked() {
        let (locked, shared) = (Locked::new(1), RwLocked::new(1));

        std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                let (_one, _two) = (locked.lock(), shared.write());
                panic!("a holder");
            });
            panicking.join().unwrap_err();
        });

        *locked.lock() += 1;
        *shared.write() += 1;
        assert_eq!((*locked.lock(), *shared.read()), (2, 2));
    }
}
