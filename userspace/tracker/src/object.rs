//! From a compiled object to programs in the kernel.

use std::os::fd::OwnedFd;

use aya_obj::Object;

use crate::btf::Btf;
use crate::iterator::TaskIterator;
use crate::{Error, sys};

/// The ELF reader wants its structures aligned.
#[repr(align(8))]
struct Aligned<B: ?Sized>(B);

/// `ebpf/mappings.bpf.c`
pub(crate) const MAPPINGS: Compiled = {
    static OBJECT: &Aligned<[u8]> =
        &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/mappings.bpf.o")));
    Compiled {
        name: "mappings",
        bytes: &OBJECT.0,
    }
};

/// What clang made of a file of `ebpf/`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compiled {
    name: &'static str,
    bytes: &'static [u8],
}

/// The running kernel's description of itself.
pub(crate) struct Kernel {
    data: Vec<u8>,
}

const DESCRIPTION: &str = "/sys/kernel/btf/vmlinux";

impl Kernel {
    pub(crate) fn read() -> Result<Self, Error> {
        let data = std::fs::read(DESCRIPTION).map_err(|source| Error::NoDescription {
            path: DESCRIPTION,
            source,
        })?;
        Ok(Self { data })
    }

    /// Fits an object to this kernel.
    pub(crate) fn fit(&self, compiled: Compiled) -> Result<Fitted<'_>, Error> {
        let unfit = |why: String| Error::Program {
            name: compiled.name.to_owned(),
            why,
        };
        let mut object = Object::parse(compiled.bytes).map_err(|error| unfit(error.to_string()))?;
        let asked = object
            .btf
            .as_ref()
            .map(aya_obj::btf::Btf::to_bytes)
            .unwrap_or_default();
        let undescribed = || unfit("its types are not described".to_owned());
        let kernel = Btf::new(&self.data).ok_or_else(undescribed)?;
        let only = kernel.only(&Btf::new(&asked).ok_or_else(undescribed)?.names());
        let only = aya_obj::btf::Btf::parse(&only, Default::default())
            .map_err(|error| unfit(error.to_string()))?;
        object
            .relocate_btf(&only)
            .map_err(|error| unfit(error.to_string()))?;
        let sections = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        object
            .relocate_calls(&sections)
            .map_err(|error| unfit(error.to_string()))?;
        Ok(Fitted { kernel, object })
    }
}

/// An object whose programs can be loaded.
pub(crate) struct Fitted<'a> {
    kernel: Btf<'a>,
    object: Object,
}

impl Fitted<'_> {
    /// Loads an iterator over objects of a kind of the kernel's ("task", "`task_vma`", ...).
    pub(crate) fn iterator(
        &mut self,
        name: &'static str,
        over: &str,
    ) -> Result<TaskIterator, Error> {
        let lacks = || Error::Lacks {
            what: format!("iterator over {over}"),
        };
        let target = self.kernel.iterator(over).ok_or_else(lacks)?;
        let program = self.program(name, sys::Attach::Iterator, target)?;
        Ok(TaskIterator::new(name, program))
    }

    fn program(&self, name: &str, attach: sys::Attach, target: u32) -> Result<OwnedFd, Error> {
        let unfit = |why: String| Error::Program {
            name: name.to_owned(),
            why,
        };
        let program = self
            .object
            .programs
            .get(name)
            .ok_or_else(|| unfit("it is not in its object".into()))?;
        let function = self
            .object
            .functions
            .get(&program.function_key())
            .ok_or_else(|| unfit("it has no code".into()))?;
        let load = sys::Load {
            name,
            instructions: &function.instructions,
            license: &program.license,
            attach,
            target,
        };
        sys::load(&load).map_err(|refused| match refused.verifier {
            Some(log) => unfit(log),
            None => Error::System {
                doing: format!("loading the BPF program {name}"),
                source: refused.source,
            },
        })
    }
}
