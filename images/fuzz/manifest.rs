//! A manifest, as a whole file and as the records behind a hash that is right.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = images::decode::manifest(bytes);
    let _ = images::decode::records(bytes);
});
