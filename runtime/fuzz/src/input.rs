//! How an input of the wire's checks is read: four bytes of choices, then what the client sends.
//!
//! Used by `rest` and `grpc`. The choices come first so that a fuzzer finds them, and their defaults are printable, so that kept inputs
//! can be read: `@@00{"inputs":[…]}`.

use bytes::Bytes;
use torchmodel_server::{admission::Admission, protocol::Limits};

/// What a request may have.
pub(crate) const LIMITS: Limits = Limits { max_request_bytes: 64 << 10, are_tensors_compressed: false };

/// Memory for every request and all that is made of it.
const ROOMY_BYTES: usize = 64 << 20;
/// A step of the memory that is short.
const TIGHT_BYTES: usize = 128;

thread_local! {
    static ROOMY: Admission = Admission::new(ROOMY_BYTES);
}

/// The choices of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choices {
    flags: u8,
    /// A number for what has more than two forms.
    pub(crate) variant: u8,
    cuts: [u8; 2],
}

impl Choices {
    /// Parts an input; `None` if it is too short for choices.
    pub(crate) fn split(input: &[u8]) -> Option<(Self, &[u8])> {
        let ([flags, variant, cuts @ ..], rest) = input.split_first_chunk::<4>()?;
        Some((Self { flags: *flags, variant: *variant, cuts: *cuts }, rest))
    }

    /// Whether a flag is set, by its number.
    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags >> flag & 1 == 1
    }

    /// `bytes` in three pieces, any of which may be empty.
    pub(crate) fn pieces(self, bytes: &Bytes) -> [Bytes; 3] {
        let mut cuts = self.cuts.map(|cut| part(cut, bytes.len()));
        cuts.sort_unstable();
        let [first, second] = cuts;
        [bytes.slice(..first), bytes.slice(first..second), bytes.slice(second..)]
    }

    /// Memory that may not do, and more by `base` than a little.
    pub(crate) fn tight_memory(self, base: usize) -> Admission {
        Admission::new(base + TIGHT_BYTES * (1 + usize::from(self.variant)))
    }
}

/// A place in something that is `length` long, from its beginning to its end.
pub(crate) fn part(of_256: u8, length: usize) -> usize {
    usize::from(of_256) * (length + 1) / 256
}

/// Runs a check with memory enough, and has everything given back at its end.
pub(crate) fn with_memory(check: impl FnOnce(&Admission)) {
    ROOMY.with(|memory| {
        check(memory);
        assert_eq!(memory.held(), 0, "everything is gone, but not what was reserved for it");
    });
}
