#!/bin/bash
# Builds a fuzz target with nightly and runs it: run.sh TARGET [libFuzzer options], e.g. run.sh h2_authority -max_total_time=60
# It starts from seeds/TARGET; the corpus is kept in corpus/TARGET (not in git). Exit status: libFuzzer's.
set -e
cd "$(dirname "$0")"
TARGET=${1:?target}; shift
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Zsanitizer=address --cfg fuzzing -Cdebug-assertions"
cargo +nightly build --release --target x86_64-unknown-linux-gnu --bin "$TARGET"
mkdir -p "corpus/$TARGET" "seeds/$TARGET"
exec "target/x86_64-unknown-linux-gnu/release/$TARGET" "corpus/$TARGET" "seeds/$TARGET" "$@"
