//! Lines and columns of keys in a YAML text, for block and flow style alike.
//!
//! serde_yaml tells the place only of an error. So to find a key, the text is walked again and the
//! walk fails on purpose when it stands on that key: the place of that error is the place of the
//! key, by the parser's own count.

use super::key_path::{KeyPath, Segment};
use super::problem::PointsAt;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use std::cell::RefCell;
use std::fmt;

/// A place in a text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub line: usize,
    pub column: usize,
}

impl From<serde_yaml::Location> for Position {
    fn from(location: serde_yaml::Location) -> Self {
        Position { line: location.line(), column: location.column() }
    }
}

/// The place of a key, or of its value; `None` if the text does not have the key.
pub(crate) fn locate(text: &str, path: &KeyPath, points_at: PointsAt) -> Option<Position> {
    let found = RefCell::new(None);
    walk(text, Walk { aim: Aim::Path(&path.0, points_at), way: KeyPath::default(), found: &found })
        .filter(|_| found.borrow().is_some())
}

/// The first key that a mapping holds twice, and the place of its second appearance.
pub(crate) fn duplicate_key(text: &str) -> Option<(KeyPath, Position)> {
    let found = RefCell::new(None);
    let place = walk(text, Walk { aim: Aim::Duplicate, way: KeyPath::default(), found: &found })?;
    found.into_inner().map(|path| (path, place))
}

/// Where the walk failed.
fn walk(text: &str, walk: Walk<'_>) -> Option<Position> {
    walk.deserialize(serde_yaml::Deserializer::from_str(text)).err()?.location().map(Position::from)
}

#[derive(Clone, Copy)]
enum Aim<'a> {
    /// The key or value that many steps below the value at hand.
    Path(&'a [Segment], PointsAt),
    /// A key that was there before.
    Duplicate,
    /// Nothing: pass over.
    Nothing,
}

/// A walk over the value at hand.
struct Walk<'a> {
    aim: Aim<'a>,
    way: KeyPath,
    /// Set when the walk fails on purpose.
    found: &'a RefCell<Option<KeyPath>>,
}

impl<'a> Walk<'a> {
    fn arrived<E: Error>(&self) -> Result<(), E> {
        match self.aim {
            Aim::Path([], _) => Err(self.stop(self.way.clone())),
            _ => Ok(()),
        }
    }

    fn stop<E: Error>(&self, path: KeyPath) -> E {
        *self.found.borrow_mut() = Some(path);
        E::custom("found")
    }

    /// The walk over the part that `segment` leads to.
    fn below(&self, segment: Segment) -> Walk<'a> {
        let aim = match self.aim {
            Aim::Path([first, rest @ ..], points_at) if *first == segment => {
                Aim::Path(rest, points_at)
            }
            Aim::Duplicate => Aim::Duplicate,
            _ => Aim::Nothing,
        };
        let mut way = self.way.clone();
        way.0.push(segment);
        Walk { aim, way, found: self.found }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.arrived()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.arrived()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.arrived()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.arrived()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.arrived()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.arrived()
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.arrived()
    }

    /// A tagged value, `!tag value`: specs use none, so nothing below it is looked for.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        self.arrived()?;
        let (_, value) = tagged.variant::<IgnoredAny>()?;
        value.newtype_variant::<IgnoredAny>().map(drop)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.arrived()?;
        let mut index = 0;
        while items.next_element_seed(self.below(Segment::Index(index)))?.is_some() {
            index += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.arrived()?;
        let mut keys = Vec::new();
        while let Some(key) = entries.next_key_seed(Key { walk: &self, earlier: &keys })? {
            match key {
                Some(key) => {
                    entries.next_value_seed(self.below(Segment::Key(key.clone())))?;
                    keys.push(key);
                }
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Reads one key of a mapping; `None` if it is not a text.
struct Key<'k, 'a> {
    walk: &'k Walk<'a>,
    earlier: &'k [String],
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Option<String>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_, '_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<String>, E> {
        let is_aim = match self.walk.aim {
            Aim::Path([Segment::Key(wanted)], PointsAt::Key) => wanted == key,
            Aim::Duplicate => self.earlier.iter().any(|earlier| earlier == key),
            _ => false,
        };
        if is_aim {
            Err(self.walk.stop(self.walk.way.with_key(key)))
        } else {
            Ok(Some(key.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
name: x
model: {n_layer: 4,
        weights: {low_rank: {rank: 64}}}
data:
  source:
    text:
      train:
        - a.txt
        - 'b: c.txt'
";

    #[test]
    fn keys_and_values_are_found_in_block_and_flow_style() {
        let place = |path: &str, points_at| {
            locate(TEXT, &KeyPath::of_keys(path), points_at).map(|at| (at.line, at.column))
        };
        assert_eq!(place("name", PointsAt::Key), Some((2, 1)));
        assert_eq!(place("name", PointsAt::Value), Some((2, 7)));
        assert_eq!(place("model.n_layer", PointsAt::Key), Some((3, 9)));
        assert_eq!(place("model.n_layer", PointsAt::Value), Some((3, 18)));
        assert_eq!(place("model.weights.low_rank.rank", PointsAt::Key), Some((4, 30)));
        assert_eq!(place("model.weights.low_rank.rank", PointsAt::Value), Some((4, 36)));
        assert_eq!(place("data.source.text.train", PointsAt::Key), Some((8, 7)));
        assert_eq!(place("model.n_head", PointsAt::Key), None);
        assert_eq!(place("name.first", PointsAt::Value), None);
    }

    #[test]
    fn items_of_a_list_are_found() {
        let mut path = KeyPath::of_keys("data.source.text.train");
        path.0.push(Segment::Index(1));
        assert_eq!(locate(TEXT, &path, PointsAt::Value), Some(Position { line: 10, column: 11 }));
    }

    #[test]
    fn the_second_of_two_equal_keys_is_reported() {
        assert_eq!(duplicate_key(TEXT), None);
        let (path, place) = duplicate_key("a: {b: 1, c: 2}\nd:\n  e: 1\n  f: 2\n  e: 3\n")
            .expect("e is there twice");
        assert_eq!((path.to_string().as_str(), place), ("d.e", Position { line: 5, column: 3 }));
        assert_eq!(
            duplicate_key("a: {b: 1}\nc: {b: 1}\n"),
            None,
            "the same key in two mappings is no duplicate"
        );
    }
}
