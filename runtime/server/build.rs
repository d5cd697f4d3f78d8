//! Generates the gRPC code from `proto/`, without protoc, and keeps the descriptors for server reflection.

use std::{error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
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
