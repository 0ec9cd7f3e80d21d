//! A syscall program: system calls as plain data, to be run in order inside a stopped task.

use std::fmt;

/// A system call of a [`Program`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The system call's number (`libc::SYS_*`).
    pub nr: i64,
    /// Its arguments; unused ones are 0.
    pub args: [Arg; 6],
    /// What the result must be.
    pub expect: Expect,
    /// What it does, for people: "open /var/log/app.log".
    pub label: String,
}

/// One argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A number.
    Value(u64),
    /// The address at which a blob lies while the program runs, plus so many bytes.
    Blob(Blob, u64),
    /// The result of an earlier call of the same program.
    Result(usize),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}
impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::Value(i64::from(value) as u64)
    }
}
impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Value(u64::from(value))
    }
}
impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Self::Value(value as u64)
    }
}
impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::Value(value as u64)
    }
}
impl From<Blob> for Arg {
    fn from(blob: Blob) -> Self {
        Self::Blob(blob, 0)
    }
}

/// What a call's result must be for the program to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything; the caller looks at it.
    Anything,
    /// No error.
    Success,
    /// Exactly this.
    Exactly(u64),
}

/// A piece of memory that lies beside the program in the task: input, output or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blob(pub(crate) usize);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BlobData {
    pub(crate) bytes: Vec<u8>,
    /// Eight bytes at the offset hold the address of another blob.
    pub(crate) pointers: Vec<(usize, Blob)>,
    pub(crate) output: bool,
}

/// Calls and the memory they refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    pub(crate) calls: Vec<Call>,
    pub(crate) blobs: Vec<BlobData>,
}

impl Program {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// Input for a call.
    pub fn bytes(&mut self, bytes: impl Into<Vec<u8>>) -> Blob {
        self.blob(BlobData {
            bytes: bytes.into(),
            ..Default::default()
        })
    }

    /// A NUL-terminated string.
    pub fn string(&mut self, text: &str) -> Blob {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(bytes)
    }

    /// 64-bit words.
    pub fn words(&mut self, words: &[u64]) -> Blob {
        self.bytes(
            words
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect::<Vec<u8>>(),
        )
    }

    /// Room for a call to write `length` bytes (zeroed), read back as [`crate::Outcome::output`].
    pub fn output(&mut self, length: usize) -> Blob {
        self.blob(BlobData {
            bytes: vec![0; length],
            output: true,
            ..Default::default()
        })
    }

    /// Makes the 8 bytes at `offset` of `blob` hold the address of `target`, which must have been added before `blob`.
    pub fn point(&mut self, blob: Blob, offset: usize, target: Blob) {
        debug_assert!(target.0 < blob.0);
        self.blobs[blob.0].pointers.push((offset, target));
    }

    fn blob(&mut self, data: BlobData) -> Blob {
        self.blobs.push(data);
        Blob(self.blobs.len() - 1)
    }

    /// Adds a call; gives its index, which [`Arg::Result`] refers to.
    pub fn call(
        &mut self,
        nr: i64,
        args: &[Arg],
        expect: Expect,
        label: impl Into<String>,
    ) -> usize {
        let mut six = [Arg::Value(0); 6];
        six[..args.len()].copy_from_slice(args);
        self.calls.push(Call {
            nr,
            args: six,
            expect,
            label: label.into(),
        });
        self.calls.len() - 1
    }

    /// Adds a call that must succeed.
    pub fn must(&mut self, nr: i64, args: &[Arg], label: impl Into<String>) -> usize {
        self.call(nr, args, Expect::Success, label)
    }

    /// Adds a call whose result the caller looks at.
    pub fn try_call(&mut self, nr: i64, args: &[Arg], label: impl Into<String>) -> usize {
        self.call(nr, args, Expect::Anything, label)
    }

    /// The calls in order.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}
