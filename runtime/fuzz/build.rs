//! Tells the linker where libtorch is.

fn main() {
    if let Ok(library) = std::env::var("DEP_TORCH_SHIM_LIBRARY") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{library}");
    }
}
