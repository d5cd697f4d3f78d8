//! Tells the linker where this crate's own tests find libtorch: in the target folder, from `deps`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../libtorch/lib:$ORIGIN/../../libtorch/lib");
}
