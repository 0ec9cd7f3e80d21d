//! From a compiled object to programs in the kernel.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use aya_obj::Object;

use crate::btf::Btf;
use crate::iterator::TaskIterator;
use crate::{Error, sys};

/// The ELF reader wants its structures aligned.
#[repr(align(8))]
struct Aligned<B: ?Sized>(B);

/// What clang made of `ebpf/NAME.bpf.c`.
macro_rules! compiled {
    ($name:literal) => {{
        static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
            env!("OUT_DIR"),
            "/",
            $name,
            ".bpf.o"
        )));
        Compiled {
            name: $name,
            bytes: &OBJECT.0,
        }
    }};
}

/// An iterator over descriptors.
pub(crate) const DESCRIPTORS: Compiled = compiled!("descriptors");
/// Who belongs to a job.
pub(crate) const JOB: Compiled = compiled!("job");
/// An iterator over mappings.
pub(crate) const MAPPINGS: Compiled = compiled!("mappings");
/// An iterator over all threads of the machine.
pub(crate) const TASKS: Compiled = compiled!("tasks");
/// An iterator over threads.
pub(crate) const THREADS: Compiled = compiled!("threads");
/// An iterator over what is undone on semaphores.
pub(crate) const UNDO: Compiled = compiled!("undo");

/// A compiled file of `ebpf/`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compiled {
    name: &'static str,
    bytes: &'static [u8],
}

impl Compiled {
    fn unfit(&self, why: String) -> Error {
        Error::Program {
            name: self.name.to_owned(),
            why,
        }
    }
}

/// The running kernel's description of itself, as it stands in /sys.
pub(crate) fn describe_kernel() -> Result<Vec<u8>, Error> {
    std::fs::read(DESCRIPTION).map_err(|source| Error::NoDescription {
        path: DESCRIPTION,
        source,
    })
}

const DESCRIPTION: &str = "/sys/kernel/btf/vmlinux";

/// The kernel that programs are fitted to.
pub(crate) struct Kernel<'a> {
    btf: Btf<'a>,
    /// What the objects ask about.
    asked: aya_obj::btf::Btf,
}

impl<'a> Kernel<'a> {
    /// The kernel of this description, for objects that are to be fitted to it.
    pub(crate) fn new(description: &'a [u8], objects: &[Compiled]) -> Result<Self, Error> {
        let btf = Btf::new(description).ok_or_else(|| Error::Lacks {
            what: format!("description of its types in {DESCRIPTION} that could be understood"),
        })?;
        let mut own = Vec::new();
        for compiled in objects {
            let object =
                Object::parse(compiled.bytes).map_err(|error| compiled.unfit(whole(&error)))?;
            own.push(object.btf.map(|btf| btf.to_bytes()).unwrap_or_default());
        }
        let mut names = HashSet::new();
        for (own, compiled) in own.iter().zip(objects) {
            let own = Btf::new(own)
                .ok_or_else(|| compiled.unfit("it does not describe its types".to_owned()))?;
            names.extend(own.names());
        }
        let asked = aya_obj::btf::Btf::parse(&btf.only(&names), Default::default());
        let asked = asked.map_err(|error| Error::Lacks {
            what: format!("description of its types in {DESCRIPTION} that could be read: {error}"),
        })?;
        Ok(Self { btf, asked })
    }

    /// Fits an object without maps to this kernel.
    pub(crate) fn fit(&self, compiled: Compiled) -> Result<Fitted<'_>, Error> {
        self.fit_with(compiled, &[])
    }

    /// Fits an object to this kernel, and to its maps by their names.
    pub(crate) fn fit_with(
        &self,
        compiled: Compiled,
        maps: &[(&str, &sys::Map)],
    ) -> Result<Fitted<'_>, Error> {
        let unfit = |why| compiled.unfit(why);
        let mut object = Object::parse(compiled.bytes).map_err(|error| unfit(whole(&error)))?;
        object
            .relocate_btf(&self.asked)
            .map_err(|error| unfit(whole(&error)))?;
        let sections = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let definitions = std::mem::take(&mut object.maps);
        let made = maps.iter().filter_map(|(name, map)| {
            let definition = definitions.get(*name)?;
            Some((*name, map.fd(), definition))
        });
        object
            .relocate_maps(made, &sections)
            .map_err(|error| unfit(whole(&error)))?;
        object
            .relocate_calls(&sections)
            .map_err(|error| unfit(whole(&error)))?;
        Ok(Fitted {
            kernel: self,
            object,
        })
    }
}

/// An error with everything that caused it.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// An object whose programs can be loaded.
pub(crate) struct Fitted<'a> {
    kernel: &'a Kernel<'a>,
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
        let target = self.kernel.btf.iterator(over).ok_or_else(lacks)?;
        let program = self.program(name, sys::Attach::Iterator, target)?;
        Ok(TaskIterator::new(name, program))
    }

    /// Loads a program and attaches it to a tracepoint, until what is returned is dropped.
    pub(crate) fn at_tracepoint(&self, name: &str, tracepoint: &str) -> Result<Attached, Error> {
        let lacks = || Error::Lacks {
            what: format!("tracepoint {tracepoint}"),
        };
        let target = (self.kernel.btf.tracepoint(tracepoint)).ok_or_else(lacks)?;
        self.attach(name, sys::Attach::Tracepoint, target)
    }

    /// The same at the beginning of a function of the kernel's; the program is called `in_FUNCTION`.
    pub(crate) fn at_function(&self, function: &str) -> Result<Attached, Error> {
        let lacks = || Error::Lacks {
            what: format!("function {function}"),
        };
        let target = (self.kernel.btf.function(function)).ok_or_else(lacks)?;
        self.attach(&format!("in_{function}"), sys::Attach::Function, target)
    }

    fn attach(&self, name: &str, how: sys::Attach, target: u32) -> Result<Attached, Error> {
        let program = self.program(name, how, target)?;
        let doing = format!("attaching the BPF program {name}");
        let link = sys::attach(program.as_fd()).map_err(Error::system(doing))?;
        Ok(Attached { _link: link })
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

/// A program that runs whenever the kernel comes by. The kernel drops it with this, or when our process ends.
#[derive(Debug)]
pub(crate) struct Attached {
    _link: OwnedFd,
}
