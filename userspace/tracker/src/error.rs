use std::io;

/// Why BPF cannot be used, or not for this.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not describe its structures.
    #[error(
        "the kernel does not describe its structures ({path}: {source}): it was built without CONFIG_DEBUG_INFO_BTF"
    )]
    NoDescription {
        /// /sys/kernel/btf/vmlinux
        path: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// This kernel lacks something a program is made for.
    #[error("the kernel has no {what}")]
    Lacks {
        /// An iterator or a tracepoint.
        what: String,
    },
    /// A compiled program is not what it should be, or does not fit this kernel.
    #[error("the BPF program {name} does not fit this kernel: {why}")]
    Program {
        /// Which one.
        name: String,
        /// Why.
        why: String,
    },
    /// What a program wrote is not what it should be.
    #[error("the BPF program {name} wrote a record that is cut off")]
    Record {
        /// Which one.
        name: &'static str,
    },
    /// The kernel refused.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::System { doing, source }
    }
}
