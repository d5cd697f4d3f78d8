//! Generates a gRPC client from the runtime's protocol file, without protoc, and tells the linker where libtorch is.

use std::error::Error;

const FOLDER: &str = "../runtime/server/proto";

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(library) = std::env::var("DEP_TORCH_SHIM_LIBRARY") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{library}");
    }
    let file = format!("{FOLDER}/inference.proto");
    println!("cargo::rerun-if-changed={file}");
    let descriptors = protox::compile([file], [FOLDER])?;
    tonic_prost_build::configure().bytes(".").build_server(false).compile_fds(descriptors)?;
    Ok(())
}
