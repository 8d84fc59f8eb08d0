//! What only sled has: reopening, damage, and a disk that fails.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::*;
use crate::conformance;

fn open(dir: &Path) -> SledKv {
    SledKv::open(SledConfig::new(dir)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_keeps_the_contract() {
    let root = TempDir::new().unwrap();
    let next = AtomicUsize::new(0);
    conformance::suite(|| async {
        let n = next.fetch_add(1, Ordering::SeqCst);
        Arc::new(open(&root.path().join(n.to_string()))) as Arc<dyn Kv>
    })
    .await;
}
