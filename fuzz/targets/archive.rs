#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("archive"), |bytes: &[u8]| (readers::named("archive").read)(bytes));
