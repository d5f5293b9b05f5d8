#![no_main]

// The tokenizers crate panics on some files, which is an error by design (`calotype::tokenizer`); the fuzzer's own hook would
// end the process there. A panic that leaves the target still ends it.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |bytes: &[u8]| calotype_fuzz::tokenizer::run(bytes));
