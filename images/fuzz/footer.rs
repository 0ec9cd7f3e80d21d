//! The footer of a segment, and the sets of pages in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = images::decode::footer(bytes, 1 << 20);
    let _ = images::decode::page_set(bytes);
});
