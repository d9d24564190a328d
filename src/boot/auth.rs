//! The handshake that opens every connection: both ends prove that they know the job's key before
//! anything else is looked at.
//!
//! ```text
//! connector                                listener
//!   greeting (40) ----------------------->           magic, format, version, role, fresh nonce
//!                 <-----------------------  greeting (40)
//!   proof (56)    ----------------------->           hello (24), tag over all of the above
//!                 <-----------------------  verdict (40)   status (8), tag over all of the above
//! ```
//!
//! Messages have fixed sizes and one state machine takes bytes in and gives bytes out: it owns no
//! socket, no clock, and reads no byte beyond its own. Each tag uses a key derived for its
//! direction, and both greetings name their sender's role, so an echo or a replay proves nothing.
//! The connector proves first: a stranger who connects learns nothing that depends on the key.
//!
//! Not here: encryption. The bytes that follow travel in the clear.

use super::id::Version;
use super::key::Key;
use crate::error::{Code, Error, Result};
use crate::sys::random;

const MAGIC: &[u8; 4] = b"UNSO";
const FORMAT: u8 = 1;
const GREETING_BYTES: usize = 8 + Key::BYTES;
const HELLO_BYTES: usize = 24;
const PROOF_BYTES: usize = HELLO_BYTES + Key::BYTES;
const STATUS_BYTES: usize = 8;
const VERDICT_BYTES: usize = STATUS_BYTES + Key::BYTES;

const CONNECTOR_CONTEXT: &str = "unisono 2026 handshake connector proof v1";
const LISTENER_CONTEXT: &str = "unisono 2026 handshake listener proof v1";
const SESSION_CONTEXT: &str = "unisono 2026 handshake session key v1";

/// The rank a rendezvous goes by, which is none.
pub(crate) const NO_RANK: u32 = u32::MAX;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Meeting the other ranks.
    Rendezvous,
    /// The control connection between two ranks.
    Control,
    /// A data connection between two ranks.
    Lane(u16),
    /// The Unix connection between two ranks of one host.
    Local,
}

impl Purpose {
    const fn code(self) -> (u8, u16) {
        match self {
            Self::Rendezvous => (1, 0),
            Self::Control => (2, 0),
            Self::Lane(lane) => (3, lane),
            Self::Local => (4, 0),
        }
    }

    const fn from_code(code: u8, lane: u16) -> Option<Self> {
        match (code, lane) {
            (1, 0) => Some(Self::Rendezvous),
            (2, 0) => Some(Self::Control),
            (3, lane) => Some(Self::Lane(lane)),
            (4, 0) => Some(Self::Local),
            _ => None,
        }
    }
}

/// Who connects, to whom and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The connecting rank.
    pub rank: u32,
    /// The rank it means to reach; addresses such as 127.0.0.1 can lead to another one.
    pub to: u32,
    /// The size of the world it believes in.
    pub world: u32,
    /// The incarnation of the communicator.
    pub epoch: u64,
    /// What the connection is for.
    pub purpose: Purpose,
}

impl Hello {
    fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let (purpose, lane) = self.purpose.code();
        bytes[..4].copy_from_slice(&self.rank.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.to.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.world.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[20..22].copy_from_slice(&lane.to_le_bytes());
        bytes[22] = purpose;
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let lane = u16::from_le_bytes(bytes.get(20..22)?.try_into().ok()?);
        if *bytes.get(23)? != 0 {
            return None;
        }
        Some(Self {
            rank: word(0)?,
            to: word(4)?,
            world: word(8)?,
            epoch: u64::from_le_bytes(bytes.get(12..20)?.try_into().ok()?),
            purpose: Purpose::from_code(*bytes.get(22)?, lane)?,
        })
    }
}

/// What a listener lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Ranks that come to a rendezvous.
    Rendezvous,
    /// Control and lane connections to this rank of this incarnation.
    Mesh {
        /// The listener's rank.
        rank: u32,
        /// Its incarnation.
        epoch: u64,
    },
    /// Unix connections to this rank of this incarnation.
    Local {
        /// The listener's rank.
        rank: u32,
        /// Its incarnation.
        epoch: u64,
    },
}

/// The listener's answer to a proof, in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Accepted = 0,
    WrongKey = 1,
    WrongRank = 2,
    WrongEpoch = 3,
    WrongPurpose = 4,
}

