//! Turns a parsed YAML value into a typed one and reports what does not fit with its key path.
//!
//! serde_yaml's own deserializer describes a mistake as one line of text. This one keeps what serde
//! knows about it (the unknown name, the names there are, the type expected), so that messages can
//! suggest a name and point at the right place, and it reads enums as people write them: `dense`,
//! `{low_rank: {rank: 64}}`.

use super::key_path::Segment;
use super::problem::Problem;
use super::refusal::{Reason, Refusal, found_in_words};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor,
    value::StrDeserializer,
};
use serde_yaml::{Mapping, Value};

/// Reads a value of type `T`.
///
/// # Errors
/// The first problem met: an unknown or missing key or choice, or a value of the wrong type.
pub(crate) fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, Problem> {
    T::deserialize(Node(value)).map_err(Refusal::into_problem)
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => Unexpected::Unsigned(value),
            (None, Some(value)) => Unexpected::Signed(value),
            (None, None) => Unexpected::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Unexpected::Str(text),
        Value::Sequence(_) => Unexpected::Seq,
        Value::Mapping(_) => Unexpected::Map,
        Value::Tagged(_) => Unexpected::Other("a YAML tag"),
    }
}

/// A value that is being read.
#[derive(Clone, Copy)]
struct Node<'a>(&'a Value);

impl<'de> de::Deserializer<'de> for Node<'de> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(_) => match unexpected(self.0) {
                Unexpected::Unsigned(value) => visitor.visit_u64(value),
                Unexpected::Signed(value) => visitor.visit_i64(value),
                Unexpected::Float(value) => visitor.visit_f64(value),
                _ => unreachable!("a number is one of these three"),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Sequence(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Mapping(mapping) => visitor.visit_map(Entries::new(mapping)),
            Value::Tagged(tagged) => {
                let name = tagged.tag.to_string();
                let name = name.trim_start_matches('!');
                Err(Refusal::other(format!(
                    "YAML tags such as `!{name}` are not used here; write `{{{name}: ...}}`"
                )))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    /// A key with nothing after it, `eval:`, is an empty block.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::Null => visitor.visit_map(Entries { entries: None, value: None }),
            Value::Mapping(_) | Value::Tagged(_) => self.deserialize_any(visitor),
            other => Err(de::Error::invalid_type(unexpected(other), &visitor)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        choices: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let expected = || {
            format!(
                "one of {}",
                choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(", ")
            )
        };
        match self.0 {
            Value::String(choice) => visitor.visit_enum(Choice { name: choice, settings: None }),
            Value::Mapping(mapping) => match mapping.iter().collect::<Vec<_>>().as_slice() {
                [(Value::String(choice), settings)] => {
                    visitor.visit_enum(Choice { name: choice, settings: Some(settings) })
                }
                [] => Err(Refusal::other(format!("an empty mapping; write {}", expected()))),
                [_] => Err(Refusal::other(format!("expected {}", expected()))),
                several => {
                    let names = several
                        .iter()
                        .filter_map(|(key, _)| key.as_str())
                        .collect::<Vec<_>>()
                        .join("` and `");
                    Err(Refusal::other(format!(
                        "`{names}` exclude each other; keep {}",
                        expected()
                    )))
                }
            },
            Value::Tagged(_) => self.deserialize_any(visitor),
            other => Err(Refusal::new(Reason::WrongType {
                expected: expected(),
                found: found_in_words(unexpected(other)),
                hint: String::new(),
            })),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refusal> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(Node(item))
            .map(Some)
            .map_err(|refusal| refusal.under(Segment::Index(index)))
    }
}

struct Entries<'a> {
    /// None for a block that was left empty.
    entries: Option<serde_yaml::mapping::Iter<'a>>,
    value: Option<(&'a str, &'a Value)>,
}

impl<'a> Entries<'a> {
    fn new(mapping: &'a Mapping) -> Self {
        Entries { entries: Some(mapping.iter()), value: None }
    }
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Refusal> {
        let Some((key, value)) = self.entries.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let Value::String(key) = key else {
            return Err(Refusal::other(format!(
                "a key is {}; keys are names",
                found_in_words(unexpected(key))
            )));
        };
        self.value = Some((key, value));
        let name: StrDeserializer<'_, Refusal> = key.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|refusal| match refusal.reason {
            Reason::UnknownChoice { choice, known } => {
                Refusal::new(Reason::UnknownKey { key: choice, known })
            }
            _ => refusal,
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let (key, value) = self
            .value
            .take()
            .ok_or_else(|| Refusal::other("a value was asked for before its key"))?;
        seed.deserialize(Node(value)).map_err(|refusal| refusal.under(Segment::Key(key.to_owned())))
    }
}

/// `name`, or `{name: settings}`.
#[derive(Clone, Copy)]
struct Choice<'a> {
    name: &'a str,
    settings: Option<&'a Value>,
}

impl<'de> de::EnumAccess<'de> for Choice<'de> {
    type Error = Refusal;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Refusal> {
        let name: StrDeserializer<'_, Refusal> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> Choice<'de> {
    fn settings(self) -> Result<Node<'de>, Refusal> {
        self.settings.map(Node).ok_or_else(|| self.needs_settings())
    }

    fn needs_settings(self) -> Refusal {
        let name = self.name;
        Refusal::other(format!(
            "`{name}` needs settings; write `{{{name}: ...}}`, or `{{{name}: {{}}}}` where all \
             have defaults"
        ))
    }

    fn named(self) -> Segment {
        Segment::Key(self.name.to_owned())
    }
}

impl<'de> de::VariantAccess<'de> for Choice<'de> {
    type Error = Refusal;

    fn unit_variant(self) -> Result<(), Refusal> {
        match self.settings {
            None => Ok(()),
            Some(_) => {
                Err(Refusal::other(format!("`{0}` takes no settings; write just `{0}`", self.name)))
            }
        }
    }

    /// A bare word, `constant`, is the choice with an empty block where that is enough.
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Refusal> {
        if self.settings.is_none() {
            return seed.deserialize(Node(&Value::Null)).map_err(|_| self.needs_settings());
        }
        seed.deserialize(self.settings()?).map_err(|refusal| refusal.under(self.named()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Refusal> {
        de::Deserializer::deserialize_any(self.settings()?, visitor)
            .map_err(|refusal| refusal.under(self.named()))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        de::Deserializer::deserialize_struct(self.settings()?, "", keys, visitor)
            .map_err(|refusal| refusal.under(self.named()))
    }
}
