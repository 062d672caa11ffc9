//! Messages of D-Bus (D-Bus Specification, "Message Protocol"), little-endian, by the wire format of
//! [`zbus`]. Nothing else of it is used: its connections are asynchronous, and ask for more than the
//! manager's socket has.
//!
//! Trust: messages come from systemd, which is root. What they say is bounded and checked all the
//! same.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{Endian, ObjectPath, Signature, Type, Variant, to_bytes};

use super::SystemdError;

/// Longest message that is read. The specification allows 128 MiB; the manager's are small.
const LENGTH_MAX: usize = 1 << 20;
/// Bytes of a header before its fields, with the length of those.
pub(super) const FIXED: usize = 16;
/// `l`: little-endian.
const LITTLE: u8 = b'l';
const VERSION: u8 = 1;
/// A header and what follows it are aligned to this.
const ALIGNMENT: usize = 8;

/// The kind of a call.
const CALL: u8 = 1;

// Fields of a header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const SIGNATURE: u8 = 8;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Return,
    Error,
    Signal,
    /// A call, which nobody makes here, or one that the specification does not know: to be ignored.
    Other,
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            2 => Self::Return,
            3 => Self::Error,
            4 => Self::Signal,
            _ => Self::Other,
        }
    }
}

/// Byte order, kind, flags, version, length of the body, serial number, and fields of type `F`.
type Header<F> = (u8, u8, u8, u8, u32, u32, F);

/// A call of a method with the arguments `body`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a, B> {
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    pub body: B,
}

impl<B: Serialize + Type> Call<'_, B> {
    /// The bytes of the message with the number `serial`.
    pub fn message(&self, serial: u32) -> Result<Vec<u8>, SystemdError> {
        let body = to_bytes(context(), &self.body).map_err(SystemdError::Unsent)?;
        let path = ObjectPath::try_from(self.path).map_err(SystemdError::Unsent)?;
        let fields = vec![
            (PATH, Field::Value(Variant::from(path))),
            (INTERFACE, Field::Value(Variant::from(self.interface))),
            (MEMBER, Field::Value(Variant::from(self.member))),
            (SIGNATURE, Field::Signature(B::SIGNATURE.to_string_no_parens())),
        ];
        // Of a few hundred bytes.
        let length = u32::try_from(body.bytes().len()).unwrap_or(u32::MAX);
        let header: Header<_> = (LITTLE, CALL, 0, VERSION, length, serial, fields);
        let header = to_bytes(context(), &header).map_err(SystemdError::Unsent)?;
        let mut message = header.bytes().to_vec();
        message.resize(message.len().next_multiple_of(ALIGNMENT), 0);
        message.extend_from_slice(body.bytes());
        Ok(message)
    }
}

/// A value of a field. The signature of a body has no parentheses, which that of a value would
/// have.
enum Field<'a> {
    Value(Variant<'a>),
    Signature(String),
}

impl Type for Field<'_> {
    const SIGNATURE: &'static Signature = &Signature::Variant;
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Signature(text) => {
                let mut variant = serializer.serialize_struct("Variant", 2)?;
                variant.serialize_field("signature", &Signature::Signature)?;
                variant.serialize_field("value", text)?;
                variant.end()
            }
        }
    }
}

fn context() -> Context {
    Context::new(Endian::Little, 0)
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
    body: Data<'static, 'static>,
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
        false => Ok((FIXED + fields).next_multiple_of(ALIGNMENT) + body),
    }
}

