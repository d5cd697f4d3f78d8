//! One number of a JSON text: its strict grammar, its digits, and its nearest value of each datatype.
//!
//! Used by `rest::data`, which reads each number once. Digits are gathered while the grammar is checked; only what nineteen digits
//! and one exact power of ten do not decide is read again, by a library. Invariant: every value is rounded once, to nearest, ties to
//! even, from the digits in the text; what rounds to infinity is no value.

use std::cmp::Ordering;

use half::{bf16, f16};

/// The powers of ten that an FP64 holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
/// The powers of ten of so many digits.
const WHOLE_POWERS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
/// The most digits that `u64` always holds.
const MAX_DIGITS: usize = 19;
/// More than what rounding 19 digits, one multiplication and this factor's own can be off together: each at most 2^-53 of the value.
const MARGIN: f64 = 1.0 / 1_125_899_906_842_624.0; // 2^-50

/// A JSON number, taken apart: ± `digits` · 10^`exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number<'a> {
    /// The text.
    text: &'a [u8],
    is_negative: bool,
    digits: u64,
    exponent: i64,
    /// Whether it has neither a fraction nor an exponent.
    is_whole: bool,
    /// Whether `digits` holds all digits.
    is_complete: bool,
}

/// Reads digits from `text` at `at` into `value`; returns where they end. Overflow is the caller's to notice, by their count.
///
/// Sixteen bytes at a time and without a branch for how many of them are digits, which no processor can guess.
#[inline]
fn digits(text: &[u8], mut at: usize, value: &mut u64) -> usize {
    while let Some(bytes) = text.get(at..).and_then(<[u8]>::first_chunk::<16>) {
        let (&[first, second], _) = bytes.as_chunks::<8>() else { break };
        let (first, second) = (leading_digits(first), leading_digits(second));
        let second = if first.count == 8 { second } else { Digits { count: 0, number: 0 } };
        *value = second.after(first.after(*value));
        at += first.count + second.count;
        if second.count < 8 {
            return at;
        }
    }
    few_digits(text, at, value)
}

/// Digits at the beginning of eight bytes.
#[derive(Clone, Copy)]
struct Digits {
    count: usize,
    number: u64,
}

impl Digits {
    /// The number that they make behind those of `value`.
    #[inline]
    fn after(self, value: u64) -> u64 {
        let power = WHOLE_POWERS.get(self.count).copied().unwrap_or_default();
        value.wrapping_mul(power).wrapping_add(self.number)
    }
}

/// The digits that eight ASCII characters begin with, the first in the lowest byte (after Johnny Lee's and Daniel Lemire's way to read
/// eight digits at once).
#[inline]
fn leading_digits(bytes: [u8; 8]) -> Digits {
    let digits = u64::from_le_bytes(bytes) ^ 0x3030_3030_3030_3030;
    // The lowest byte whose high bit is set is the first that is no digit; what a carry does above it does not matter.
    let others = (digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080;
    let count = others.trailing_zeros() / 8;
    // The digits as the last of eight, after zeros.
    let digits = digits.checked_shl(64 - 8 * count).unwrap_or(0);
    let pairs = digits.wrapping_mul(2561) >> 8;
    let fours = (pairs & 0x00ff_00ff_00ff_00ff).wrapping_mul(6_553_601) >> 16;
    let number = (fours & 0x0000_ffff_0000_ffff).wrapping_mul(42_949_672_960_001) >> 32;
    Digits { count: count as usize, number }
}

/// The same, one by one: for what is short and mostly as long as the last time.
#[inline]
fn few_digits(text: &[u8], mut at: usize, value: &mut u64) -> usize {
    while let Some(digit) = text.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        *value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    at
}

impl<'a> Number<'a> {
    /// The number that `text` begins with, by JSON's grammar; `None` when it begins with none.
    #[inline]
    pub(super) fn read(text: &'a [u8]) -> Option<Self> {
        let is_negative = text.first() == Some(&b'-');
        let start = usize::from(is_negative);
        let mut value = 0;
        let mut end = few_digits(text, start, &mut value);
        let mut count = end - start;
        if count == 0 || (count > 1 && text.get(start) == Some(&b'0')) {
            return None;
        }
        let mut exponent = 0;
        let mut is_whole = true;
        if text.get(end) == Some(&b'.') {
            let point = end + 1;
            end = digits(text, point, &mut value);
            let decimals = end - point;
            if decimals == 0 {
                return None;
            }
            count += decimals;
            exponent = -i64::try_from(decimals).ok()?;
            is_whole = false;
        }
        if let Some(b'e' | b'E') = text.get(end) {
            let (written, length) = read_exponent(text.get(end + 1..)?)?;
            exponent = exponent.saturating_add(written);
            end += 1 + length;
            is_whole = false;
        }
        let text = text.get(..end)?;
        Some(Self { text, is_negative, digits: value, exponent, is_whole, is_complete: count <= MAX_DIGITS })
    }

    /// The text of the number.
    pub(super) fn text(&self) -> &'a [u8] {
        self.text
    }

    /// A whole number that is not negative, written without fraction and exponent.
    pub(super) fn unsigned(&self) -> Option<u64> {
        if self.is_negative || !self.is_whole {
            return None;
        }
        if self.is_complete { Some(self.digits) } else { std::str::from_utf8(self.text).ok()?.parse().ok() }
    }

    /// A whole number, written without fraction and exponent.
    pub(super) fn signed(&self) -> Option<i64> {
        if !self.is_whole {
            return None;
        }
        if !self.is_complete {
            return std::str::from_utf8(self.text).ok()?.parse().ok();
        }
        if self.is_negative { 0i64.checked_sub_unsigned(self.digits) } else { i64::try_from(self.digits).ok() }
    }

    /// The nearest FP32.
    #[inline]
    pub(super) fn fp32(&self) -> Option<f32> {
        #[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
        let value = self.between(|value| value as f32);
        value.or_else(|| fast_float2::parse(self.text).ok()).filter(|value| value.is_finite())
    }

    /// The nearest FP64.
    #[inline]
    pub(super) fn fp64(&self) -> Option<f64> {
        fast_float2::parse(self.text).ok().filter(|value: &f64| value.is_finite())
    }

    /// The nearest FP16.
    pub(super) fn fp16(&self) -> Option<f16> {
        self.narrow(|value| f16::from_f32(round_to_odd(value))).filter(|value| value.is_finite())
    }

    /// The nearest BF16.
    pub(super) fn bf16(&self) -> Option<bf16> {
        self.narrow(|value| bf16::from_f32(round_to_odd(value))).filter(|value| value.is_finite())
    }

    /// What `round` makes of the number, where it makes the same of everything that the number can be.
    #[inline]
    fn between<T: PartialEq>(&self, round: impl Fn(f64) -> T) -> Option<T> {
        let power = usize::try_from(self.exponent.unsigned_abs()).ok().and_then(|exponent| POWERS.get(exponent))?;
        if !self.is_complete {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "within the margin")]
        let digits = self.digits as f64;
        let size = if self.exponent < 0 { digits / power } else { digits * power };
        let size = if self.is_negative { -size } else { size };
        let near = round(size * (1.0 - MARGIN));
        (near == round(size * (1.0 + MARGIN))).then_some(near)
    }

    /// The nearest value of a type with at most 11 bits of significand, given `round`, which finds it for an FP64.
    fn narrow<T: Copy + PartialEq>(&self, round: impl Fn(f64) -> T) -> Option<T> {
        if let Some(value) = self.between(&round) {
            return Some(value);
        }
        let value: f64 = fast_float2::parse(self.text).ok()?;
        let (near, far) = (round(value * (1.0 - MARGIN)), round(value * (1.0 + MARGIN)));
        // Only in the middle between two values can the digits that an FP64 lost make a difference, and that has few bits.
        let is_middle = near != far && value.to_bits().trailing_zeros() >= 40;
        Some(match is_middle.then(|| compare(self.text, value)) {
            Some(Ordering::Less) => near,
            Some(Ordering::Greater) => far,
            Some(Ordering::Equal) | None => round(value),
        })
    }
}

