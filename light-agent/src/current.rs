//! A value that is replaced while others use it: whoever has taken it keeps what he took,
//! and takes the new one the next time.

use std::sync::{Arc, PoisonError, RwLock};

/// The value. Clones share it.
#[derive(Debug)]
pub struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Current<T> {
    /// This one at first.
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The one in force.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another one into force.
    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_taken_it_keeps_it() {
        let value = Current::new(1);
        let taken = value.get();
        value.clone().set(2);
        assert_eq!((*taken, *value.get()), (1, 2));
    }
}
