//! From the neutral words to gRPC messages: inference responses and metadata.
//!
//! Called by `infer` and `grpc`'s service. Invariants: outputs are always in `raw_output_contents`, one entry for each, whatever form
//! the request had (Triton's rule), and their bytes are sent as they are, not copied.

use std::{
    collections::{HashMap, VecDeque},
    io,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use torchmodel_core::{
    inference::{InferError, InferResponse, Parameter, Parameters},
    metadata::{ModelMetadata, ServerMetadata},
    model_key::ModelVersion,
    tensor::{DataType, DataTypeExt},
};

use super::proto::{
    InferParameter, ModelInferResponse, ModelMetadataResponse, ServerMetadataResponse,
    infer_parameter::ParameterChoice, model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
};
use crate::compression::Encoding;

/// `raw_output_contents`.
const RAW_TAG: u32 = 6;
/// The flag and the length before a message.
const PREFIX_BYTES: usize = 5;

/// An answer in the pieces that are sent: `[prefix and head][tensor][tensor]…`.
#[derive(Debug)]
pub(super) struct Encoded {
    pieces: VecDeque<Bytes>,
}

/// The message of an answered inference, with its prefix. Error: it is longer than gRPC can say.
pub(super) fn encode(response: InferResponse) -> Result<Encoded, InferError> {
    let mut outputs = Vec::with_capacity(response.outputs.len());
    let mut tensors = Vec::with_capacity(response.outputs.len());
    for output in response.outputs {
        let (datatype, shape, data) = output.tensor.into_parts();
        outputs.push(InferOutputTensor {
            name: output.name,
            datatype: datatype.as_str().to_owned(),
            shape,
            parameters: HashMap::new(),
            contents: None,
        });
        tensors.push(data);
    }
    let head = ModelInferResponse {
        model_name: response.model.to_string(),
        model_version: response.version.to_string(),
        id: response.id,
        parameters: encode_parameters(response.parameters),
        outputs,
        raw_output_contents: Vec::new(),
    };
    let entry_head = |tensor: &Bytes| key_len(RAW_TAG) + encoded_len_varint(tensor.len() as u64);
    let heads_bytes = head.encoded_len() + tensors.iter().map(entry_head).sum::<usize>();
    let message_bytes = tensors.iter().map(Bytes::len).fold(heads_bytes, usize::saturating_add);
    let length = u32::try_from(message_bytes).map_err(|_| too_long())?;
    let mut heads = BytesMut::with_capacity(PREFIX_BYTES + heads_bytes);
    heads.put_u8(0);
    heads.put_u32(length);
    head.encode(&mut heads).map_err(|error| InferError::Internal(error.to_string()))?;
    let mut pieces = VecDeque::with_capacity(2 * tensors.len() + 1);
    for tensor in tensors {
        encode_key(RAW_TAG, WireType::LengthDelimited, &mut heads);
        encode_varint(tensor.len() as u64, &mut heads);
        if !tensor.is_empty() {
            pieces.push_back(heads.split().freeze());
            pieces.push_back(tensor);
        }
    }
    if !heads.is_empty() {
        pieces.push_back(heads.freeze());
    }
    Ok(Encoded { pieces })
}

fn too_long() -> InferError {
    InferError::Internal("the outputs are longer than the 4 GiB that a gRPC message can have".into())
}

impl Encoded {
    /// Bytes of all pieces.
    pub(super) fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// The pieces.
    pub(super) fn into_pieces(self) -> VecDeque<Bytes> {
        self.pieces
    }

    /// The same message, compressed. Takes a while: not on a thread that serves connections.
    pub(super) fn compress(&self, encoding: Encoding) -> io::Result<Vec<u8>> {
        // The first piece begins with the prefix.
        let message = self.pieces.iter().enumerate().map(|(index, piece)| {
            let start = if index == 0 { PREFIX_BYTES } else { 0 };
            piece.get(start..).unwrap_or_default()
        });
        let mut bytes = encoding.compress(message, vec![0; PREFIX_BYTES])?;
        let length = u32::try_from(bytes.len().saturating_sub(PREFIX_BYTES)).map_err(io::Error::other)?;
        let [a, b, c, d] = length.to_be_bytes();
        for (place, byte) in bytes.iter_mut().zip([1, a, b, c, d]) {
            *place = byte;
        }
        Ok(bytes)
    }
}

fn encode_parameters(parameters: Parameters) -> HashMap<String, InferParameter> {
    let parameters = parameters.into_iter().map(|(name, value)| {
        let choice = match value {
            Parameter::Bool(value) => ParameterChoice::BoolParam(value),
            Parameter::Int64(value) => ParameterChoice::Int64Param(value),
            Parameter::Uint64(value) => ParameterChoice::Uint64Param(value),
            Parameter::Double(value) => ParameterChoice::DoubleParam(value),
            Parameter::String(value) => ParameterChoice::StringParam(value),
        };
        (name, InferParameter { parameter_choice: Some(choice) })
    });
    parameters.collect()
}

/// The message of a server's metadata.
pub(super) fn encode_server(metadata: ServerMetadata) -> ServerMetadataResponse {
    ServerMetadataResponse { name: metadata.name, version: metadata.version, extensions: metadata.extensions }
}

/// The message of a model's metadata.
pub(super) fn encode_model(metadata: ModelMetadata) -> ModelMetadataResponse {
    ModelMetadataResponse {
        name: metadata.name.to_string(),
        versions: metadata.versions.iter().map(ModelVersion::to_string).collect(),
        platform: metadata.platform,
        inputs: metadata
            .inputs
            .into_iter()
            .map(|input| encode_tensor(input.name, input.datatype, input.shape))
            .collect(),
        outputs: metadata
            .outputs
            .into_iter()
            .map(|output| encode_tensor(output.name, output.datatype, output.shape))
            .collect(),
        properties: metadata.properties.into_iter().collect(),
    }
}

/// As in REST: an unknown datatype is empty, an unknown shape is one dimension of any size.
fn encode_tensor(name: String, datatype: Option<DataType>, shape: Option<Vec<i64>>) -> TensorMetadata {
    TensorMetadata {
        name,
        datatype: datatype.map_or("", DataTypeExt::as_str).to_owned(),
        shape: shape.unwrap_or_else(|| vec![-1]),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::{GzDecoder, ZlibDecoder};
    use torchmodel_core::{
        inference::NamedTensor,
        tensor::{DataType, Tensor},
    };

    use super::*;

    fn response(sizes: &[usize]) -> InferResponse {
        let output = |size: &usize| {
            let tensor = Tensor::new(DataType::Uint8, vec![i64::try_from(*size).unwrap()], vec![7; *size].into());
            NamedTensor { name: format!("output of {size}"), tensor: tensor.unwrap() }
        };
        InferResponse {
            model: "m".parse().unwrap(),
            version: ModelVersion::parse_requested("1").unwrap().unwrap(),
            id: "id".into(),
            outputs: sizes.iter().map(output).collect(),
            parameters: Parameters::from([("p".to_owned(), Parameter::Bool(true))]),
        }
    }

    fn message_of<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> (u8, Vec<u8>) {
        let all: Vec<u8> = bytes.into_iter().copied().collect();
        let (prefix, message) = all.split_at(PREFIX_BYTES);
        assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, message.len());
        (prefix[0], message.to_vec())
    }

    #[test]
    fn the_pieces_are_one_message_and_the_tensors_are_in_it_as_they_are() {
        for sizes in [&[][..], &[0], &[1], &[100_000, 0, 3], &[0, 5, 0]] {
            let response = response(sizes);
            let data: Vec<_> = response.outputs.iter().map(|output| output.tensor.data().as_ptr()).collect();
            let encoded = encode(response).unwrap();
            for (pointer, size) in data.iter().zip(sizes).filter(|(_, size)| **size > 0) {
                assert!(encoded.pieces.iter().any(|piece| piece.as_ptr() == *pointer && piece.len() == *size));
            }
            let (flag, message) = message_of(encoded.pieces.iter().flatten());
            let message = ModelInferResponse::decode(message.as_slice()).unwrap();
            let lengths: Vec<_> = message.raw_output_contents.iter().map(Bytes::len).collect();
            assert_eq!((flag, lengths.as_slice(), message.outputs.len()), (0, sizes, sizes.len()));
            assert_eq!((message.id.as_str(), message.parameters.len()), ("id", 1));
        }
    }

    #[test]
    fn a_compressed_message_is_the_same_one() {
        let plain = message_of(encode(response(&[5000, 3])).unwrap().pieces.iter().flatten()).1;
        let (flag, gzip) = message_of(&encode(response(&[5000, 3])).unwrap().compress(Encoding::Gzip).unwrap());
        let mut inflated = Vec::new();
        GzDecoder::new(gzip.as_slice()).read_to_end(&mut inflated).unwrap();
        assert_eq!((flag, &inflated), (1, &plain));
        let (_, zlib) = message_of(&encode(response(&[5000, 3])).unwrap().compress(Encoding::Deflate).unwrap());
        inflated.clear();
        ZlibDecoder::new(zlib.as_slice()).read_to_end(&mut inflated).unwrap();
        assert_eq!(inflated, plain);
    }
}
