//! The kernel's description of its types (BTF), cut down to what a program asks about.
//!
//! A kernel describes some 150,000 types in 5 MB, which takes tens of milliseconds to read in full; a program asks about thirty.
//! The format: Documentation/bpf/btf.rst, include/uapi/linux/btf.h.

use std::collections::{HashMap, HashSet};

/// `BTF_KIND_*`
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// Bytes of `struct btf_type`.
const TYPE: usize = 12;

/// A description whose types have been found.
#[derive(Debug)]
pub(crate) struct Btf<'a> {
    strings: &'a [u8],
    types: &'a [u8],
    /// Where each type begins in `types`; ids count from 1.
    places: Vec<u32>,
}

/// One type of a description.
#[derive(Debug, Clone, Copy)]
struct Type<'a> {
    bytes: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap_or_default()))
}

/// Bytes behind `struct btf_type`.
fn extra(info: u32) -> usize {
    let members = (info & 0xffff) as usize;
    match info >> 24 & 0x1f {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => members * 12,
        kind::ENUM | kind::FUNC_PROTO => members * 8,
        _ => 0,
    }
}

impl<'a> Type<'a> {
    fn kind(self) -> u32 {
        word(self.bytes, 4) >> 24 & 0x1f
    }

    /// Where its name begins among the strings.
    fn name(self) -> u32 {
        word(self.bytes, 0)
    }
}

impl<'a> Btf<'a> {
    /// `None`: this is not such a description, or is cut off.
    pub(crate) fn new(data: &'a [u8]) -> Option<Self> {
        let magic = data.get(..2)?;
        if magic != MAGIC.to_ne_bytes() {
            return None;
        }
        let begin = word(data, 4) as usize;
        let section = |offset: usize, length: usize| {
            let start = begin.checked_add(word(data, offset) as usize)?;
            data.get(start..start.checked_add(word(data, length) as usize)?)
        };
        let (types, strings) = (section(8, 12)?, section(16, 20)?);
        let mut places = Vec::with_capacity(types.len() / 20);
        let mut at = 0;
        while at + TYPE <= types.len() {
            places.push(at as u32);
            at += TYPE + extra(word(types, at + 4));
        }
        (at == types.len()).then_some(Self {
            strings,
            types,
            places,
        })
    }

    fn get(&self, id: u32) -> Option<Type<'a>> {
        let at = *self.places.get(id.checked_sub(1)? as usize)? as usize;
        let end = at + TYPE + extra(word(self.types, at + 4));
        Some(Type {
            bytes: self.types.get(at..end)?,
        })
    }

    fn all(&self) -> impl Iterator<Item = (u32, Type<'a>)> {
        (1..=self.places.len() as u32).filter_map(|id| Some((id, self.get(id)?)))
    }

    fn string(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        let end = rest
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(rest.len());
        &rest[..end]
    }

    /// The names of its structures, unions and enumerations. What follows three underscores only tells variants apart.
    pub(crate) fn names(&self) -> HashSet<&'a [u8]> {
        let named = self
            .all()
            .filter(|(_, t)| is_record(t.kind()))
            .map(|(_, t)| self.string(t.name()));
        named
            .map(|name| {
                let variant = name.windows(3).position(|window| window == b"___");
                &name[..variant.unwrap_or(name.len())]
            })
            .filter(|name| !name.is_empty())
            .collect()
    }

    /// The id of the function that stands for an iterator.
    pub(crate) fn iterator(&self, over: &str) -> Option<u32> {
        self.id(kind::FUNC, &format!("bpf_iter_{over}"))
    }

    /// The id of the type that stands for a tracepoint and its arguments.
    pub(crate) fn tracepoint(&self, name: &str) -> Option<u32> {
        self.id(kind::TYPEDEF, &format!("btf_trace_{name}"))
    }

    /// The id of a function of the kernel's.
    pub(crate) fn function(&self, name: &str) -> Option<u32> {
        self.id(kind::FUNC, name)
    }

    fn id(&self, kind: u32, name: &str) -> Option<u32> {
        let mut all = self.all();
        // Comparing from the start ends at the first difference; finding the ends of all names would take longer.
        let named = |t: Type<'_>| {
            let rest = self.strings.get(t.name() as usize..).unwrap_or_default();
            rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0)
        };
        all.find(|(_, t)| t.kind() == kind && named(*t))
            .map(|(id, _)| id)
    }

    /// A description of these types and those that lie within them, with ids of its own. What they point at is left out.
    pub(crate) fn only(&self, names: &HashSet<&[u8]>) -> Vec<u8> {
        let mut kept = Kept {
            of: self,
            ids: HashMap::new(),
            types: Vec::new(),
            strings: vec![0],
            names: HashMap::new(),
        };
        for (id, t) in self.all() {
            if is_record(t.kind()) && t.name() != 0 && names.contains(self.string(t.name())) {
                kept.keep(id);
            }
        }
        kept.into_bytes()
    }
}

fn is_record(kind: u32) -> bool {
    matches!(kind, kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64)
}

