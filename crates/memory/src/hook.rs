//! How CPUs hear of what they have to forget.

use std::fmt;
use std::sync::RwLock;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Other memory, or none, is at some addresses: all that was resolved is to be resolved anew.
    Map,
    /// Writes to pages that were dirty are to be noted again.
    Watch,
}

type Hook = Box<dyn Fn(Change) + Send + Sync>;

/// Calls whoever wants to hear of changes.
#[derive(Default)]
pub(crate) struct ChangeHook(RwLock<Option<Hook>>);

impl ChangeHook {
    pub(crate) fn set(&self, hook: Hook) {
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = Some(hook);
    }

    pub(crate) fn call(&self, change: Change) {
        if let Some(hook) = &*self.0.read().unwrap_or_else(|e| e.into_inner()) {
            hook(change);
        }
    }
}

impl fmt::Debug for ChangeHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChangeHook")
    }
}
