#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("index"), |bytes: &[u8]| (readers::named("index").read)(bytes));
