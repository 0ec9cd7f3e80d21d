//! The program that carries the script out: led from gate to gate, checkpointed, killed, restored, asked what it finds.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::compare::compare;
use super::generate::{Host, PROCESSES, script};
use super::op::{FILE_PAGES, Step, What};
use super::page::{Content, Found};
use super::world::World;
use crate::{Job, Output, PATIENCE, Subject, run, skip, wait_at_most, wait_for};

const SUBJECT: Subject = Subject::new("random_memory");

/// How checkpoints are taken and restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Its name, which is that of its test.
    pub name: &'static str,
    /// Arguments of `ckptd run`.
    pub run: &'static [&'static str],
    /// Arguments of `ckptd checkpoint`, of which one list is drawn each time.
    pub checkpoint: &'static [&'static [&'static str]],
    /// Arguments of `ckptd restore`.
    pub restore: &'static [&'static str],
}

/// For each process, how many steps it has taken at least and at most.
type Bounds = Vec<(usize, usize)>;

/// A checkpoint in the store.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its number.
    pub sequence: u64,
    bounds: Bounds,
}

/// The program and its job.
#[derive(Debug)]
pub struct Driver {
    job: Job,
    mode: Mode,
    script: Vec<Step>,
    question: u64,
    limit: usize,
    /// Its ckptd was killed.
    orphaned: bool,
    /// By process, the steps it is known to have taken.
    reached: Vec<usize>,
    /// What there is to restore, oldest first.
    pub checkpoints: Vec<Taken>,
}

