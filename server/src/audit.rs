//! What is written to the log about an administrator's change.
//!
//! An event is made from what the store acknowledged, never from the request alone, and is
//! durable in the log before the caller hears of it (DESIGN "Issuing order": store, then log,
//! then acknowledgement). It names no token and no key.