/// The digits after `e`, with their sign, and the length of both; a larger exponent than any datatype has is as good as that.
fn read_exponent(text: &[u8]) -> Option<(i64, usize)> {
    const LARGE: i64 = 1 << 40;
    let start = usize::from(matches!(text.first(), Some(b'+' | b'-')));
    let mut value = 0i64;
    let mut end = start;
    while let Some(digit) = text.get(end).filter(|byte| byte.is_ascii_digit()) {
        value = (value * 10 + i64::from(digit - b'0')).min(LARGE);
        end += 1;
    }
    let value = if text.first() == Some(&b'-') { -value } else { value };
    (end > start).then_some((value, end))
}

#[expect(clippy::float_cmp, reason = "exactness is the question")]
fn is_exact(narrow: f32, value: f64) -> bool {
    f64::from(narrow) == value
}

/// An FP32 from which a narrower type rounds as it would from `value` itself: of the two neighbours, the one whose last bit is set
/// (Boldo and Melquiond, "When double rounding is odd").
fn round_to_odd(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
    let nearest = value as f32;
    if is_exact(nearest, value) || nearest.to_bits() & 1 == 1 || !nearest.is_finite() {
        return nearest;
    }
    if f64::from(nearest) < value { nearest.next_up() } else { nearest.next_down() }
}

/// How far the number in `text` is from zero, compared with the FP64 `value` of the same sign.
fn compare(text: &[u8], value: f64) -> Ordering {
    // Exact for the middles between two narrow values: they have at most 97 digits.
    let exact = format!("{:.160e}", value.abs());
    significant(text).cmp(&significant(exact.as_bytes()))
}

/// The decimal exponent of the first digit that is not zero, and the digits from there on to the last that is not.
fn significant(text: &[u8]) -> (i64, Vec<u8>) {
    let end = text.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(text.len());
    let (mantissa, tail) = text.split_at_checked(end).unwrap_or((text, &[]));
    let written = tail.get(1..).and_then(read_exponent).map_or(0, |(exponent, _)| exponent);
    let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
    let is_significant = |byte: &u8| (b'1'..=b'9').contains(byte);
    let Some(first) = mantissa.iter().position(is_significant) else { return (i64::MIN, Vec::new()) };
    let last = mantissa.iter().rposition(is_significant).unwrap_or(first);
    let place = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
    let before = if first < point { place(point - first) - 1 } else { -place(first - point) };
    let digits = mantissa.get(first..=last).unwrap_or_default();
    (before.saturating_add(written), digits.iter().copied().filter(u8::is_ascii_digit).collect())
}

#[cfg(test)]
mod tests;
