//! The model: what every page of every process must hold after given steps, by what Linux promises.

use super::op::flags::{
    MADV_DONTNEED, MADV_FREE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_REMOVE, MREMAP_DONTUNMAP,
};
use super::op::{Area, DATA, Flavour, HEAP, HUGE, STACK, Step, What, ZONES};
use super::page::Content;

/// What is under a private page's own content, or instead of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// Zeros.
    Anonymous,
    /// Zeros, in a huge page.
    Huge,
    /// A page of the file.
    File(usize),
    /// A page of the executable, which is zero.
    Image,
    /// A page of a shared object: its number and the page's.
    Shared(usize, usize),
}

/// A mapped page.
#[derive(Debug, Clone)]
pub(super) struct Page {
    /// Pages with the same number lie in one mapping of the kernel's, which may be larger.
    pub(super) mapping: usize,
    /// `PROT_*`
    pub(super) protection: u8,
    /// What it is a page of.
    pub(super) backing: Backing,
    /// Its own content; of shared pages the object has it.
    content: Content,
    /// Touching it raises SIGSEGV.
    pub(super) guard: bool,
    /// `MADV_FREE`d and not written since: it may be zero as well.
    pub(super) freed: bool,
}

impl Page {
    fn new(mapping: usize, protection: u8, backing: Backing) -> Self {
        let mut page = Self {
            mapping,
            protection,
            backing,
            content: Content::default(),
            guard: false,
            freed: false,
        };
        page.drop_content();
        page
    }

    /// Whether it has content of its own.
    pub(super) fn is_private(&self) -> bool {
        !matches!(self.backing, Backing::Shared(..))
    }

    fn drop_content(&mut self) {
        self.freed = false;
        self.content = match self.backing {
            Backing::File(page) => Content::of_file(page),
            _ => Content::default(),
        };
    }
}

/// A page of a shared object. One process at a time may change it, so that the steps of others need not be waited for.
#[derive(Debug, Clone)]
struct SharedPage {
    content: Content,
    owner: usize,
}

/// A process.
#[derive(Debug, Clone)]
pub(super) struct Process {
    /// By zone, the pages.
    pub(super) zones: Vec<Vec<Option<Page>>>,
    /// Whether it has not ended.
    pub(super) alive: bool,
}

impl Process {
    /// As it is after exec.
    fn new() -> Self {
        let mut zones: Vec<Vec<Option<Page>>> =
            ZONES.iter().map(|zone| vec![None; zone.pages]).collect();
        zones[DATA].fill(Some(Page::new(0, 3, Backing::Image)));
        Self { zones, alive: true }
    }
}

/// All processes, and what they share.
#[derive(Debug, Clone)]
pub(super) struct World {
    /// By number.
    pub(super) processes: Vec<Process>,
    objects: Vec<Vec<SharedPage>>,
    mappings: usize,
}

impl World {
    /// One process, which has just begun.
    pub(super) fn new() -> Self {
        Self {
            processes: vec![Process::new()],
            objects: Vec::new(),
            mappings: 0,
        }
    }

    /// The world in which process `p` has taken `reached[p]` steps of the script.
    pub(super) fn after(script: &[Step], reached: &[usize]) -> Self {
        let mut world = Self::new();
        for (number, step) in script.iter().enumerate() {
            if reached
                .get(step.actor)
                .is_some_and(|reached| number < *reached)
            {
                world.take(number, step);
            }
        }
        world
    }

    /// What a page holds.
    pub(super) fn content<'a>(&'a self, page: &'a Page) -> &'a Content {
        match page.backing {
            Backing::Shared(object, page) => &self.objects[object][page].content,
            _ => &page.content,
        }
    }

    /// Whether `process` may change what a shared page holds.
    pub(super) fn owns(&self, process: usize, page: &Page) -> bool {
        match page.backing {
            Backing::Shared(object, page) => self.objects[object][page].owner == process,
            _ => true,
        }
    }

    fn page(&mut self, actor: usize, zone: usize, page: usize) -> &mut Option<Page> {
        &mut self.processes[actor].zones[zone][page]
    }

    /// Does something to each mapped page of an area.
    fn each(&mut self, actor: usize, area: Area, mut change: impl FnMut(usize, &mut Page)) {
        for number in area.pages() {
            if let Some(page) = self.page(actor, area.zone, number) {
                change(number, page);
            }
        }
    }

    /// Changes the content of each page of an area.
    fn write(&mut self, actor: usize, area: Area, mut change: impl FnMut(usize, &mut Content)) {
        if area.zone == STACK {
            for page in &mut self.processes[actor].zones[STACK][area.page..] {
                page.get_or_insert_with(|| Page::new(0, 3, Backing::Anonymous));
            }
        }
        for number in area.pages() {
            let page = &mut self.processes[actor].zones[area.zone][number];
            let Some(page) = page else { continue };
            page.freed = false;
            change(
                number,
                match page.backing {
                    Backing::Shared(object, page) => &mut self.objects[object][page].content,
                    _ => &mut page.content,
                },
            );
        }
    }

