//! The codec of the service: prost's, but a message that cannot be decoded is the client's fault.
//!
//! Named in `build.rs` for the generated code. tonic's own codec answers INTERNAL to malformed protobuf, which alarms and error
//! budgets take for the server's fault.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Encodes `T`, decodes `U`.
#[derive(Clone, Copy, Debug)]
pub struct InferenceCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for InferenceCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for InferenceCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = MessageCodec<T>;
    type Decoder = MessageCodec<U>;

    fn encoder(&mut self) -> Self::Encoder {
        MessageCodec(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageCodec(PhantomData)
    }
}

/// One direction of an [`InferenceCodec`].
#[derive(Clone, Copy, Debug)]
pub struct MessageCodec<T>(PhantomData<T>);

impl<T: Message> Encoder for MessageCodec<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // The length is known, so the buffer grows once.
        buf.reserve(item.encoded_len());
        item.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl<U: Message + Default + 'static> Decoder for MessageCodec<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = U::decode(buf);
        message.map(Some).map_err(|error| Status::invalid_argument(format!("failed to parse the request: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
