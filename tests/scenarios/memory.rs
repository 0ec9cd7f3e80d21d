//! Random memory operations with checkpoints at random moments: whichever is restored, every page is as the model has it.
//!
//! `CKPTD_TEST_MEMORY_CASES` says how many cases a mode gets. A failed one is run again by
//! `CKPTD_TEST_MEMORY_SEED=SEED cargo test -p tests --test memory MODE`; with `CKPTD_TEST_MEMORY_SHRINK=N`, a smaller case
//! that fails too is looked for in N attempts.

#![allow(clippy::panic, clippy::unwrap_used)] // A scenario fails by panicking.

use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tests::memory::{Driver, Mode};

/// What happens to the program.
#[derive(Debug, Clone)]
enum Event {
    /// It takes so many steps, and is checkpointed as it stands still, in one of the mode's ways.
    Checkpoint(usize, Index),
    /// It is checkpointed as it takes so many steps.
    CheckpointRunning(usize, Index),
    /// The same, but ckptd is killed at a moment of it, or it fails there.
    CutOff(usize, Index, bool, Index),
    /// It is compared with the model, and runs on.
    Look,
    /// A checkpoint is deleted.
    Delete(Index),
    /// All but so many are deleted.
    Keep(usize),
    /// It is killed and goes on from a checkpoint, after so many steps compared with the model, or never.
    Restore(Index, Option<usize>),
}

/// One case: the random numbers that make the script, and what happens in between.
#[derive(Debug, Clone)]
struct Case {
    steps: Vec<u64>,
    events: Vec<Event>,
}

