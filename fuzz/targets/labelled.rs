#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("labelled"), |bytes: &[u8]| (readers::named("labelled").read)(bytes));
