//! Parts that are expensive to start and that a test has for itself: who gives one back leaves it to the next, and where
//! none is free another one is started. There are never more than tests that run side by side.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

/// See the module. As a static, what is in it when the run ends is ended by the system with this process.
pub struct Pool<T: 'static>(Mutex<Vec<T>>);

impl<T> Pool<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// One that is free, or a new one.
    pub fn lend(&'static self, make: impl FnOnce() -> T) -> Lent<T> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lent {
            pool: self,
            part: Some(free.unwrap_or_else(make)),
        }
    }
}

/// A part that belongs to one test until it is dropped.
pub struct Lent<T: 'static> {
    pool: &'static Pool<T>,
    part: Option<T>,
}

impl<T> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.part.as_ref().expect("it is given back at the end only")
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.part.take());
    }
}