impl Message {
    /// Reads a message of which nothing is missing.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, SystemdError> {
        let data = Data::new(bytes, context());
        let (header, end): (Header<Vec<(u8, Variant<'_>)>>, _) =
            data.deserialize().map_err(|_| SystemdError::Malformed("a header"))?;
        let (_, kind, _, _, length, _, fields) = header;
        let mut message = Self {
            kind: Kind::of(kind),
            reply_to: None,
            member: String::new(),
            error: String::new(),
            body: Data::new(vec![], context()),
        };
        for (code, value) in fields {
            match (code, value) {
                (MEMBER, Variant::Str(name)) => message.member = name.to_string(),
                (ERROR_NAME, Variant::Str(name)) => message.error = name.to_string(),
                (REPLY_SERIAL, Variant::U32(serial)) => message.reply_to = Some(serial),
                (MEMBER | ERROR_NAME | REPLY_SERIAL, _) => {
                    return Err(SystemdError::Malformed("a field of a header"));
                }
                _ => {}
            }
        }
        let body = data.bytes().get(end.next_multiple_of(ALIGNMENT)..);
        let body = body.filter(|body| body.len() == length as usize);
        let body = body.ok_or(SystemdError::Malformed("a length"))?;
        message.body = Data::new(body.to_vec(), context());
        Ok(message)
    }

    /// The first values of the body.
    pub fn body<'d, T: Deserialize<'d> + Type>(&'d self) -> Result<T, SystemdError> {
        let (values, _) = self.body.deserialize().map_err(|_| SystemdError::Malformed("a body"))?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cgroup::systemd::property::{Property, Value, as_sent};

    /// Written by hand from the specification.
    #[test]
    fn call_has_the_bytes_of_the_specification() {
        let call = Call { path: "/o", interface: "i.f", member: "Get", body: ("a.scope",) };
        let expected: &[u8] = b"l\x01\x00\x01\x0c\x00\x00\x00\x07\x00\x00\x00\x37\x00\x00\x00\
            \x01\x01o\x00\x02\x00\x00\x00/o\x00\x00\x00\x00\x00\x00\
            \x02\x01s\x00\x03\x00\x00\x00i.f\x00\x00\x00\x00\x00\
            \x03\x01s\x00\x03\x00\x00\x00Get\x00\x00\x00\x00\x00\
            \x08\x01g\x00\x01s\x00\x00\
            \x07\x00\x00\x00a.scope\x00";
        let message = call.message(7).unwrap();
        assert_eq!(message.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn properties_are_aligned_variants() {
        let properties = [
            Property::new("A", Value::Bool(true)),
            Property::new("Bc", Value::Uint64(1)),
            Property::new("P", Value::Uint32s(vec![5])),
            Property::new("C", Value::Bytes(vec![3, 1])),
        ];
        let body = (as_sent(&properties),);
        let message = Call { path: "/o", interface: "i.f", member: "M", body }.message(1).unwrap();
        let expected: &[u8] = b"\x52\x00\x00\x00\x00\x00\x00\x00\
            \x01\x00\x00\x00A\x00\x01b\x00\x00\x00\x00\x01\x00\x00\x00\
            \x02\x00\x00\x00Bc\x00\x01t\x00\x00\x00\x00\x00\x00\x00\
            \x01\x00\x00\x00\x00\x00\x00\x00\
            \x01\x00\x00\x00P\x00\x02au\x00\x00\x00\x04\x00\x00\x00\x05\x00\x00\x00\
            \x00\x00\x00\x00\
            \x01\x00\x00\x00C\x00\x02ay\x00\x00\x00\x02\x00\x00\x00\x03\x01";
        let sent = &message[message.len() - expected.len()..];
        assert_eq!(sent.escape_ascii().to_string(), expected.escape_ascii().to_string());
        let signature = b"\x08\x01g\x00\x05a(sv)\x00";
        assert!(message.windows(signature.len()).any(|bytes| bytes == signature));
    }

    fn answer<B: Serialize + Type>(kind: u8, member: &str, body: B) -> Vec<u8> {
        let call = Call { path: "/o", interface: "i.f", member, body };
        let mut bytes = call.message(1).unwrap();
        bytes[1] = kind;
        bytes
    }

    #[test]
    fn message_is_read_back() {
        let job = ObjectPath::try_from("/job/9").unwrap();
        let bytes = answer(4, "JobRemoved", (9u32, job, "a.scope", "done"));
        let fixed = bytes[..FIXED].try_into().unwrap();
        assert_eq!(whole_length(&fixed).unwrap(), bytes.len());
        let message = Message::parse(bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Signal, "JobRemoved"));
        let (number, job, _, result): (u32, ObjectPath<'_>, &str, &str) = message.body().unwrap();
        assert_eq!((number, job.as_str(), result), (9, "/job/9", "done"));
        assert!(message.body::<(&str,)>().is_err());
    }

    #[test]
    fn message_that_is_cut_or_too_long_is_refused() {
        let whole = answer(2, "m", ("x",));
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
            read_everything(bytes);
        }

        #[test]
        fn no_byte_of_a_message_makes_the_reader_panic(at in 0usize..200, byte in any::<u8>()) {
            let mut bytes = answer(4, "JobRemoved", (9u32, "/job/9", "a.scope", "done"));
            let length = bytes.len();
            bytes[at % length] = byte;
            read_everything(bytes);
        }
    }

    fn read_everything(bytes: Vec<u8>) {
        if let Ok(message) = Message::parse(bytes) {
            let _ = message.body::<(&str,)>();
            let _ = message.body::<(Variant<'_>,)>();
            let _ = message.body::<(u32, ObjectPath<'_>, &str, &str)>();
        }
    }
}
