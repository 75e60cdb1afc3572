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
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).warnings(false);
    build.flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas");
    for flag in variable("UPGRAYEDD_EMULATOR_FLAGS").unwrap_or_default().split_whitespace() {
        build.flag(flag);
    }
    for file in ["host.cpp", "table.cpp"] {
        build.file(format!("{folder}/emulator/{file}"));
    }
    build.compile("upgrayedd_emulator");
}
