//! Tests of numbers: the grammar against serde's, and rounding against exact arithmetic.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Option<Number<'_>> {
    Number::read(text.as_bytes()).filter(|number| number.text().len() == text.len())
}

fn fp16(text: &str) -> Option<f32> {
    read(text).unwrap().fp16().map(f32::from)
}

fn bf16_of(text: &str) -> Option<f32> {
    read(text).unwrap().bf16().map(f32::from)
}

#[test]
fn the_grammar_is_jsons() {
    for right in ["0", "-0", "10", "0.5", "-1.25e+3", "1E5", "1e-0", "123456789012345678901234567890", "0.0000001"] {
        assert!(read(right).is_some(), "{right}");
    }
    for wrong in ["", "-", "+1", "01", "-01", "00", ".5", "1.", "1.e5", "1e", "1e+", "0x1", "NaN", "inf", "1_000", " 1"]
    {
        assert!(read(wrong).is_none(), "{wrong}");
    }
    assert_eq!(Number::read(b"12,3").map(|number| number.text().len()), Some(2));
    assert_eq!(Number::read(b"123456781234567812,3").map(|number| number.text().len()), Some(18));
}

#[test]
fn whole_numbers_are_exact_to_their_ends() {
    assert_eq!(read("18446744073709551615").unwrap().unsigned(), Some(u64::MAX));
    assert_eq!(read("18446744073709551616").unwrap().unsigned(), None);
    assert_eq!(read("9223372036854775807").unwrap().signed(), Some(i64::MAX));
    assert_eq!(read("-9223372036854775808").unwrap().signed(), Some(i64::MIN));
    assert_eq!(read("-9223372036854775809").unwrap().signed(), None);
    assert_eq!(read("9223372036854775808").unwrap().signed(), None);
    assert_eq!(read("99999999999999999999999").unwrap().signed(), None);
    for no_whole in ["1.0", "1e2", "-1"] {
        assert_eq!(read(no_whole).unwrap().unsigned(), None, "{no_whole}");
    }
    assert_eq!(read("-0").unwrap().signed(), Some(0));
}

#[test]
fn what_is_beyond_a_datatype_is_no_value_of_it() {
    for text in ["1e40", "-1e40", "3.4028236e38", "1e400", "1e99999999999999999999"] {
        assert_eq!(read(text).unwrap().fp32(), None, "{text}");
    }
    assert_eq!(read("3.4028235e38").unwrap().fp32(), Some(f32::MAX));
    assert_eq!(read("1e-400").unwrap().fp32(), Some(0.0));
    assert_eq!(read("1e400").unwrap().fp64(), None);
    assert_eq!(fp16("65504"), Some(65504.0));
    assert_eq!(fp16("65519.999999999999999999999999"), Some(65504.0));
    assert_eq!(fp16("65520"), None);
    assert_eq!(bf16_of("3.3895313892515355e38"), Some(f32::from(bf16::MAX)));
    assert_eq!(bf16_of("3.4e38"), None);
}

#[test]
fn halves_are_rounded_once() {
    // 1 + 2^-11 is in the middle between two FP16; an FP64 loses what is added to it or taken from it.
    assert_eq!(fp16("1.00048828125"), Some(1.0));
    assert_eq!(fp16("1.00048828125000000000000000000000001"), Some(1.000_976_6));
    assert_eq!(fp16("1.00048828124999999999999999999999999"), Some(1.0));
    assert_eq!(fp16("-1.00048828125000000000000000000000001"), Some(-1.000_976_6));
    assert_eq!(fp16("1.00146484375"), Some(1.001_953_1), "ties go to even");
    assert_eq!(fp16("0.1"), Some(0.099_975_586));
    assert_eq!(fp16("5.9604644775390625e-8"), Some(5.960_464_5e-8), "the least");
    assert_eq!(fp16("2.98023223876953125e-8"), Some(0.0));
    assert_eq!(fp16("2.980232238769531250000000000000001e-8"), Some(5.960_464_5e-8));
    assert_eq!(bf16_of("1.00390625"), Some(1.0));
    assert_eq!(bf16_of("1.003906250000000000000000000001"), Some(1.007_812_5));
    assert_eq!(fp16("-0").map(f32::to_bits), Some((-0.0f32).to_bits()));
}

/// A middle between two values as an exact decimal, and texts a little above and below it.
fn around(middle: f64) -> [(String, Ordering); 3] {
    let exact = format!("{middle:.160}");
    let mut below = exact.clone().into_bytes();
    for digit in below.iter_mut().rev().filter(|byte| **byte != b'.') {
        if *digit != b'0' {
            *digit -= 1;
            break;
        }
        *digit = b'9';
    }
    let below = String::from_utf8(below).unwrap();
    let below = below.trim_start_matches('0');
    let below = if below.starts_with('.') { format!("0{below}") } else { below.to_owned() };
    [(format!("{exact}0001"), Ordering::Greater), (exact, Ordering::Equal), (below, Ordering::Less)]
}

proptest! {
    #[test]
    fn every_middle_of_two_fp16_is_rounded_as_its_neighbourhood(bits in 0u16..0x7bff) {
        let (low, high) = (f16::from_bits(bits), f16::from_bits(bits + 1));
        for (text, side) in around(f64::midpoint(low.to_f64(), high.to_f64())) {
            let even = if bits & 1 == 0 { low } else { high };
            let expected = match side { Ordering::Less => low, Ordering::Equal => even, Ordering::Greater => high };
            prop_assert_eq!(read(&text).unwrap().fp16(), Some(expected), "{}", text);
            prop_assert_eq!(read(&format!("-{text}")).unwrap().fp16(), Some(-expected), "{}", text);
        }
    }

    #[test]
    fn every_middle_of_two_bf16_is_rounded_as_its_neighbourhood(bits in 0u16..0x7f7f) {
        let (low, high) = (bf16::from_bits(bits), bf16::from_bits(bits + 1));
        for (text, side) in around(f64::midpoint(low.to_f64(), high.to_f64())) {
            let even = if bits & 1 == 0 { low } else { high };
            let expected = match side { Ordering::Less => low, Ordering::Equal => even, Ordering::Greater => high };
            prop_assert_eq!(read(&text).unwrap().bf16(), Some(expected), "{}", text);
        }
    }

    #[test]
    fn every_fp32_reads_as_the_standard_library_reads_it(text in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?") {
        let number = read(&text).unwrap();
        let expected = text.parse::<f32>().ok().filter(|value| value.is_finite());
        prop_assert_eq!(number.fp32().map(f32::to_bits), expected.map(f32::to_bits));
        let expected = text.parse::<f64>().ok().filter(|value| value.is_finite());
        prop_assert_eq!(number.fp64().map(f64::to_bits), expected.map(f64::to_bits));
    }

    #[test]
    fn every_middle_of_two_fp32_reads_as_the_standard_library_reads_it(bits in 0u32..0x7f7f_ffff, more in "[0-9]{0,3}") {
        let middle = f64::midpoint(f32::from_bits(bits).into(), f32::from_bits(bits + 1).into());
        let text = format!("{middle:?}");
        let text = if text.contains(['.']) && !text.contains('e') { text + &more } else { text };
        prop_assert_eq!(read(&text).unwrap().fp32(), text.parse().ok());
    }

    #[test]
    fn a_text_is_a_number_when_serde_says_so(text in "[-+0-9.eE]{0,12}") {
        prop_assert_eq!(read(&text).is_some(), serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
    }
}
