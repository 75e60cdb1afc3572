#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("tokenizer_files"), |bytes: &[u8]| (readers::named("tokenizer_files").read)(bytes));
