//! ttrpc framing of one call: ten bytes of header (length, stream, type, flags; big-endian),
//! then a protobuf `Request` or `Response`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ttrpc::proto::{Codec, MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader};
use ttrpc::{Code, Request, Response};

use super::AgentError;
use crate::vsock::await_readable;

const SERVICE: &str = "bulkhead.agent.v1.Agent";
/// The first stream of a connection; clients use odd numbers.
const STREAM: u32 = 1;
/// Longest reply that is read. Memory for it grows with what arrives, not with what is
/// announced.
const REPLY_MAX: usize = 1 << 20;

/// A call under way.
#[derive(Debug)]
pub struct Call {
    method: &'static str,
    stream: UnixStream,
    reply: Vec<u8>,
}

/// How far a call has come.
#[derive(Debug)]
pub enum Progress {
    /// The reply has not come completely.
    Pending,
    /// The payload of the reply.
    Done(Vec<u8>),
}

impl Call {
    /// Sends a request. `limit` is told to the agent; it is the caller who keeps it.
    pub(super) fn send(
        stream: UnixStream,
        method: &'static str,
        payload: Vec<u8>,
        limit: Option<Duration>,
    ) -> Result<Self, AgentError> {
        let failed = |source| AgentError::Send { method, source };
        let mut request = Request::new();
        request.service = SERVICE.to_owned();
        request.method = method.to_owned();
        request.payload = payload;
        request.timeout_nano = limit.map_or(0, |l| i64::try_from(l.as_nanos()).unwrap_or(i64::MAX));
        let body = request.encode().map_err(|e| failed(io::Error::other(e)))?;
        let length = u32::try_from(body.len())
            .map_err(|_| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let mut frame = Vec::from(MessageHeader::new_request(STREAM, length));
        frame.extend_from_slice(&body);
        // A guest that does not read must not hold the runtime up.
        stream.set_write_timeout(limit).map_err(failed)?;
        (&stream).write_all(&frame).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let reply = Vec::new();
        Ok(Self { method, stream, reply })
    }

    /// Reads what has come. Never waits.
    pub fn advance(&mut self) -> Result<Progress, AgentError> {
        let mut chunk = [0u8; 4096];
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                return self.payload().map(Progress::Done);
            }
            let want = missing.min(chunk.len());
            match self.stream.read(&mut chunk[..want]) {
                Ok(0) => return Err(AgentError::Closed(self.method)),
                Ok(n) => self.reply.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Pending),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(AgentError::Closed(self.method));
                }
                Err(source) => {
                    return Err(AgentError::Receive { method: self.method, source });
                }
            }
        }
    }

    /// Waits for the reply, until `deadline`.
    pub(super) fn finish(mut self, deadline: Instant) -> Result<Vec<u8>, AgentError> {
        loop {
            if let Progress::Done(payload) = self.advance()? {
                return Ok(payload);
            }
            let readable = await_readable(&self.stream, deadline)
                .map_err(|source| AgentError::Receive { method: self.method, source })?;
            if !readable {
                return Err(AgentError::Silent(self.method));
            }
        }
    }

    /// Bytes of the header or, once that is there, of the frame that have not come.
    fn missing(&self) -> Result<usize, AgentError> {
        let Some(header) = self.header() else {
            return Ok(MESSAGE_HEADER_LENGTH - self.reply.len());
        };
        let length = header.length as usize;
        if header.type_ != MESSAGE_TYPE_RESPONSE || header.stream_id != STREAM {
            return Err(self.garbage("it is not a response to the call"));
        }
        if length > REPLY_MAX {
            return Err(self.garbage("it is longer than any answer"));
        }
        Ok(MESSAGE_HEADER_LENGTH + length - self.reply.len())
    }

    fn header(&self) -> Option<MessageHeader> {
        let bytes = self.reply.get(..MESSAGE_HEADER_LENGTH)?;
        Some(MessageHeader::from(bytes))
    }

    fn payload(&self) -> Result<Vec<u8>, AgentError> {
        let body = self.reply.get(MESSAGE_HEADER_LENGTH..).unwrap_or_default();
        let response =
            Response::decode(body).map_err(|_| self.garbage("it is not a ttrpc response"))?;
        let Some(status) = response.status.as_ref() else {
            return Ok(response.payload);
        };
        match status.code.enum_value() {
            Ok(Code::OK) => Ok(response.payload),
            Ok(code) => Err(AgentError::refused(self.method, code, &status.message)),
            Err(_) => Err(self.garbage("its status is unknown")),
        }
    }

    fn garbage(&self, what: &'static str) -> AgentError {
        AgentError::Garbage { method: self.method, what }
    }
}

impl AsFd for Call {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
