//! Locks that survive a panic of another holder.
//!
//! A panic ends one task, and others continue with the value as that task left it. The code that starts a task decides
//! whether its panic ends the process.

use std::sync::{
    Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

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

    /// Returns the lock unless it is held.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
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
        assert!(locked.try_lock().is_some());
        *shared.write() += 1;
        assert_eq!((*shared.read(), locked.into_inner()), (2, 2));
    }
}