/// A description that is being made.
struct Kept<'a> {
    of: &'a Btf<'a>,
    /// Their ids to ours.
    ids: HashMap<u32, u32>,
    types: Vec<Vec<u8>>,
    strings: Vec<u8>,
    /// Where names begin, theirs to ours.
    names: HashMap<u32, u32>,
}

impl Kept<'_> {
    fn keep(&mut self, id: u32) -> u32 {
        if let Some(&known) = self.ids.get(&id) {
            return known;
        }
        // void
        let Some(t) = self.of.get(id) else { return 0 };
        let new = self.types.len() as u32 + 1;
        self.ids.insert(id, new);
        let mut bytes = t.bytes.to_vec();
        self.types.push(Vec::new());
        self.rename(&mut bytes, 0);
        match t.kind() {
            kind::PTR => put(&mut bytes, 8, 0),
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                self.refer(&mut bytes, 8);
            }
            kind::ARRAY => {
                self.refer(&mut bytes, TYPE);
                self.refer(&mut bytes, TYPE + 4);
            }
            kind::STRUCT | kind::UNION => {
                for member in (TYPE..bytes.len()).step_by(12) {
                    self.rename(&mut bytes, member);
                    self.refer(&mut bytes, member + 4);
                }
            }
            kind::ENUM => (TYPE..bytes.len())
                .step_by(8)
                .for_each(|member| self.rename(&mut bytes, member)),
            kind::ENUM64 => (TYPE..bytes.len())
                .step_by(12)
                .for_each(|member| self.rename(&mut bytes, member)),
            _ => {}
        }
        self.types[new as usize - 1] = bytes;
        new
    }

    /// Makes an id at `at` one of ours.
    fn refer(&mut self, bytes: &mut [u8], at: usize) {
        let new = self.keep(word(bytes, at));
        put(bytes, at, new);
    }

    /// Makes the place of a name at `at` one of ours.
    fn rename(&mut self, bytes: &mut [u8], at: usize) {
        let old = word(bytes, at);
        if old == 0 {
            return;
        }
        let new = *self.names.entry(old).or_insert_with(|| {
            let new = self.strings.len() as u32;
            self.strings.extend_from_slice(self.of.string(old));
            self.strings.push(0);
            new
        });
        put(bytes, at, new);
    }

    fn into_bytes(self) -> Vec<u8> {
        let types = self.types.concat();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        // Version and flags.
        bytes.extend([1, 0]);
        for number in [HEADER, 0, types.len(), types.len(), self.strings.len()] {
            bytes.extend((number as u32).to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(self.strings);
        bytes
    }
}

fn put(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, kind, size, and members with the ids of their types.
    type Type = (&'static str, u32, u32, Vec<(&'static str, u32)>);

    fn describe(types: &[Type]) -> Vec<u8> {
        let (mut strings, mut body) = (vec![0], Vec::new());
        let mut name = |text: &str| {
            if text.is_empty() {
                return 0;
            }
            let at = strings.len() as u32;
            strings.extend(text.bytes());
            strings.push(0);
            at
        };
        for (own, kind, size, members) in types {
            for number in [name(own), kind << 24 | members.len() as u32, *size] {
                body.extend(number.to_ne_bytes());
            }
            for (member, of) in members {
                for number in [name(member), *of, 0] {
                    body.extend(number.to_ne_bytes());
                }
            }
        }
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for number in [HEADER, 0, body.len(), body.len(), strings.len()] {
            bytes.extend((number as u32).to_ne_bytes());
        }
        bytes.extend(body);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn what_lies_within_is_kept_and_what_is_pointed_at_is_not() {
        let whole = describe(&[
            ("unrelated", kind::STRUCT, 8, vec![("x", 4)]),
            ("task", kind::STRUCT, 16, vec![("inner", 3), ("next", 5)]),
            ("inner", kind::STRUCT, 8, vec![("big", 4)]),
            ("word", kind::TYPEDEF, 6, vec![]),
            ("", kind::PTR, 1, vec![]),
            ("fwd", 7, 0, vec![]),
            ("bpf_iter_task", kind::FUNC, 0, vec![]),
        ]);
        let whole = Btf::new(&whole).unwrap();
        assert_eq!(
            (whole.iterator("task"), whole.iterator("tas")),
            (Some(7), None)
        );
        let only = whole.only(&HashSet::from([b"task".as_slice()]));
        let only = Btf::new(&only).unwrap();
        assert_eq!(only.names(), HashSet::from([b"task".as_slice(), b"inner"]));
        let names: Vec<_> = only
            .all()
            .map(|(_, t)| String::from_utf8_lossy(only.string(t.name())))
            .collect();
        assert_eq!(names, ["task", "inner", "word", "fwd", ""]);
        // The pointer leads nowhere.
        assert_eq!(word(only.get(5).unwrap().bytes, 8), 0);
        // inner.big is a word.
        assert_eq!(word(only.get(2).unwrap().bytes, TYPE + 4), 3);
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let whole = describe(&[("a", kind::STRUCT, 8, vec![("x", 0)])]);
        assert!(Btf::new(&whole).is_some());
        assert!(Btf::new(&whole[..whole.len() - 1]).is_none());
        assert!(Btf::new(&[]).is_none());
    }
}
