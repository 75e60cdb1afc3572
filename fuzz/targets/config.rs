#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("config"), |bytes: &[u8]| (readers::named("config").read)(bytes));
