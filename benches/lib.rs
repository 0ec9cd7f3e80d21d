//! Nothing but benchmarks: `cargo bench -p benches` for the parts, `cargo xtask bench` for the whole.
#![forbid(unsafe_code)]
