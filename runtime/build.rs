//! Generates the gRPC code from `proto/inference.proto`, without protoc, keeps the descriptors for server reflection, and tells
//! the linker where libtorch will be.

use std::{error::Error, fs, path::PathBuf};

use prost::Message;

/// Where programs find libtorch: beside themselves in an image, else in the target folder, from its profile's folder and from
/// `deps`, where tests are. No path of the machine that built them.
fn link_libtorch() {
    if std::env::var_os("DEP_TORCH_SHIM_LIBRARY").is_some() {
        let folders = "$ORIGIN/../lib:$ORIGIN/../libtorch/lib:$ORIGIN/../../libtorch/lib";
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folders}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    link_libtorch();
    println!("cargo::rerun-if-changed=proto/inference.proto");
    let descriptors = protox::compile(["proto/inference.proto"], ["proto"])?;
    let folder = PathBuf::from(std::env::var("OUT_DIR")?);
    fs::write(folder.join("inference_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // `bytes` fields are slices of the received frame, not copies.
        .bytes(".")
        .codec_path("crate::grpc::codec::InferenceCodec")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
