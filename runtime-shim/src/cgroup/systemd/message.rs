//! Messages of D-Bus as far as systemd's manager is asked anything (D-Bus Specification, "Message
//! Protocol"): strings, numbers, variants of them, little-endian. A library for all of D-Bus would
//! bring an executor of its own, for six calls.
//!
//! Trust: messages come from systemd, which is root. What they say is bounded and checked all the
//! same.

use super::SystemdError;
use super::property::{Property, Value};

/// Longest message that is read. The specification allows 128 MiB; the manager's are small.
const LENGTH_MAX: usize = 1 << 20;
/// Bytes of a header before its fields, with the length of those.
pub(super) const FIXED: usize = 16;
/// `l`: little-endian.
const LITTLE: u8 = b'l';
const VERSION: u8 = 1;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Return,
    Error,
    Signal,
    /// One that the specification does not know: to be ignored.
    Other,
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            1 => Self::Call,
            2 => Self::Return,
            3 => Self::Error,
            4 => Self::Signal,
            _ => Self::Other,
        }
    }
}

/// A call of a method.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    /// Signature of `body`.
    pub signature: &'a str,
    pub body: &'a [u8],
}

impl Call<'_> {
    /// The bytes of the message with the number `serial`.
    pub fn message(&self, serial: u32) -> Vec<u8> {
        let mut fields = Writer::default();
        for (code, kind, text) in
            [(1, "o", self.path), (2, "s", self.interface), (3, "s", self.member)]
        {
            fields.field(code, kind);
            fields.string(text);
        }
        if !self.signature.is_empty() {
            fields.field(8, "g");
            fields.signature(self.signature);
        }
        let mut message = Writer(vec![LITTLE, 1, 0, VERSION]);
        message.u32(length(self.body));
        message.u32(serial);
        message.u32(length(&fields.0));
        message.0.extend_from_slice(&fields.0);
        message.align(8);
        message.0.extend_from_slice(self.body);
        message.0
    }
}

/// Nothing that is written here is longer than a few hundred bytes.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Writes values behind one another, each aligned to its size from the first byte.
#[derive(Debug, Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// Begins a field of a header.
    fn field(&mut self, code: u8, signature: &str) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
    }

    pub fn u32(&mut self, n: u32) {
        self.align(4);
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    pub fn u64(&mut self, n: u64) {
        self.align(8);
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    pub fn boolean(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// A string or a path of an object.
    pub fn string(&mut self, text: &str) {
        self.u32(length(text.as_bytes()));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    /// An array of what `fill` writes, whose elements are aligned to `to`.
    pub fn array(&mut self, to: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        // The padding before the first element does not count.
        self.align(to);
        let begin = self.0.len();
        fill(self);
        let filled = length(&self.0[begin..]);
        self.0[at..at + 4].copy_from_slice(&filled.to_le_bytes());
    }

    /// `a(sv)`.
    pub fn properties(&mut self, properties: &[Property]) {
        self.array(8, |array| {
            for Property { name, value } in properties {
                array.align(8);
                array.string(name);
                array.variant(value);
            }
        });
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.boolean(*value),
            Value::Int32(n) => self.u32(n.cast_unsigned()),
            Value::Uint32(n) => self.u32(*n),
            Value::Int64(n) => self.u64(n.cast_unsigned()),
            Value::Uint64(n) => self.u64(*n),
            Value::Text(text) => self.string(text),
            Value::Bytes(bytes) => self.array(1, |array| array.0.extend_from_slice(bytes)),
            Value::Uint32s(numbers) => {
                self.array(4, |array| numbers.iter().for_each(|n| array.u32(*n)));
            }
            Value::Texts(texts) => {
                self.array(4, |array| texts.iter().for_each(|text| array.string(text)));
            }
        }
    }
}

/// A message that has come.
#[derive(Debug)]
pub(super) struct Message {
    pub kind: Kind,
    /// Of a reply: the number of the call.
    pub reply_to: Option<u32>,
    /// Of a signal: its name.
    pub member: String,
    /// Of an error: its name.
    pub error: String,
    pub body: Reader,
}

/// Bytes of the message that begins with `fixed`.
pub(super) fn whole_length(fixed: &[u8; FIXED]) -> Result<usize, SystemdError> {
    if fixed[0] != LITTLE || fixed[3] != VERSION {
        return Err(SystemdError::Malformed("a header"));
    }
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| fixed[at + i])) as usize;
    let (body, fields) = (number(4), number(12));
    match body.max(fields) > LENGTH_MAX {
        true => Err(SystemdError::Malformed("a length")),
        false => Ok((FIXED + fields).next_multiple_of(8) + body),
    }
}