impl Expect {
    fn judge(self, hello: &Hello) -> Status {
        let (rank, epoch, wanted) = match (self, hello.purpose) {
            (Self::Rendezvous, Purpose::Rendezvous) => (NO_RANK, hello.epoch, true),
            (Self::Mesh { rank, epoch }, Purpose::Control | Purpose::Lane(_))
            | (Self::Local { rank, epoch }, Purpose::Local) => (rank, epoch, true),
            _ => (hello.to, hello.epoch, false),
        };
        if !wanted {
            Status::WrongPurpose
        } else if hello.to != rank {
            Status::WrongRank
        } else if hello.epoch != epoch {
            Status::WrongEpoch
        } else {
            Status::Accepted
        }
    }
}

/// What a finished handshake leaves.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The connector's hello, proved.
    pub hello: Hello,
    /// A key that only the two ends of this one connection know.
    pub session: Key,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for the other end's greeting.
    Greeting,
    /// Listener: waiting for the proof. Connector: waiting for the verdict.
    Answer,
    Done,
    Failed,
}

/// One end of a handshake, bytes in and bytes out.
#[derive(Debug)]
pub(crate) struct Handshake {
    key: Key,
    /// What the connector says, or `None` at the listener until it is proved.
    hello: Option<Hello>,
    /// What the listener lets in; `None` at the connector.
    expect: Option<Expect>,
    stage: Stage,
    greeting: [u8; GREETING_BYTES],
    /// Both greetings and the hello: what every tag covers.
    transcript: Vec<u8>,
    /// The tag of the proof, which the verdict covers too.
    proof: [u8; Key::BYTES],
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
}

impl Handshake {
    /// The connecting end.
    pub(crate) fn connector(key: &Key, hello: Hello) -> Result<Self> {
        let mut shake = Self::new(key, 1, random::bytes()?);
        shake.hello = Some(hello);
        shake.output.extend_from_slice(&shake.greeting);
        Ok(shake)
    }

    /// The accepting end.
    pub(crate) fn listener(key: &Key, expect: Expect) -> Result<Self> {
        let mut shake = Self::new(key, 2, random::bytes()?);
        shake.expect = Some(expect);
        Ok(shake)
    }

    fn new(key: &Key, role: u8, nonce: [u8; Key::BYTES]) -> Self {
        let mut greeting = [0; GREETING_BYTES];
        greeting[..4].copy_from_slice(MAGIC);
        greeting[4] = FORMAT;
        greeting[5] = Version::OURS.major;
        greeting[6] = Version::OURS.minor;
        greeting[7] = role;
        greeting[8..].copy_from_slice(&nonce);
        Self {
            key: key.clone(),
            hello: None,
            expect: None,
            stage: Stage::Greeting,
            greeting,
            transcript: Vec::with_capacity(2 * GREETING_BYTES + HELLO_BYTES),
            proof: [0; Key::BYTES],
            input: Vec::with_capacity(PROOF_BYTES),
            output: Vec::with_capacity(PROOF_BYTES + GREETING_BYTES),
            written: 0,
        }
    }