    /// Gives the pages of an area, and those around it that were in the same mappings, mappings of their own.
    fn split(&mut self, actor: usize, area: Area) {
        let renumber = |world: &mut Self, first: usize, count: usize| {
            let mut last = None;
            let mut fresh = world.mappings;
            for page in world.processes[actor].zones[area.zone][first..first + count]
                .iter_mut()
                .map_while(Option::as_mut)
            {
                if last != Some(page.mapping) {
                    last = Some(page.mapping);
                    fresh += 1;
                }
                page.mapping = fresh;
            }
            world.mappings = fresh;
        };
        renumber(self, area.page, area.count);
        // What comes after was one mapping with the last page of the area: it must differ from what comes before.
        let after = area.page + area.count;
        let zone = &self.processes[actor].zones[area.zone];
        let mapping = zone
            .get(after)
            .and_then(|page| Some(page.as_ref()?.mapping));
        let tail = zone[after.min(zone.len())..]
            .iter()
            .take_while(|page| {
                page.as_ref().map(|page| page.mapping) == mapping && mapping.is_some()
            })
            .count();
        if tail > 0 {
            renumber(self, after, tail);
        }
    }

    fn map(&mut self, actor: usize, area: Area, flavour: Flavour, protection: u8) {
        self.mappings += 1;
        let mapping = self.mappings;
        if flavour == Flavour::Shared {
            let page = SharedPage {
                content: Content::default(),
                owner: actor,
            };
            self.objects.push(vec![page; area.count]);
        }
        for number in area.pages() {
            let offset = number - area.page;
            let backing = match flavour {
                Flavour::Anonymous | Flavour::Transparent => Backing::Anonymous,
                Flavour::File(first) => Backing::File(first + offset),
                Flavour::Shared => Backing::Shared(self.objects.len() - 1, offset),
                Flavour::Hugetlb => Backing::Huge,
            };
            *self.page(actor, area.zone, number) = Some(Page::new(mapping, protection, backing));
        }
        self.split(actor, area);
    }

    fn remap(&mut self, actor: usize, area: Area, to: usize, count: usize, flags: i32) {
        let zone = &mut self.processes[actor].zones[area.zone];
        let mut moved: Vec<Option<Page>> = area.pages().map(|page| zone[page].take()).collect();
        if flags == MREMAP_DONTUNMAP {
            for (page, left) in area.pages().zip(&moved) {
                let mut left = left.clone();
                if let Some(page) = &mut left {
                    page.drop_content();
                    page.guard = false;
                }
                zone[page] = left;
            }
        }
        moved.truncate(count);
        while moved.len() < count {
            let mut page = moved[0].clone();
            if let Some(page) = &mut page {
                if let Backing::File(first) = page.backing {
                    page.backing = Backing::File(first + moved.len());
                }
                page.drop_content();
                page.guard = false;
            }
            moved.push(page);
        }
        zone[to..to + count].clone_from_slice(&moved);
        self.split(actor, area);
        self.split(
            actor,
            Area {
                page: to,
                count,
                ..area
            },
        );
    }

    fn fork(&mut self, parent: usize, child: usize) {
        // Whoever is to fork an earlier one may not have come so far.
        let count = self.processes.len().max(child + 1);
        self.processes.resize_with(count, Process::new);
        self.processes[child] = self.processes[parent].clone();
        // Of what the parent could change, the child gets half.
        for page in self
            .objects
            .iter_mut()
            .flat_map(|object| object.iter_mut().step_by(2))
        {
            if page.owner == parent {
                page.owner = child;
            }
        }
    }

    /// Takes one step.
    ///
    /// # Panics
    /// When the step makes no sense.
    pub(super) fn take(&mut self, number: usize, step: &Step) {
        let Step { actor, area, what } = *step;
        let zone = area.zone;
        match what {
            What::Write | What::Churn(_) => self.write(actor, area, |page, content| {
                *content = Content::written(number, zone, page);
            }),
            What::Poke(word) => self.write(actor, area, |page, content| {
                content.poke(word, number, zone, page);
            }),
            What::Load(first, _) => self.write(actor, area, |page, content| {
                *content = Content::of_file(first + page - area.page);
            }),
            What::Read | What::Hint(_) => {}
            What::Map(flavour, protection) => self.map(actor, area, flavour, protection),
            What::Unmap => {
                self.processes[actor].zones[zone][area.pages()].fill(None);
                self.split(actor, area);
            }
            What::Remap { to, count, flags } => self.remap(actor, area, to, count, flags),
            What::Protect(protection) => {
                self.each(actor, area, |_, page| page.protection = protection);
                self.split(actor, area);
            }
            What::Advise(MADV_DONTNEED) => self.each(actor, area, |_, page| page.drop_content()),
            What::Advise(MADV_FREE) => self.each(actor, area, |_, page| page.freed = true),
            What::Advise(MADV_REMOVE) => {
                self.write(actor, area, |_, content| *content = Content::default());
            }
            What::Advise(MADV_GUARD_INSTALL) => self.each(actor, area, |_, page| {
                page.drop_content();
                page.guard = true;
            }),
            What::Advise(MADV_GUARD_REMOVE) => self.each(actor, area, |_, page| page.guard = false),
            What::Advise(_) => self.split(actor, area),
            What::Break(pages) => {
                let heap = &mut self.processes[actor].zones[HEAP];
                heap[pages..].fill(None);
                for page in &mut heap[..pages] {
                    page.get_or_insert_with(|| Page::new(0, 3, Backing::Anonymous));
                }
            }
            What::Fork(child) => self.fork(actor, child),
            What::Exit => {
                self.processes[actor] = Process {
                    alive: false,
                    ..Process::new()
                };
            }
            What::Exec => self.processes[actor] = Process::new(),
        }
    }

    /// Pages of hugetlbfs that all processes hold.
    pub(super) fn huge_pages(&self) -> usize {
        let held = |process: &Process| process.zones[HUGE].iter().flatten().count();
        self.processes.iter().map(held).sum()
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
