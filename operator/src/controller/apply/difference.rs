//! Whether a live object already holds everything that is desired.
//!
//! The API server adds defaults, and other managers their own fields: both are left alone, as with server-side apply itself.
//! Invariant: what compares as covered would not be changed by applying it again. (A field that is no longer desired is noticed
//! by the annotation with the hash of what was applied, which is part of what is desired.)

use serde_json::{Map, Value};

/// Fields whose texts are quantities, which the API server rewrites: "1000m" becomes "1".
const QUANTITY_FIELDS: [&str; 4] = ["limits", "requests", "sizeLimit", "divisor"];
/// What tells the items of a list apart, by falling precedence.
const ITEM_KEYS: [&str; 5] = ["mountPath", "containerPort", "uid", "port", "name"];

/// True when `live` holds each value of `desired`.
pub fn covers(live: &Value, desired: &Value) -> bool {
    is_covered(Some(live), desired, false)
}

fn is_covered(live: Option<&Value>, desired: &Value, is_quantity: bool) -> bool {
    let Some(live) = live else { return is_empty(desired) };
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => object_is_covered(live, desired, is_quantity),
        (Value::Array(live), Value::Array(desired)) => list_is_covered(live, desired),
        (Value::String(live), Value::String(desired)) if is_quantity => {
            live == desired || quantity(live).is_some_and(|value| Some(value) == quantity(desired))
        }
        (live, desired) => live == desired,
    }
}

fn object_is_covered(live: &Map<String, Value>, desired: &Map<String, Value>, is_quantity: bool) -> bool {
    desired.iter().all(|(key, value)| {
        let is_quantity = is_quantity || QUANTITY_FIELDS.contains(&key.as_str());
        is_covered(live.get(key), value, is_quantity)
    })
}

/// Items with a key are looked up by it; other lists must be equal in length and order.
fn list_is_covered(live: &[Value], desired: &[Value]) -> bool {
    let key = ITEM_KEYS.into_iter().find(|key| desired.iter().all(|item| item.get(key).is_some()));
    match key {
        Some(key) if !desired.is_empty() => desired.iter().all(|item| {
            let same = live.iter().find(|candidate| candidate.get(key) == item.get(key));
            same.is_some_and(|same| is_covered(Some(same), item, false))
        }),
        _ => {
            live.len() == desired.len()
                && live.iter().zip(desired).all(|(live, item)| is_covered(Some(live), item, false))
        }
    }
}

/// What the API server leaves out when it stores an object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Numerator over 10^9 of a Kubernetes quantity; `None` for a text that is none, or too large to tell.
fn quantity(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 1_000_000_000_000,
        "M" => 10i128.pow(15),
        "G" => 10i128.pow(18),
        "T" => 10i128.pow(21),
        "P" => 10i128.pow(24),
        "E" => 10i128.pow(27),
        "Ki" => 1_000_000_000 << 10,
        "Mi" => 1_000_000_000 << 20,
        "Gi" => 1_000_000_000 << 30,
        "Ti" => 1_000_000_000 << 40,
        "Pi" => 1_000_000_000 << 50,
        "Ei" => 1_000_000_000 << 60,
        exponent => {
            10i128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse::<u32>().ok()?)?.checked_mul(1_000_000_000)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    digits.checked_mul(scale)?.checked_div(divisor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_and_other_managers_fields_are_left_alone() {
        let desired = json!({"spec": {"ports": [{"port": 80, "name": "http"}], "selector": {"a": "b"}}});
        let live = json!({"spec": {"clusterIP": "10.0.0.1", "selector": {"a": "b"},
            "ports": [{"port": 443}, {"port": 80, "name": "http", "protocol": "TCP", "targetPort": 80}]}, "status": {}});
        assert!(covers(&live, &desired));
    }

    #[test]
    fn a_changed_or_missing_value_is_a_difference() {
        let desired = json!({"spec": {"replicas": 2, "env": [{"name": "A", "value": "1"}], "args": ["serve", "x"]}});
        for live in [
            json!({"spec": {"replicas": 3, "env": [{"name": "A", "value": "1"}], "args": ["serve", "x"]}}),
            json!({"spec": {"replicas": 2, "env": [{"name": "A", "value": "2"}], "args": ["serve", "x"]}}),
            json!({"spec": {"replicas": 2, "env": [], "args": ["serve", "x"]}}),
            json!({"spec": {"replicas": 2, "env": [{"name": "A", "value": "1"}], "args": ["serve"]}}),
            json!({"spec": {"replicas": 2, "env": [{"name": "A", "value": "1"}], "args": ["x", "serve"]}}),
            json!({"spec": {"env": [{"name": "A", "value": "1"}], "args": ["serve", "x"]}}),
        ] {
            assert!(!covers(&live, &desired), "{live}");
        }
    }

    #[test]
    fn an_empty_text_is_what_the_api_server_leaves_out() {
        assert!(covers(&json!({"env": [{"name": "A"}]}), &json!({"env": [{"name": "A", "value": ""}]})));
        assert!(covers(&json!({}), &json!({"emptyDir": {}, "args": [], "x": null})));
        assert!(!covers(&json!({}), &json!({"automount": false})));
    }

    #[test]
    fn quantities_are_compared_by_value_and_other_texts_are_not() {
        for (live, desired) in [("1", "1000m"), ("500m", "0.5"), ("1Gi", "1024Mi"), ("1k", "1e3"), ("2G", "2000M")] {
            assert!(covers(&json!({"limits": {"x": live}}), &json!({"limits": {"x": desired}})), "{live} {desired}");
            assert!(!covers(&json!({"value": live}), &json!({"value": desired})), "{live} {desired}");
        }
        assert!(!covers(&json!({"limits": {"x": "1"}}), &json!({"limits": {"x": "1Gi"}})));
        assert!(!covers(&json!({"limits": {"x": "a"}}), &json!({"limits": {"x": "b"}})));
    }
}
