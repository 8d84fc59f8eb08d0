//! The cryptography behind TLS: aws-lc-rs, chosen once.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The one provider of cryptography in the product.
///
/// `main` also installs it as the process's default, for the sake of libraries
/// that ask for that.
#[must_use]
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    &PROVIDER
}