    /// The bytes that wait to be written to the other end. Also after a failure: a refusal tells
    /// the other end why, where that gives nothing away.
    pub(crate) fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// Says that the first `count` bytes of the output went out.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.written = (self.written + count).min(self.output.len());
    }

    /// How many bytes the next message still lacks; never more than the handshake's own.
    pub(crate) fn want(&self) -> usize {
        self.message_bytes() - self.input.len()
    }

    /// Whether the other end has proved itself and all our bytes went out.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done && self.output().is_empty()
    }

    /// What was proved, once done.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        if !self.is_done() {
            return None;
        }
        let session = self.key.derive(SESSION_CONTEXT).tag(&[&self.transcript]);
        Some(Outcome { hello: self.hello?, session: Key::new(session) })
    }

    const fn message_bytes(&self) -> usize {
        match (self.stage, self.expect.is_some()) {
            (Stage::Greeting, _) => GREETING_BYTES,
            (Stage::Answer, true) => PROOF_BYTES,
            (Stage::Answer, false) => VERDICT_BYTES,
            (Stage::Done | Stage::Failed, _) => 0,
        }
    }

    /// Takes bytes from the other end, at most [`Handshake::want`] of them.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.want() {
            return Err(Error::new(Code::Internal, "a handshake was fed more than it wants"));
        }
        self.input.extend_from_slice(bytes);
        if self.want() > 0 || self.input.is_empty() {
            return Ok(());
        }
        let message = std::mem::take(&mut self.input);
        let step = match (self.stage, self.expect) {
            (Stage::Greeting, None) => self.take_listener_greeting(&message),
            (Stage::Greeting, Some(_)) => self.take_connector_greeting(&message),
            (Stage::Answer, None) => self.take_verdict(&message),
            (Stage::Answer, Some(expect)) => self.take_proof(&message, expect),
            (Stage::Done | Stage::Failed, _) => Ok(Stage::Failed),
        };
        self.stage = *step.as_ref().unwrap_or(&Stage::Failed);
        step.map(drop)
    }

    fn take_connector_greeting(&mut self, message: &[u8]) -> Result<Stage> {
        check_magic(message)?;
        // An answer to another version too, so that it can name both.
        self.output.extend_from_slice(&self.greeting);
        check_greeting(message, 1)?;
        self.transcript.extend_from_slice(message);
        self.transcript.extend_from_slice(&self.greeting);
        Ok(Stage::Answer)
    }

    fn take_listener_greeting(&mut self, message: &[u8]) -> Result<Stage> {
        check_magic(message)?;
        check_greeting(message, 2)?;
        let hello = self.hello.map(|hello| hello.encode()).unwrap_or_default();
        self.transcript.extend_from_slice(&self.greeting);
        self.transcript.extend_from_slice(message);
        self.transcript.extend_from_slice(&hello);
        self.proof = self.key.derive(CONNECTOR_CONTEXT).tag(&[&self.transcript]);
        self.output.extend_from_slice(&hello);
        self.output.extend_from_slice(&self.proof);
        Ok(Stage::Answer)
    }

    fn take_proof(&mut self, message: &[u8], expect: Expect) -> Result<Stage> {
        let (hello, tag) = message.split_at(HELLO_BYTES);
        self.transcript.extend_from_slice(hello);
        if !self.key.derive(CONNECTOR_CONTEXT).verifies(&[&self.transcript], tag) {
            // Without a tag: what a stranger gets does not depend on the key.
            self.output.extend_from_slice(&[0; VERDICT_BYTES]);
            let status = self.output.len() - VERDICT_BYTES;
            self.output[status] = Status::WrongKey as u8;
            return Err(Error::new(Code::Unauthenticated, "its proof is wrong"));
        }
        self.proof.copy_from_slice(tag);
        let Some(hello) = Hello::decode(hello) else {
            return Err(Error::new(Code::Protocol, "its hello makes no sense"));
        };
        let status = expect.judge(&hello);
        let mut head = [0; STATUS_BYTES];
        head[0] = status as u8;
        let parts = [self.transcript.as_slice(), &self.proof, &head];
        let tag = self.key.derive(LISTENER_CONTEXT).tag(&parts);
        self.output.extend_from_slice(&head);
        self.output.extend_from_slice(&tag);
        if status != Status::Accepted {
            let text = format!("it asks for something not offered here: {hello:?}");
            return Err(Error::new(Code::Protocol, text));
        }
        self.hello = Some(hello);
        Ok(Stage::Done)
    }

    fn take_verdict(&mut self, message: &[u8]) -> Result<Stage> {
        let (head, tag) = message.split_at(STATUS_BYTES);
        if head[0] == Status::WrongKey as u8 {
            let text = "the other end says that our key is not its job's key";
            return Err(Error::new(Code::Unauthenticated, text));
        }
        let parts = [self.transcript.as_slice(), &self.proof, head];
        if !self.key.derive(LISTENER_CONTEXT).verifies(&parts, tag) {
            let text = "the other end did not prove that it knows the job's key";
            return Err(Error::new(Code::Unauthenticated, text));
        }
        let refused = |code, text: &str| Err(Error::new(code, text));
        match head[0] {
            0 => Ok(Stage::Done),
            2 => refused(Code::Protocol, "the address leads to another rank of the job"),
            3 => refused(Code::StaleEpoch, "the other end is of another incarnation"),
            _ => refused(Code::Protocol, "the other end does not offer what we came for"),
        }
    }
}

fn check_magic(message: &[u8]) -> Result<()> {
    if &message[..4] == MAGIC {
        return Ok(());
    }
    Err(Error::new(Code::Protocol, "the other end does not speak unisono's protocol"))
}

fn check_greeting(message: &[u8], role: u8) -> Result<()> {
    Version { major: message[5], minor: message[6] }.check("the other end")?;
    if message[4] != FORMAT {
        let text = format!("the other end's handshake has format {}, ours {FORMAT}", message[4]);
        return Err(Error::new(Code::VersionMismatch, text));
    }
    if message[7] != role {
        return Err(Error::new(Code::Unauthenticated, "the other end sends our own role back"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
