#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("data"), |bytes: &[u8]| (readers::named("data").read)(bytes));
