//! Tells the linker where programs will find libtorch: beside themselves in an image, else in the target folder, from its
//! profile's folder and from `deps`, where tests are. No path of the machine that built them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:$ORIGIN/../libtorch/lib:$ORIGIN/../../libtorch/lib");
}
