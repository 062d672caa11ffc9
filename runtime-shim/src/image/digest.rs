//! SHA-256 digests and readers that compute them on the way.

use std::fmt;
use std::io::{self, Read};

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256};

use super::tar::SkipRead;

/// A SHA-256 digest. Shown as 64 hexadecimal digits, which are safe as a file name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Some(Self(bytes))
    }

    /// Parses `sha256:` and 64 digits, the only form of digest that images use.
    pub fn from_oci(text: &str) -> Option<Self> {
        Self::from_hex(text.strip_prefix("sha256:")?)
    }

    /// Takes a parsed OCI digest; `None` for another algorithm.
    pub fn from_descriptor(digest: &Digest) -> Option<Self> {
        (*digest.algorithm() == DigestAlgorithm::Sha256)
            .then(|| Self::from_hex(digest.digest()))
            .flatten()
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// Hashes and counts all that is read through it.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    /// Starts at the present position of `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// What is read from.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Digest and number of the bytes read so far.
    pub fn so_far(&self) -> (Sha256Digest, u64) {
        (Sha256Digest(self.hash.clone().finalize().into()), self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

impl<R: Read> SkipRead for Hashing<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        super::tar::skip_by_reading(self, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_known_one() {
        assert_eq!(Sha256Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Sha256Digest::from_hex(EMPTY), Some(Sha256Digest::of(b"")));
    }

    #[test]
    fn digest_that_is_not_sha256_is_refused() {
        for text in ["", "sha256:", "sha512:00", &format!("sha256:{}", EMPTY.to_uppercase())] {
            assert_eq!(Sha256Digest::from_oci(text), None, "{text}");
        }
        assert_eq!(Sha256Digest::from_hex(&format!("{EMPTY}0")), None);
        assert_eq!(Sha256Digest::from_hex("../../../../../../../../../etc/passwd"), None);
    }

    #[test]
    fn hashing_reader_sees_what_is_read() {
        let mut reader = Hashing::new(&b"hello"[..]);
        reader.skip(2).unwrap();
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.so_far(), (Sha256Digest::of(b"hello"), 5));
    }
}