fn event() -> impl Strategy<Value = Event> {
    let look = prop_oneof![
        2 => proptest::strategy::Just(None),
        2 => proptest::strategy::Just(Some(0)),
        3 => (1..40usize).prop_map(Some),
    ];
    prop_oneof![
        6 => (0..60usize, any::<Index>()).prop_map(|(steps, way)| Event::Checkpoint(steps, way)),
        8 => (1..150usize, any::<Index>()).prop_map(|(steps, way)| Event::CheckpointRunning(steps, way)),
        3 => (0..100usize, any::<Index>(), any::<bool>(), any::<Index>())
            .prop_map(|(steps, way, kill, moment)| Event::CutOff(steps, way, kill, moment)),
        1 => proptest::strategy::Just(Event::Look),
        2 => any::<Index>().prop_map(Event::Delete),
        1 => (1..4usize).prop_map(Event::Keep),
        2 => (any::<Index>(), look).prop_map(|(which, look)| Event::Restore(which, look)),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let steps = proptest::collection::vec(any::<u64>(), 150..600);
    let events = proptest::collection::vec(event(), 4..14);
    (steps, events).prop_map(|(steps, events)| Case { steps, events })
}

/// The moments of a checkpoint at which it can be cut off. Not all come each time.
const MOMENTS: [&str; 14] = [
    "watched",
    "round 0 looked",
    "round 0 copied",
    "round 1 looked",
    "round 1 copied",
    "round 2 looked",
    "frozen",
    "captured",
    "looked",
    "forked",
    "held",
    "released",
    "written",
    "committed",
];

/// Runs one case to its end, and restores every checkpoint that is left.
fn check(mode: Mode, case: &Case) {
    let Some(mut driver) = Driver::start(mode, &case.steps) else {
        return;
    };
    for event in &case.events {
        let some = driver.checkpoints.len();
        match event {
            Event::Checkpoint(steps, way) => {
                driver.advance(*steps);
                driver.checkpoint(0, way.get::<&[&str]>(mode.checkpoint));
            }
            Event::CheckpointRunning(steps, way) => {
                driver.checkpoint(*steps, way.get::<&[&str]>(mode.checkpoint));
            }
            Event::CutOff(steps, way, kill, moment) => {
                let moment = moment.get::<&str>(&MOMENTS);
                let way = way.get::<&[&str]>(mode.checkpoint);
                if driver.cut_off(*steps, way, *kill, moment) && *kill {
                    driver.look("without ckptd");
                    if driver.checkpoints.is_empty() {
                        return;
                    }
                    driver.restore(driver.checkpoints.len() - 1);
                }
            }
            Event::Look => driver.look("running"),
            Event::Delete(which) if some > 1 => driver.delete(which.index(some)),
            Event::Keep(count) if some > 0 => driver.keep(*count),
            Event::Restore(which, look) if some > 0 => {
                driver.restore(which.index(some));
                if let Some(steps) = look {
                    if *steps > 0 {
                        driver.advance(*steps);
                    }
                    driver.look(&format!("{steps} steps after a restore"));
                }
            }
            Event::Delete(_) | Event::Keep(_) | Event::Restore(..) => {}
        }
    }
    for index in 0..driver.checkpoints.len() {
        driver.restore(index);
        driver.look(&format!(
            "checkpoint {} restored",
            driver.checkpoints[index].sequence
        ));
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")),
    )
}

/// As many cases as are asked for, each from a seed of its own.
fn cases(mode: Mode) {
    let given = number("CKPTD_TEST_MEMORY_SEED");
    let count = number("CKPTD_TEST_MEMORY_CASES").unwrap_or(if given.is_some() { 1 } else { 3 });
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = given.unwrap_or_else(|| clock().as_millis() as u64 % 1_000_000_000);
    let shrink = number("CKPTD_TEST_MEMORY_SHRINK").unwrap_or(0);
    for seed in first..first + count {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config {
            cases: 1,
            max_shrink_iters: u32::try_from(shrink).unwrap(),
            failure_persistence: None,
            ..Config::default()
        };
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let checked = TestRunner::new_with_rng(config, random).run(&case(), |case| {
            check(mode, &case);
            Ok(())
        });
        if let Err(error) = checked {
            let name = mode.name;
            let found = if shrink > 0 {
                format!("{error}\n")
            } else {
                String::new()
            };
            panic!(
                "{found}case {seed} fails; again:\n  CKPTD_TEST_MEMORY_SEED={seed} cargo test -p tests --test memory {name}"
            );
        }
    }
}

/// One test a mode: arguments of `run`, of each checkpoint, of `restore`.
macro_rules! modes {
    ($($name:ident: $run:expr, $checkpoint:expr, $restore:expr;)*) => {
        $(#[test]
        fn $name() {
            cases(Mode {
                name: stringify!($name),
                run: &$run,
                checkpoint: &$checkpoint,
                restore: &$restore,
            });
        })*
    };
}

const INCREMENTAL: &[&str] = &["--incremental"];
/// As of a job that writes faster than it is copied.
const FORKED: &[&str] = &["--incremental", "--max-freeze", "0s"];
const WHOLE: &[&str] = &[];

modes! {
    whole: [], [WHOLE], [];
    incremental: ["--incremental"], [INCREMENTAL, INCREMENTAL, INCREMENTAL, FORKED, WHOLE], ["--incremental"];
    lazy: [], [WHOLE], ["--lazy"];
    lazy_incremental: ["--incremental"], [INCREMENTAL, INCREMENTAL, FORKED], ["--lazy", "--incremental"];
}

/// At each moment of a checkpoint in turn, it is cut off: the program is unharmed, and the next checkpoint is right.
fn cut_off_at_every_moment(kill: bool) {
    let mode = Mode {
        name: "incremental",
        run: &["--incremental"],
        checkpoint: &[INCREMENTAL],
        restore: &["--incremental"],
    };
    let steps: Vec<u64> = (0..3000u64)
        .map(|step| step.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    let Some(mut driver) = Driver::start(mode, &steps) else {
        return;
    };
    driver.advance(60);
    driver.checkpoint(0, INCREMENTAL);
    for moment in MOMENTS {
        let way = if moment == "forked" {
            FORKED
        } else {
            INCREMENTAL
        };
        let came = (0..4).any(|_| driver.cut_off(10, way, kill, moment));
        if !came {
            tests::skip(moment, "this moment did not come in four checkpoints");
            continue;
        }
        driver.look(&format!("cut off at \"{moment}\""));
        driver.checkpoint(10, INCREMENTAL);
        driver.restore(driver.checkpoints.len() - 1);
        driver.look(&format!(
            "a checkpoint later than one cut off at \"{moment}\""
        ));
        driver.keep(2);
    }
}

#[test]
fn killed_at_every_moment() {
    cut_off_at_every_moment(true);
}

#[test]
fn failed_at_every_moment() {
    cut_off_at_every_moment(false);
}
