//! A frame's stored bytes, with a checksum that is right.
#![no_main]

use images::proto::Codec;

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (pages, stored) = input;
    let crc = crc32c::crc32c(stored);
    let mut out = Vec::new();
    for codec in [Codec::Raw, Codec::Zstd] {
        if images::decode::frame(codec, usize::from(pages), crc, stored, &mut out).is_ok() {
            assert_eq!(out.len(), usize::from(pages) * images::PAGE_SIZE);
        }
    }
});
