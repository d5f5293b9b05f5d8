#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| calotype_fuzz::json::run(bytes));
