#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let reader = readers::ALL.iter().find(|r| r.name == "tokenizer").unwrap();
    (reader.read)(bytes);
});
