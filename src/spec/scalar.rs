//! Values of a spec that are written as one word or number: the device and ranks.

use super::model_spec::{StartRank, TargetRank};
use super::run_spec::DeviceSpec;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

const DEVICES: &str = "`auto`, `cpu`, `cuda`, `cuda:1` or `metal`";

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(0) => f.write_str("cuda"),
            DeviceSpec::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceSpec::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = String;

    /// # Errors
    /// The text names no device; the message lists those there are.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(0)),
            "metal" => Ok(DeviceSpec::Metal),
            _ => {
                let index = text.strip_prefix("cuda:").and_then(|index| index.parse().ok());
                index
                    .map(DeviceSpec::Cuda)
                    .ok_or_else(|| format!("expected a device ({DEVICES}), found `{text}`"))
            }
        }
    }
}

impl Serialize for DeviceSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Device;
        impl Visitor<'_> for Device {
            type Value = DeviceSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a device ({DEVICES})")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<DeviceSpec, E> {
                value.parse().map_err(|_| E::invalid_value(Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_str(Device)
    }
}

impl JsonSchema for DeviceSpec {
    fn schema_name() -> Cow<'static, str> {
        "DeviceSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Compute device: auto, cpu, cuda, cuda:1 or metal.",
            "type": "string",
            "pattern": "^(auto|cpu|cuda(:[0-9]+)?|metal)$",
            "examples": ["auto", "cpu", "cuda", "cuda:1", "metal"]
        })
    }
}

impl Serialize for StartRank {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            StartRank::Full => serializer.serialize_str("full"),
            StartRank::Rank(rank) => serializer.serialize_u64(*rank as u64),
        }
    }
}

impl<'de> Deserialize<'de> for StartRank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RankOrFull;
        impl Visitor<'_> for RankOrFull {
            type Value = StartRank;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rank (a whole number such as `32`) or `full`")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<StartRank, E> {
                usize::try_from(value)
                    .map(StartRank::Rank)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<StartRank, E> {
                usize::try_from(value)
                    .map(StartRank::Rank)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<StartRank, E> {
                if value == "full" {
                    Ok(StartRank::Full)
                } else {
                    Err(E::invalid_value(Unexpected::Str(value), &self))
                }
            }
        }
        deserializer.deserialize_any(RankOrFull)
    }
}

impl JsonSchema for StartRank {
    fn schema_name() -> Cow<'static, str> {
        "StartRank".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A rank, or `full`: that of each matrix.",
            "anyOf": [{ "type": "integer", "minimum": 1 }, { "type": "string", "const": "full" }]
        })
    }
}

impl Serialize for TargetRank {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TargetRank::Dense => serializer.serialize_str("dense"),
            TargetRank::Rank(rank) => serializer.serialize_u64(*rank as u64),
        }
    }
}

impl<'de> Deserialize<'de> for TargetRank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RankOrDense;
        impl Visitor<'_> for RankOrDense {
            type Value = TargetRank;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rank (a whole number such as `32`) or `dense`")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<TargetRank, E> {
                usize::try_from(value)
                    .map(TargetRank::Rank)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<TargetRank, E> {
                usize::try_from(value)
                    .map(TargetRank::Rank)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<TargetRank, E> {
                if value == "dense" {
                    Ok(TargetRank::Dense)
                } else {
                    Err(E::invalid_value(Unexpected::Str(value), &self))
                }
            }
        }
        deserializer.deserialize_any(RankOrDense)
    }
}

impl JsonSchema for TargetRank {
    fn schema_name() -> Cow<'static, str> {
        "TargetRank".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Rank of one target, or `dense`.",
            "anyOf": [{ "type": "integer", "minimum": 1 }, { "type": "string", "const": "dense" }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_alike() {
        for text in ["auto", "cpu", "cuda", "cuda:3", "metal"] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
            assert!(wrong.parse::<DeviceSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_first_rank_is_a_number_or_full() {
        let read: Vec<StartRank> = serde_yaml::from_str("[full, 32]").unwrap();
        assert_eq!(read, [StartRank::Full, StartRank::Rank(32)]);
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"["full",32]"#);
        for wrong in ["-1", "dense", "1.5"] {
            assert!(serde_yaml::from_str::<StartRank>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_dense_or_has_a_rank() {
        let read: Vec<TargetRank> = serde_yaml::from_str("[dense, 32]").unwrap();
        assert_eq!(read, [TargetRank::Dense, TargetRank::Rank(32)]);
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"["dense",32]"#);
        for wrong in ["-1", "full", "1.5"] {
            assert!(serde_yaml::from_str::<TargetRank>(wrong).is_err(), "{wrong}");
        }
    }
}
