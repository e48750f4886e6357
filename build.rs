//! Gives the shared library that cargo links its versioned soname.
//! (CMake links its own from the static library, with a symbol map: see CMakeLists.txt.)

fn main() {
    // The number is `ABI_VERSION` in src/ffi/about.rs; tests/rust/abi.rs holds the two together.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libsafetensors_lazy.so.1");
    // DLPack tensors call back into the library after any plugin that used it may have been unloaded.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}
