#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("run"), |bytes: &[u8]| (readers::named("run").read)(bytes));
