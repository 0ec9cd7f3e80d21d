//! A manifest and the footer of its segments, which have to agree.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    let (records, footer) = input;
    let _ = images::decode::layers(records, footer, 1 << 20);
});