impl Driver {
    /// Starts it with the script that these random numbers stand for, of which any may be left out; none when this machine
    /// cannot.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start(mode: Mode, seeds: &[u64]) -> Option<Self> {
        let program = match SUBJECT.build() {
            Ok(program) => program,
            Err(why) => {
                skip(SUBJECT.name, &why);
                return None;
            }
        };
        let job = Job::prepare(SUBJECT.name);
        let mut driver = Self {
            job,
            mode,
            script: script(seeds, host()),
            question: 0,
            limit: 0,
            orphaned: false,
            reached: vec![0; PROCESSES],
            checkpoints: Vec::new(),
        };
        driver.make_files();
        let mut command = driver.job.ckptd("run");
        command.args(mode.run).arg("--name").arg(&driver.job.name);
        command.arg("--").arg(program).arg(&driver.job.work);
        driver.job.spawn(command);
        driver.job.await_ready(SUBJECT.name).then_some(driver)
    }

    fn make_files(&self) {
        let words = |content: Content| {
            content
                .words()
                .flat_map(u64::to_ne_bytes)
                .collect::<Vec<u8>>()
        };
        let base = (0..FILE_PAGES).flat_map(|page| words(Content::of_file(page)));
        let script = self.script.iter().enumerate();
        let script = script.flat_map(|(number, step)| step.encode(number));
        fs::write(self.path("base"), base.collect::<Vec<u8>>()).expect("base");
        fs::write(self.path("script"), script.collect::<Vec<u8>>()).expect("script");
        put(&self.path("gate"), 0, 0);
        self.forget_progress();
    }

    /// What processes said before they were killed.
    fn forget_progress(&self) {
        for process in 0..PROCESSES {
            for name in ["progress", "answer"] {
                put(&self.path(&format!("{name}.{process}")), 0, 0);
            }
            fs::write(self.path(&format!("dump.{process}")), "").expect("dump");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.job.work.join(name)
    }

    fn set_gate(&self) {
        put(&self.path("gate"), self.limit as u64, self.question);
    }

    /// The living processes of the program itself.
    fn alive(&self) -> usize {
        let ours = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == SUBJECT.name)
        };
        self.job.processes().iter().filter(|pid| ours(pid)).count()
    }

    /// Lets the program go on to step `limit`, and asks everybody who has come there; gives the steps each has taken.
    #[track_caller]
    fn ask(&mut self, limit: usize, dump: bool) -> BTreeMap<usize, usize> {
        self.limit = limit;
        self.question = (self.question / 2 + 1) * 2 + u64::from(dump);
        self.set_gate();
        let answers = wait_at_most(PATIENCE, || {
            // Answers first: who has answered forks no more.
            let mut answers = BTreeMap::new();
            for process in 0..PROCESSES {
                let (question, step) = get(&self.path(&format!("answer.{process}")));
                if question == self.question {
                    answers.insert(process, step as usize);
                }
            }
            if let Some(code) = self.job.ended()
                && !self.orphaned
            {
                panic!("the program ended: exit status {code}\n{}", self.describe());
            }
            let broken = self.job.output().contains("BROKEN");
            assert!(!broken, "an operation failed\n{}", self.describe());
            (!answers.is_empty() && answers.len() == self.alive()).then_some(answers)
        });
        answers.unwrap_or_else(|| {
            let steps = self.progress();
            panic!(
                "not every process comes to the gate at step {limit}; they took {steps:?}\n{}",
                self.describe()
            )
        })
    }

    /// Which steps every process has taken, by who answered and within `bounds`; what is impossible is a failure.
    #[track_caller]
    fn settle(&mut self, answers: &BTreeMap<usize, usize>, bounds: &[(usize, usize)]) {
        let mut reached = vec![0; PROCESSES];
        reached[0] = usize::MAX;
        for process in 0..PROCESSES {
            let find = |what| self.script.iter().position(|step| step.what == what);
            let born = if process == 0 {
                Some(0)
            } else {
                find(What::Fork(process)).map(|step| step + 1)
            };
            let parent = born
                .filter(|born| *born > 0)
                .map_or(0, |born| self.script[born - 1].actor);
            let born = born.filter(|born| reached[parent] >= *born);
            let exit = |step: &Step| step.actor == process && step.what == What::Exit;
            let end = self
                .script
                .iter()
                .position(exit)
                .map_or(usize::MAX, |step| step + 1);
            let (least, most) = bounds[process];
            let wrong = match (born, answers.get(&process)) {
                (None, None) => continue,
                (None, Some(_)) => "is there before it was forked".into(),
                (Some(_), None) if end <= most => {
                    reached[process] = end;
                    continue;
                }
                (Some(born), None) => format!("is lost; it was forked in step {}", born - 1),
                (Some(born), Some(step)) => {
                    reached[process] = *step;
                    if (least.max(born)..=most).contains(step) && *step < end {
                        continue;
                    }
                    format!("has taken {step} steps")
                }
            };
            panic!(
                "process {process} {wrong}; expected {least} to {most} steps\n{}",
                self.describe()
            );
        }
        self.reached = reached;
    }

    /// Lets the program take `steps` more steps from where the foremost process is.
    #[track_caller]
    pub fn advance(&mut self, steps: usize) {
        let limit = (self.foremost() + steps).min(self.script.len());
        let answers = self.ask(limit, false);
        self.settle(&answers, &[(limit, limit); PROCESSES]);
    }

    fn foremost(&self) -> usize {
        self.reached.iter().copied().max().unwrap_or(0)
    }

    /// Has every page of every process compared with the model, everybody standing still where they are.
    #[track_caller]
    pub fn look(&mut self, when: &str) {
        // The kernel refuses /proc/self/mem of a page that a lazy restore has yet to bring in: access_remote_vm() in mm/memory.c does not
        // wait for a userfaultfd.
        if self.mode.restore.contains(&"--lazy") {
            // `ckptd list` tells of it a moment after the restore only.
            let missing = Path::new("/run/ckptd").join(&self.job.name).join("lazy");
            wait_for("all of the memory", || (!missing.exists()).then_some(()));
        }
        let before = self.reached.clone();
        let answers = self.ask(0, true);
        self.settle(
            &answers,
            &before.iter().map(|step| (*step, *step)).collect::<Vec<_>>(),
        );
        let world = World::after(&self.script, &self.reached);
        let wrong: String = answers
            .keys()
            .filter_map(|process| {
                let dump = fs::read(self.path(&format!("dump.{process}"))).expect("dump");
                compare(&world, &self.script, *process, &Found::parse(&dump))
            })
            .collect();
        assert!(
            wrong.is_empty(),
            "{when}, steps {:?}:\n{wrong}{}",
            self.reached,
            self.describe()
        );
    }

    /// By process, the steps it said it has taken.
    fn progress(&self) -> Vec<usize> {
        let told = |process| get(&self.path(&format!("progress.{process}"))).0 as usize;
        (0..PROCESSES)
            .map(|process| told(process).max(self.reached[process]))
            .collect()
    }

    /// Takes a checkpoint with these arguments, and adds it to the list: with `steps` while the program is taking so many
    /// more.
    #[track_caller]
    pub fn checkpoint(&mut self, steps: usize, arguments: &[&str]) {
        let taken = self.try_checkpoint(steps, arguments);
        let (said, bounds) = taken;
        assert!(said.code() == 0, "{said}\n{}", self.describe());
        self.add(said, bounds);
        self.arrive();
    }

    /// The same, but it is cut off at a moment, by the death of ckptd or by a failure, unless that moment does not come. When ckptd is dead, a
    /// process whose parent has ended is no longer known to be part of the job.
    #[track_caller]
    pub fn cut_off(&mut self, steps: usize, arguments: &[&str], kill: bool, moment: &str) -> bool {
        let what = if kill { "kill" } else { "fail" };
        self.job.set_fault(&format!("{what} {moment}"));
        let (said, bounds) = self.try_checkpoint(steps, arguments);
        let came = self.job.clear_fault();
        assert!((said.code() != 0) == came, "{said}\n{}", self.describe());
        if !came {
            self.add(said, bounds);
        } else if moment == "committed" {
            let newest = self.job.manifests().pop().expect("a manifest");
            let number = newest
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            let sequence = number.expect("a sequence number");
            self.checkpoints.push(Taken { sequence, bounds });
        }
        self.orphaned |= came && kill;
        self.arrive();
        came
    }

    fn try_checkpoint(&mut self, steps: usize, arguments: &[&str]) -> (Output, Bounds) {
        self.limit = (self.foremost() + steps).min(self.script.len());
        // A dump that was asked for before is not for those who come to the gate now.
        self.question = (self.question / 2 + 1) * 2;
        self.set_gate();
        let least = self.progress();
        let said = self.job.checkpoint(&[arguments, &["--json"]].concat());
        // A step that is done may not have been told yet.
        let most = self
            .progress()
            .into_iter()
            .map(|step| (step + 1).min(self.limit));
        (said, least.into_iter().zip(most).collect())
    }

    fn add(&mut self, said: Output, bounds: Bounds) {
        let sequence = said.expect(0).json()["sequence"].as_u64();
        let sequence = sequence.expect("a sequence number");
        self.checkpoints.push(Taken { sequence, bounds });
    }

    /// Waits until everybody is at the gate.
    #[track_caller]
    fn arrive(&mut self) {
        let answers = self.ask(self.limit, false);
        self.settle(&answers, &[(self.limit, self.limit); PROCESSES]);
    }

    /// Kills the program and restores checkpoint number `index` of the list. It stands still then.
    #[track_caller]
    pub fn restore(&mut self, index: usize) {
        self.job.kill_all();
        self.orphaned = false;
        self.forget_progress();
        self.limit = 0;
        self.set_gate();
        let taken = self.checkpoints[index].clone();
        let at = taken.sequence.to_string();
        let mut arguments = self.mode.restore.to_vec();
        // What a ckptd that took long has said is in the program's standard error too.
        arguments.extend(["--files", "keep", "--at", &at]);
        self.job.restore(&arguments);
        let answers = self.ask(0, false);
        self.settle(&answers, &taken.bounds);
    }

    /// Deletes checkpoint number `index` of the list, and what only it needed.
    #[track_caller]
    pub fn delete(&mut self, index: usize) {
        let taken = self.checkpoints.remove(index);
        let name = format!("{:06}.ckpt", taken.sequence);
        let manifests = self.job.manifests();
        let is_it = |path: &&PathBuf| path.file_name().is_some_and(|file| file == name.as_str());
        let manifest = manifests.iter().find(is_it);
        let manifest = manifest.unwrap_or_else(|| panic!("no {name} in {manifests:?}"));
        fs::remove_file(manifest).expect("remove a manifest");
        let _ = self.prune(&[]);
    }

    /// Keeps the latest `count` checkpoints.
    #[track_caller]
    pub fn keep(&mut self, count: usize) {
        let _ = self.prune(&["--keep", &count.to_string()]);
        let gone = self.checkpoints.len().saturating_sub(count);
        self.checkpoints.drain(..gone);
    }

    #[track_caller]
    fn prune(&self, arguments: &[&str]) -> Output {
        let mut command = self.job.ckptd("prune");
        run(command.args(arguments).arg(&self.job.name)).expect(0)
    }

    fn describe(&self) -> String {
        let list: Vec<String> = self
            .checkpoints
            .iter()
            .map(|taken| format!("  checkpoint {}: {:?}\n", taken.sequence, taken.bounds))
            .collect();
        format!("mode {}\n{}{}", self.mode.name, list.concat(), self.job)
    }
}

