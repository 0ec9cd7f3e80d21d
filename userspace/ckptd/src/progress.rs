//! How a long operation gets on: a bar on a terminal, a line now and then elsewhere, nothing when it is quick.

use crate::output::{size, tell};
use engine::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What takes no longer than this is not worth a word.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(5);

/// Shows progress on standard error.
pub(crate) struct Meter {
    begun: Instant,
    terminal: bool,
    state: Mutex<State>,
}

struct State {
    phase: String,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Meter {
    /// Its clock starts now.
    pub(crate) fn new() -> Self {
        let state = State {
            phase: String::new(),
            bar: None,
            last_line: None,
        };
        Self {
            begun: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            state: Mutex::new(state),
        }
    }

    /// A phase begins.
    pub(crate) fn phase(&self, name: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        name.clone_into(&mut state.phase);
        if let Some(bar) = &state.bar {
            bar.set_message(name.to_owned());
        }
    }

    /// `done` of `total` bytes are through.
    pub(crate) fn bytes(&self, done: u64, total: u64) {
        if self.begun.elapsed() < PATIENCE {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.terminal {
            let phase = state.phase.clone();
            let bar = state.bar.get_or_insert_with(|| new_bar(total, phase));
            bar.set_length(total);
            bar.set_position(done);
        } else if state
            .last_line
            .is_none_or(|last| last.elapsed() >= INTERVAL)
        {
            state.last_line = Some(Instant::now());
            tell(&format!(
                "{}: {} of {}\n",
                state.phase,
                size(done),
                size(total)
            ));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bar
        {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(total: u64, phase: String) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = "{msg:10} [{bar:40}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(phase);
    bar
}

impl Progress for Meter {
    fn phase(&self, name: &'static str) {
        Self::phase(self, name);
    }

    fn bytes(&self, done: u64, total: u64) {
        Self::bytes(self, done, total);
    }
}
