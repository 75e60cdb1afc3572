#![no_main]
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let reader = readers::ALL.iter().find(|r| r.name == "index").unwrap();
    (reader.read)(bytes);
});
