//! The compressions that are served, and the compressing of answers.
//!
//! Both protocols say when: a tensor is compressed only for a client that compressed its request, or where the server is configured so.
//! That a client can read compressed data is no wish for it: stock clients announce it on every request, and compressing a tensor takes
//! ten times as long as sending it. Invariants: nothing is compressed on a thread that serves connections, nor more at one time than
//! half of the machine's processors do; what is made is reserved.

use std::{
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use tokio::sync::Semaphore;
use torchmodel_core::inference::InferError;

use crate::{admission::Reservation, blocking::off_thread, reserved::hold};

/// Shorter answers are never compressed: they fit one packet, or nearly.
pub(crate) const MIN_BYTES: usize = 1 << 10;

/// A compression that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// gzip.
    Gzip,
    /// The zlib format, as HTTP and gRPC mean it.
    Deflate,
}

impl Encoding {
    /// The name in headers.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// Compresses `pieces`, one after the other, to the end of `out`.
    pub(crate) fn compress<'a>(self, pieces: impl Iterator<Item = &'a [u8]>, out: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(out, Compression::fast());
                write_all(pieces, &mut encoder)?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(out, Compression::fast());
                write_all(pieces, &mut encoder)?;
                encoder.finish()
            }
        }
    }
}

fn write_all<'a>(mut pieces: impl Iterator<Item = &'a [u8]>, out: &mut impl Write) -> io::Result<()> {
    pieces.try_for_each(|piece| out.write_all(piece))
}

/// Compresses answers, a bounded number at one time. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Compressor {
    permits: Arc<Semaphore>,
}

impl Compressor {
    /// Compresses on half of the machine's processors at most.
    pub(crate) fn new() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { permits: Arc::new(Semaphore::new(cpus.div_ceil(2))) }
    }

    /// What `compress` makes of an answer, with what of `reservation` it takes.
    pub(crate) async fn run(
        &self,
        mut reservation: Reservation,
        compress: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
    ) -> Result<Bytes, InferError> {
        let failed = || InferError::Internal("the answer could not be compressed".into());
        let _permit = self.permits.acquire().await.map_err(|_| failed())?;
        let compressed = off_thread(move || {
            let compressed = compress()?;
            reservation.shrink_to(compressed.capacity());
            io::Result::Ok(hold(compressed, reservation))
        });
        compressed.await?.map_err(|_| failed())
    }
}
