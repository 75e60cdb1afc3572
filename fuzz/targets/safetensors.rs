#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(init: readers::plant("safetensors"), |bytes: &[u8]| (readers::named("safetensors").read)(bytes));