impl Message {
    /// Reads a message of which nothing is missing.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, SystemdError> {
        let kind = Kind::of(bytes.get(1).copied().unwrap_or_default());
        let mut reader = Reader { bytes, at: 4 };
        let body_length = reader.u32()? as usize;
        let _serial = reader.u32()?;
        let end = (reader.u32()? as usize).saturating_add(FIXED);
        let mut message = Self {
            kind,
            reply_to: None,
            member: String::new(),
            error: String::new(),
            body: Reader::default(),
        };
        while reader.at < end {
            message.read_field(&mut reader)?;
        }
        reader.align(8);
        let body = reader.bytes.get(reader.at..).filter(|body| body.len() == body_length);
        let body = body.ok_or(SystemdError::Malformed("a length"))?;
        message.body = Reader { bytes: body.to_vec(), at: 0 };
        Ok(message)
    }

    fn read_field(&mut self, reader: &mut Reader) -> Result<(), SystemdError> {
        reader.align(8);
        let code = reader.byte()?;
        let kind = reader.signature()?;
        match (code, kind.as_str()) {
            (3, "s") => self.member = reader.string()?,
            (4, "s") => self.error = reader.string()?,
            (5, "u") => self.reply_to = Some(reader.u32()?),
            (_, "s" | "o") => drop(reader.string()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(SystemdError::Malformed("a field of a header")),
        }
        Ok(())
    }
}

/// Reads values behind one another.
#[derive(Debug, Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

impl Reader {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&[u8], SystemdError> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(SystemdError::Malformed("a message that is too short"))?;
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, SystemdError> {
        Ok(self.take(1)?[0])
    }

    pub fn u32(&mut self) -> Result<u32, SystemdError> {
        self.align(4);
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A string or a path of an object.
    pub fn string(&mut self) -> Result<String, SystemdError> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Result<String, SystemdError> {
        let length = self.byte()?.into();
        self.text(length)
    }

    /// A variant that must hold a string.
    pub fn variant_string(&mut self) -> Result<String, SystemdError> {
        match self.signature()?.as_str() {
            "s" => self.string(),
            _ => Err(SystemdError::Malformed("a value that is no string")),
        }
    }

    fn text(&mut self, length: usize) -> Result<String, SystemdError> {
        let text = self.take(length)?.to_vec();
        match self.byte()? {
            0 => String::from_utf8(text).map_err(|_| SystemdError::Malformed("a string")),
            _ => Err(SystemdError::Malformed("a string")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Written by hand from the specification.
    #[test]
    fn call_has_the_bytes_of_the_specification() {
        let mut body = Writer::default();
        body.string("a.scope");
        let call =
            Call { path: "/o", interface: "i.f", member: "Get", signature: "s", body: &body.0 };
        let expected: &[u8] = b"l\x01\x00\x01\x0c\x00\x00\x00\x07\x00\x00\x00\x37\x00\x00\x00\
            \x01\x01o\x00\x02\x00\x00\x00/o\x00\x00\x00\x00\x00\x00\
            \x02\x01s\x00\x03\x00\x00\x00i.f\x00\x00\x00\x00\x00\
            \x03\x01s\x00\x03\x00\x00\x00Get\x00\x00\x00\x00\x00\
            \x08\x01g\x00\x01s\x00\x00\
            \x07\x00\x00\x00a.scope\x00";
        assert_eq!(call.message(7).escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn properties_are_aligned_variants() {
        let mut body = Writer::default();
        body.properties(&[
            Property::new("A", Value::Bool(true)),
            Property::new("Bc", Value::Uint64(1)),
            Property::new("P", Value::Uint32s(vec![5])),
            Property::new("C", Value::Bytes(vec![3, 1])),
        ]);
        let expected: &[u8] = b"\x52\x00\x00\x00\x00\x00\x00\x00\
            \x01\x00\x00\x00A\x00\x01b\x00\x00\x00\x00\x01\x00\x00\x00\
            \x02\x00\x00\x00Bc\x00\x01t\x00\x00\x00\x00\x00\x00\x00\
            \x01\x00\x00\x00\x00\x00\x00\x00\
            \x01\x00\x00\x00P\x00\x02au\x00\x00\x00\x04\x00\x00\x00\x05\x00\x00\x00\
            \x00\x00\x00\x00\
            \x01\x00\x00\x00C\x00\x02ay\x00\x00\x00\x02\x00\x00\x00\x03\x01";
        assert_eq!(body.0.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    fn answer(kind: u8, member: &str, body: &[u8]) -> Vec<u8> {
        let call = Call { path: "/o", interface: "i", member, signature: "s", body };
        let mut bytes = call.message(1);
        bytes[1] = kind;
        bytes
    }

    #[test]
    fn message_is_read_back() {
        let mut body = Writer::default();
        body.u32(9);
        body.string("done");
        let bytes = answer(4, "JobRemoved", &body.0);
        let fixed = bytes[..FIXED].try_into().unwrap();
        assert_eq!(whole_length(&fixed).unwrap(), bytes.len());
        let mut message = Message::parse(bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Signal, "JobRemoved"));
        assert_eq!(message.body.u32().unwrap(), 9);
        assert_eq!(message.body.string().unwrap(), "done");
        assert!(message.body.string().is_err());
    }

    #[test]
    fn message_that_is_cut_or_too_long_is_refused() {
        let mut body = Writer::default();
        body.string("x");
        let whole = answer(2, "m", &body.0);
        for length in 0..whole.len() {
            assert!(Message::parse(whole[..length].to_vec()).is_err(), "{length}");
        }
        let mut fixed: [u8; FIXED] = whole[..FIXED].try_into().unwrap();
        fixed[7] = 0x7f;
        assert!(whole_length(&fixed).is_err());
        fixed[0] = b'B';
        assert!(whole_length(&fixed).is_err());
    }

    proptest! {
        #[test]
        fn no_message_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(mut message) = Message::parse(bytes) {
                let _ = message.body.string();
                let _ = message.body.variant_string();
            }
        }
    }
}
