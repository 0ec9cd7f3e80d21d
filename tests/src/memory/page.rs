//! What a page holds, as the model has it and as the program tells it.

/// Bytes in a page.
pub(super) const PAGE: usize = 4096;
const WORDS: u64 = (PAGE / 8) as u64;

/// Marks the stamps of the pages of the file that is mapped; the rest of the stamp is the page's number.
const OF_FILE: u64 = 1 << 63;

/// The content of a page: a stamp that determines all of it, or zeros, and single words written later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    stamp: Option<u64>,
    pokes: Vec<(u64, u64)>,
}

impl Content {
    /// A page filled in step `step`, which writes pages of `zone` and this is number `page` of it.
    pub(super) fn written(step: usize, zone: usize, page: usize) -> Self {
        Self::stamped(stamp(step, zone, page))
    }

    /// Page `page` of the file.
    pub(super) fn of_file(page: usize) -> Self {
        Self::stamped(OF_FILE | page as u64)
    }

    fn stamped(stamp: u64) -> Self {
        Self {
            stamp: Some(stamp),
            pokes: Vec::new(),
        }
    }

    /// One word is overwritten.
    pub(super) fn poke(&mut self, word: u64, step: usize, zone: usize, page: usize) {
        self.pokes.retain(|(at, _)| *at != word);
        self.pokes.push((word, stamp(step, zone, page)));
    }

    /// The words of the page.
    pub(super) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        (0..WORDS).map(|i| {
            let poked = self.pokes.iter().find(|(at, _)| *at == i);
            poked.map_or_else(
                || self.stamp.map_or(0, |stamp| word_of(stamp, i)),
                |(_, word)| *word,
            )
        })
    }

    /// The program computes the same.
    pub(super) fn hash(&self) -> u64 {
        let mix = |hash: u64, word: u64| {
            let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^ hash >> 32
        };
        self.words().fold(0, mix)
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&origin(self.stamp.unwrap_or(0)))?;
        for (word, stamp) in &self.pokes {
            write!(f, ", word {word} {}", origin(*stamp))?;
        }
        Ok(())
    }
}

/// The step, and the page that it wrote.
fn stamp(step: usize, zone: usize, page: usize) -> u64 {
    (step as u64 + 1) << 32 | (zone as u64) << 24 | page as u64
}

fn word_of(stamp: u64, i: u64) -> u64 {
    let x = stamp.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    if i == 0 {
        stamp
    } else {
        (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }
}

/// Where a page that begins with `word` comes from.
fn origin(word: u64) -> String {
    if word == 0 {
        "zeros".into()
    } else if word & OF_FILE != 0 {
        format!("page {} of the file", word & !OF_FILE)
    } else {
        let zone = usize::try_from(word >> 24 & 0xff).unwrap_or(usize::MAX);
        let name = super::op::ZONES.get(zone).map_or("?", |zone| zone.name);
        let (step, page) = ((word >> 32).wrapping_sub(1), word & 0xff_ffff);
        format!("written in step {step} as page {page} of {name}")
    }
}

/// What the program finds at a page: protection in the three lowest bits, and these.
pub(super) mod state {
    /// Something is mapped there.
    pub(in super::super) const MAPPED: u64 = 8;
    /// And shared.
    pub(in super::super) const SHARED: u64 = 16;
    /// Reading it raises SIGSEGV, though its protection allows it.
    pub(in super::super) const SEGV: u64 = 32;
    /// Reading it raises SIGBUS.
    pub(in super::super) const BUS: u64 = 64;
}

/// What the program finds at a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Bits of [`state`].
    pub(super) state: u64,
    /// As [`Content::hash`].
    pub(super) hash: u64,
    /// The first word.
    pub(super) first: u64,
}

impl Found {
    /// Reads a dump.
    pub(super) fn parse(bytes: &[u8]) -> Vec<Self> {
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        let parse = |record: &[u8]| Self {
            state: word(&record[..8]),
            hash: word(&record[8..16]),
            first: word(&record[16..]),
        };
        bytes.chunks_exact(24).map(parse).collect()
    }

    /// Whether nothing is mapped, or reading faults.
    pub(super) fn without_content(self) -> bool {
        self.state & state::MAPPED == 0 || self.state & (state::SEGV | state::BUS) != 0
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show_state(self.state))?;
        if self.without_content() {
            return Ok(());
        }
        write!(f, ", {}", origin(self.first))?;
        if self.first == 0 && self.hash != Content::default().hash() {
            f.write_str(" at its start only")?;
        }
        Ok(())
    }
}

/// As /proc/PID/maps has it.
pub(super) fn show_state(bits: u64) -> String {
    if bits & state::MAPPED == 0 {
        return "nothing mapped".into();
    }
    let letter = |bit, letter| if bits & bit != 0 { letter } else { '-' };
    let mut text: String = [letter(1, 'r'), letter(2, 'w'), letter(4, 'x')]
        .iter()
        .collect();
    text.push(if bits & state::SHARED != 0 { 's' } else { 'p' });
    if bits & state::SEGV != 0 {
        text.push_str(" raising SIGSEGV");
    }
    if bits & state::BUS != 0 {
        text.push_str(" raising SIGBUS");
    }
    text
}
