//! The two-letter names of the flags of mappings.
//!
//! Which bit is which flag changes between kernels. smaps goes through the bits from the lowest and writes the name of each that is
//! set; some have none (fs/proc/task_mmu.c, `show_smap_vma_flags`). So mappings of which both the bits and the names are known tell
//! which bit has which name, where they leave no choice; what they leave open stays unknown.

use std::collections::BTreeMap;

/// What is known of the kernel's numbering.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    /// Bit to name; empty for a bit that is not shown.
    known: BTreeMap<u32, String>,
    /// What was seen and does not yet follow from what is known.
    open: Vec<(u64, Vec<String>)>,
    /// Something seen contradicts the rule above: nothing is known.
    broken: bool,
}

fn bits(flags: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| flags >> bit & 1 == 1)
}

impl Flags {
    pub(crate) fn names(&self, flags: u64) -> Option<String> {
        if self.broken {
            return None;
        }
        let mut text = String::new();
        for bit in bits(flags) {
            let name = self.known.get(&bit)?;
            if !text.is_empty() && !name.is_empty() {
                text.push(' ');
            }
            text.push_str(name);
        }
        Some(text)
    }

    pub(crate) fn learn<'a>(&mut self, samples: impl IntoIterator<Item = (u64, &'a str)>) {
        for (flags, names) in samples {
            let sample = (flags, names.split_whitespace().map(str::to_owned).collect());
            if !self.open.contains(&sample) {
                self.open.push(sample);
            }
        }
        // Each sample that is understood may make another clear.
        loop {
            let before = self.open.len();
            for sample in std::mem::take(&mut self.open) {
                if !self.understand(&sample) {
                    self.open.push(sample);
                }
            }
            if self.open.len() == before {
                break;
            }
        }
    }

    /// Whether a sample follows from what is known, now.
    fn understand(&mut self, (flags, names): &(u64, Vec<String>)) -> bool {
        let mut names = names.clone();
        let mut rest = Vec::new();
        for bit in bits(*flags) {
            match self.known.get(&bit) {
                None => rest.push(bit),
                Some(name) if name.is_empty() => {}
                Some(name) => match names.iter().position(|n| n == name) {
                    Some(nth) => drop(names.remove(nth)),
                    None => self.broken = true,
                },
            }
        }
        if names.is_empty() || names.len() == rest.len() {
            names.resize(rest.len(), String::new());
            self.known.extend(rest.into_iter().zip(names));
            return true;
        }
        self.broken |= names.len() > rest.len();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_no_choice_is_known() {
        let mut flags = Flags::default();
        flags.learn([(0b1101, "rd sh"), (0b0111, "rd wr sh")]);
        // Which of the bits 0, 2 and 3 has no name may be anything; bits 0, 1 and 2 are in order.
        assert_eq!(flags.names(0b0111).as_deref(), Some("rd wr sh"));
        assert_eq!(flags.names(0b1001).as_deref(), Some("rd"));
        assert_eq!(flags.names(0b10000), None);
    }

    #[test]
    fn what_leaves_a_choice_stays_unknown() {
        let mut flags = Flags::default();
        flags.learn([(0b11, "rd")]);
        assert_eq!(flags.names(0b01), None);
        flags.learn([(0b10, "")]);
        assert_eq!(flags.names(0b01).as_deref(), Some("rd"));
    }

    #[test]
    fn a_contradiction_ends_it() {
        let mut flags = Flags::default();
        flags.learn([(0b1, "rd"), (0b11, "rd wr")]);
        flags.learn([(0b1, "xx")]);
        assert_eq!(flags.names(0b1), None);
        let mut flags = Flags::default();
        flags.learn([(0b1, "rd wr")]);
        assert_eq!(flags.names(0b1), None);
    }
}
