#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("tokenizer"), |bytes: &[u8]| (readers::named("tokenizer").read)(bytes));
