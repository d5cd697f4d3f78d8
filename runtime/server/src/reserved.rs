//! Bytes that hold what was reserved for them.
//!
//! Used wherever a protocol keeps bytes that are not a slab's, which holds its reservation itself.

use bytes::Bytes;

use crate::admission::Reservation;

/// The fields are dropped in their order: the memory is given back before what was reserved for it.
struct Reserved<T> {
    bytes: T,
    _reservation: Reservation,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Reserved<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// `bytes`, which hold `reservation` until their last slice is gone.
pub(crate) fn hold<T: AsRef<[u8]> + Send + 'static>(bytes: T, reservation: Reservation) -> Bytes {
    Bytes::from_owner(Reserved { bytes, _reservation: reservation })
}
