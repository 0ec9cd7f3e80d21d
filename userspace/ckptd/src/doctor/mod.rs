//! What this kernel and user can do: every probe of the host that the commands make.
//!
//! A probe tries the thing itself where that does no harm, and else reads what the kernel says about it.

mod memory;
mod rights;
mod system;

use serde::Serialize;

/// How well something works here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Good,
    /// Some jobs, or some speed, are lost.
    Limited,
    /// Checkpoints or restores fail without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fact {
    /// What it is.
    pub name: &'static str,
    /// How well it works.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What that means for the user.
    pub meaning: &'static str,
    /// How to get it, where it is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Fact {
    fn new(
        name: &'static str,
        state: State,
        found: impl Into<String>,
        meaning: &'static str,
    ) -> Self {
        Self {
            name,
            state,
            found: found.into(),
            meaning,
            advice: None,
        }
    }

    /// Says how to get it, when it is not as it should be.
    fn advice(mut self, advice: impl Into<String>) -> Self {
        if self.state != State::Good {
            self.advice = Some(advice.into());
        }
        self
    }
}

/// Everything, the most important first.
pub(crate) fn facts() -> Vec<Fact> {
    let rights = rights::Rights::of_self();
    let mut facts = system::base();
    facts.extend(rights::facts(&rights));
    facts.extend(memory::facts(&rights));
    facts.extend(system::surroundings());
    facts
}

/// A small file of /proc or /sys, without the line feed at its end.
fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim_end().to_owned())
}

/// A number in a small file of /proc or /sys.
fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_good_comes_with_advice() {
        for fact in facts() {
            assert!(
                !fact.found.is_empty() && !fact.meaning.is_empty(),
                "{fact:?}"
            );
            assert_eq!(fact.advice.is_some(), fact.state != State::Good, "{fact:?}");
        }
    }
}
