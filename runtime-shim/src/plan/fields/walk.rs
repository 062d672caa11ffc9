//! Walks the types of the specification: a deserializer that gives every structure all its fields
//! and writes down their names.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::value::Error;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

/// Paths of all fields of `T`.
pub(super) fn fields<T: DeserializeOwned>() -> BTreeSet<String> {
    let seen = RefCell::default();
    let value = T::deserialize(Walk { path: String::new(), seen: &seen });
    value.map(drop).expect("the type takes what it asks for");
    seen.into_inner()
}

/// A value that is somewhere.
struct Walk<'a> {
    path: String,
    seen: &'a RefCell<BTreeSet<String>>,
}

impl Walk<'_> {
    fn at(&self, path: String) -> Self {
        Self { path, seen: self.seen }
    }
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Error;

    /// A text that is also a list of CPUs.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("0")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u8(0)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u8(0)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u8(0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u8(0)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u8(0)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u8(0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Element(Some(self)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Entry(Some(self)))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Structure { walk: self, fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(variants[0].into_deserializer())
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

/// One element. One that takes no such text is left out: its fields, if any, have been seen.
struct Element<'a>(Option<Walk<'a>>);

impl<'de> SeqAccess<'de> for Element<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let element =
            self.0.take().map(|walk| seed.deserialize(walk.at(format!("{}[]", walk.path))));
        Ok(element.and_then(Result::ok))
    }
}

/// One entry, whose key does not matter.
struct Entry<'a>(Option<Walk<'a>>);

impl<'de> MapAccess<'de> for Entry<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.0.as_ref().map(|_| seed.deserialize("key".into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let walk = self.0.take().expect("a value follows a key");
        seed.deserialize(walk.at(format!("{}{{}}", walk.path)))
    }
}

/// All fields of a structure, one after the other.
struct Structure<'a> {
    walk: Walk<'a>,
    fields: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Structure<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.fields.first().map(|name| seed.deserialize((*name).into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, rest) = self.fields.split_first().expect("a value follows a key");
        self.fields = rest;
        let path = match self.walk.path.as_str() {
            "" => (*name).to_owned(),
            outer => format!("{outer}.{name}"),
        };
        self.walk.seen.borrow_mut().insert(path.clone());
        seed.deserialize(self.walk.at(path))
    }
}