fn host() -> Host {
    let release = nix::sys::utsname::uname().expect("uname");
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|word| word.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Host {
        huge: huge_pages(),
        guards: version >= (6, 13),
    }
}

/// Huge pages of hugetlbfs that a test may use: more than one test may run.
fn huge_pages() -> usize {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let text = fs::read_to_string(path).unwrap_or_default();
    let pages: usize = text.trim().parse().unwrap_or(0);
    (pages / 6).min(2)
}

const CHECK: u64 = 0x5a5a_5a5a_5a5a_5a5a;

/// Overwrites two numbers, with a third that shows whether they belong together.
fn put(path: &Path, a: u64, b: u64) {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let words = [a, b, a ^ b ^ CHECK];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    file.expect("a small file")
        .write_all_at(&bytes, 0)
        .expect("written");
}

/// Reads what [`put`] or the program wrote.
fn get(path: &Path) -> (u64, u64) {
    wait_for("two numbers", || {
        let bytes = fs::read(path).expect("a small file");
        let word = |at: usize| {
            bytes
                .get(at..at + 8)?
                .try_into()
                .ok()
                .map(u64::from_ne_bytes)
        };
        let (a, b) = (word(0)?, word(8)?);
        (word(16)? == a ^ b ^ CHECK).then_some((a, b))
    })
}
