//! Builds the emulator of CUDA and the kernels for it, where tests ask for them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulator")]
    emulator();
}

#[cfg(feature = "emulator")]
fn emulator() {
    // scripts/gpu/sanitize has kernels of its own, and flags.
    let variable = |name| {
        println!("cargo::rerun-if-env-changed={name}");
        std::env::var(name).ok()
    };
    let folder = variable("UPGRAYEDD_EMULATOR").unwrap_or_else(|| "src/device/cuda".to_owned());
    println!("cargo::rerun-if-changed={folder}/kernels");
    println!("cargo::rerun-if-changed={folder}/emulator");
    let flags = variable("UPGRAYEDD_EMULATOR_FLAGS").unwrap_or_default();
    // What switches between the threads of a block is not watched by sanitizers: it tells them of its switches.
    for (file, is_watched) in [("host", false), ("table", true)] {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").opt_level(2).warnings(false);
        build.flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas");
        for flag in flags.split_whitespace().filter(|flag| is_watched || !flag.starts_with("-fsanitize")) {
            build.flag(flag);
        }
        build.file(format!("{folder}/emulator/{file}.cpp")).compile(&format!("upgrayedd_emulator_{file}"));
    }
}
