//! Builds the emulator of CUDA and the kernels for it, where tests ask for them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulator")]
    emulator();
}

#[cfg(feature = "emulator")]
fn emulator() {
    let folder = "src/device/cuda";
    println!("cargo::rerun-if-changed={folder}/kernels");
    println!("cargo::rerun-if-changed={folder}/emulator");
    println!("cargo::rerun-if-env-changed=UPGRAYEDD_SANITIZE");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).warnings(false);
    build.flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas");
    for file in ["host.cpp", "table.cpp"] {
        build.file(format!("{folder}/emulator/{file}"));
    }
    build.compile("upgrayedd_emulator");
}
