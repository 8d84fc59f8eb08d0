//! The claims of a token as `google.protobuf.Struct`, as the Workload API returns them.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Map;

/// `claims` as a Struct. Numbers become doubles: the type has no others.
#[must_use]
pub fn to_wire(claims: Map<String, serde_json::Value>) -> Struct {
    let fields = claims.into_iter().map(|(name, one)| (name, value(one)));
    Struct {
        fields: fields.collect(),
    }
}

/// As deep as the parser lets JSON be (128 levels).
fn value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(yes) => Kind::BoolValue(yes),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(all) => Kind::ListValue(ListValue {
            values: all.into_iter().map(value).collect(),
        }),
        serde_json::Value::Object(map) => Kind::StructValue(to_wire(map)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::generated::workload::ValidateJwtsvidResponse;
    use crate::json::to_value;

    #[test]
    fn claims_are_the_same_json_on_the_wire() {
        let claims = json!({
            "sub": "spiffe://example.org/w", "aud": ["a", "b"], "exp": 1_900_000_000,
            "deep": {"list": [null, true, 1.5, {"x": ""}]}, "none": null,
        });
        let serde_json::Value::Object(map) = claims.clone() else {
            panic!("an object");
        };
        let message = ValidateJwtsvidResponse {
            spiffe_id: String::new(),
            claims: Some(to_wire(map)),
        };
        assert_eq!(to_value(&message).unwrap()["claims"], claims);
    }
}
