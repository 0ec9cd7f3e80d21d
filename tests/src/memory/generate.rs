//! From random numbers to steps that work: each is chosen among what the model says is possible.

use super::op::flags::{
    MADV_COLLAPSE, MADV_DONTNEED, MADV_FREE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_HUGEPAGE,
    MADV_NOHUGEPAGE, MADV_REMOVE, MREMAP_DONTUNMAP, MREMAP_FIXED,
};
use super::op::{
    ARENA, Area, DATA, FILE_PAGES, Flavour, HEAP, HUGE, HUGE_PAGES, STACK, Step, What, ZONES,
};
use super::world::{Backing, Page, World};

/// Processes there are at most, the ended ones included.
pub(super) const PROCESSES: usize = 10;
/// And at one time.
const ALIVE: usize = 4;

const READ: u8 = 1;
const WRITE: u8 = 2;
const PROTECTIONS: [u8; 8] = [0, 0, 1, 3, 3, 3, 5, 7];

/// Random numbers from one seed.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ x >> 31) % sides as u64).unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }

    /// A length: often one, seldom up to the whole.
    fn length(&mut self, most: usize) -> usize {
        let most = match self.roll(8) {
            0..3 => 1,
            3..6 => most.min(16),
            6 => most.min(128),
            _ => most,
        };
        1 + self.roll(most)
    }

    /// Some of an area: a page, all, its whole huge pages, or anything.
    fn part(&mut self, area: Area) -> Area {
        let first = area.page.next_multiple_of(HUGE_PAGES);
        let huge = (area.page + area.count).saturating_sub(first) / HUGE_PAGES;
        if huge > 0 && self.roll(3) == 0 {
            let (page, count) = (first + self.roll(huge) * HUGE_PAGES, HUGE_PAGES);
            return Area {
                page,
                count,
                ..area
            };
        }
        if self.roll(4) == 0 {
            return area;
        }
        let count = self.length(area.count);
        let page = area.page + self.roll(area.count - count + 1);
        Area {
            page,
            count,
            ..area
        }
    }
}

/// One process about to take a step.
struct Actor<'a> {
    world: &'a World,
    number: usize,
    dice: Dice,
    host: Host,
}

/// What this machine has.
#[derive(Clone, Copy)]
pub(super) struct Host {
    /// Pages of hugetlbfs that may be used, in all.
    pub(super) huge: usize,
    /// `MADV_GUARD_INSTALL` (Linux 6.13).
    pub(super) guards: bool,
}

/// The steps that these random numbers stand for. Leaving some out leaves the others possible.
pub(super) fn script(seeds: &[u64], host: Host) -> Vec<Step> {
    let mut world = World::new();
    let mut script = Vec::new();
    for (number, seed) in seeds.iter().enumerate() {
        let mut dice = Dice(*seed);
        let alive: Vec<usize> = (0..world.processes.len())
            .filter(|process| world.processes[*process].alive)
            .collect();
        let actor = Actor {
            number: dice.pick(&alive),
            world: &world,
            dice,
            host,
        };
        let step = actor.choose();
        world.take(number, &step);
        script.push(step);
    }
    script
}

impl Actor<'_> {
    fn choose(mut self) -> Step {
        let (area, what) = loop {
            let choice = match self.dice.roll(100) {
                0..20 => self.fill().map(|area| (area, What::Write)),
                20..28 => self.poke(),
                28..33 => self.read(),
                33..40 => self.churn(),
                40..45 => self.load(),
                45..57 => Some(self.map()),
                57..60 => self.some(ARENA, |_| true).map(|area| (area, What::Unmap)),
                60..69 => self.remap(),
                69..75 => self.protect(),
                75..84 => self.drop_pages(),
                84..88 => self.guard(),
                88..92 => self.huge_hint(),
                92..95 => Some((
                    Area::default(),
                    What::Break(self.dice.roll(ZONES[HEAP].pages + 1)),
                )),
                95..96 => self.hugetlb(),
                _ => self.process(),
            };
            if let Some(choice) = choice {
                break choice;
            }
        };
        Step {
            actor: self.number,
            area,
            what,
        }
    }

    fn pages(&self, zone: usize) -> &[Option<Page>] {
        &self.world.processes[self.number].zones[zone]
    }

    /// A random one of the longest runs of mapped pages that all fit, and are of one mapping if so asked.
    fn run(
        &mut self,
        zone: usize,
        one_mapping: bool,
        fits: impl Fn(&Page) -> bool,
    ) -> Option<Area> {
        let mut runs: Vec<Area> = Vec::new();
        let mut last = None;
        for (number, page) in self.pages(zone).iter().enumerate() {
            let Some(page) = page.as_ref().filter(|page| fits(page)) else {
                last = None;
                continue;
            };
            match (last, runs.last_mut()) {
                (Some(mapping), Some(run)) if !one_mapping || mapping == page.mapping => {
                    run.count += 1;
                }
                _ => runs.push(Area {
                    zone,
                    page: number,
                    count: 1,
                }),
            }
            last = Some(page.mapping);
        }
        (!runs.is_empty()).then(|| self.dice.pick(&runs))
    }

    /// Some pages of such a run.
    fn some(&mut self, zone: usize, fits: impl Fn(&Page) -> bool) -> Option<Area> {
        let run = self.run(zone, false, fits)?;
        Some(self.dice.part(run))
    }

    /// Pages that this process may write now.
    fn writable(&mut self, freed: bool) -> Option<Area> {
        let zone = self
            .dice
            .pick(&[ARENA, ARENA, ARENA, ARENA, HEAP, DATA, STACK, HUGE]);
        let (world, number) = (self.world, self.number);
        let mut area = self.some(zone, |page| {
            let may = page.protection & WRITE != 0 && !page.guard && (freed || !page.freed);
            may && world.owns(number, page)
        })?;
        // All of a large area only now and then.
        if area.count > 64 && self.dice.roll(4) > 0 {
            area.count = 64;
        }
        Some(area)
    }

    /// Pages that are about to get new content, which the stack has beyond its end too.
    fn fill(&mut self) -> Option<Area> {
        if self.dice.roll(12) > 0 {
            return self.writable(true);
        }
        let page = self.dice.roll(ZONES[STACK].pages);
        let count = self.dice.length(ZONES[STACK].pages - page).min(32);
        Some(Area {
            zone: STACK,
            page,
            count,
        })
    }

    fn poke(&mut self) -> Option<(Area, What)> {
        let area = self.writable(false)?;
        Some((area, What::Poke(1 + self.dice.roll(511) as u64)))
    }

    fn read(&mut self) -> Option<(Area, What)> {
        let zone = self.dice.pick(&[ARENA, ARENA, HEAP, STACK]);
        let area = self.some(zone, |page| page.protection & READ != 0 && !page.guard)?;
        Some((area, What::Read))
    }

    fn churn(&mut self) -> Option<(Area, What)> {
        let area = self.writable(true)?;
        let writes = 1 << (12 + self.dice.roll(8));
        Some((area, What::Churn((writes / area.count) as u64)))
    }

    fn load(&mut self) -> Option<(Area, What)> {
        let area = self.writable(true)?;
        let page = self.dice.roll(FILE_PAGES - area.count.min(FILE_PAGES - 1));
        let direct = self.dice.roll(2) == 0;
        (area.count < FILE_PAGES - page).then_some((area, What::Load(page, direct)))
    }

    fn map(&mut self) -> (Area, What) {
        let size = ZONES[ARENA].pages;
        if self.dice.roll(4) == 0 {
            let page = self.dice.roll(size / HUGE_PAGES) * HUGE_PAGES;
            let area = Area {
                zone: ARENA,
                page,
                count: HUGE_PAGES,
            };
            return (area, What::Map(Flavour::Transparent, READ | WRITE));
        }
        let page = self.dice.roll(size);
        let count = self.dice.length((size - page).min(200));
        let file = Flavour::File(self.dice.roll(FILE_PAGES - count));
        let flavours = [
            Flavour::Anonymous,
            Flavour::Anonymous,
            file,
            file,
            Flavour::Shared,
        ];
        let flavour = self.dice.pick(&flavours);
        let protection = self.dice.pick(&PROTECTIONS[1..]);
        let area = Area {
            zone: ARENA,
            page,
            count,
        };
        (area, What::Map(flavour, protection))
    }

    fn remap(&mut self) -> Option<(Area, What)> {
        let size = ZONES[ARENA].pages;
        let run = self.run(ARENA, true, |_| true)?;
        let area = self.dice.part(run);
        let first = self.pages(ARENA)[area.page].as_ref()?;
        let backing = first.backing;
        let room = match backing {
            Backing::Anonymous => size,
            Backing::File(first) => FILE_PAGES - first,
            _ => area.count,
        };
        let count = match self.dice.roll(4) {
            0 => self.dice.length(area.count),
            1 => (area.count + self.dice.length(64)).min(room),
            _ => area.count,
        };
        if self.dice.roll(4) == 0 {
            // In place: growing needs free room behind the kernel's mapping.
            let behind = area.page + area.count..area.page + count.max(area.count);
            let fits = behind.end <= size && self.pages(ARENA)[behind].iter().all(Option::is_none);
            let what = What::Remap {
                to: area.page,
                count,
                flags: 0,
            };
            return (fits && count != area.count).then_some((area, what));
        }
        let to = if count >= HUGE_PAGES && self.dice.roll(2) == 0 {
            self.dice.roll(size / HUGE_PAGES) * HUGE_PAGES
        } else {
            self.dice.roll(size)
        };
        let apart = to + count <= area.page || area.page + area.count <= to;
        let leave = backing == Backing::Anonymous && count == area.count && self.dice.roll(4) == 0;
        let flags = if leave {
            MREMAP_DONTUNMAP
        } else {
            MREMAP_FIXED
        };
        (apart && to + count <= size).then_some((area, What::Remap { to, count, flags }))
    }

    fn protect(&mut self) -> Option<(Area, What)> {
        let area = self.some(ARENA, |_| true)?;
        Some((area, What::Protect(self.dice.pick(&PROTECTIONS))))
    }

    fn drop_pages(&mut self) -> Option<(Area, What)> {
        let (world, number) = (self.world, self.number);
        let (area, advice) = match self.dice.roll(10) {
            0..6 => {
                let zone = self
                    .dice
                    .pick(&[ARENA, ARENA, ARENA, ARENA, HEAP, STACK, DATA]);
                (self.some(zone, |_| true)?, MADV_DONTNEED)
            }
            6 => (
                whole_huge_pages(self.run(HUGE, false, |_| true)?),
                MADV_DONTNEED,
            ),
            7 | 8 => {
                let zone = self.dice.pick(&[ARENA, ARENA, HEAP, STACK]);
                let fits = |page: &Page| page.backing == Backing::Anonymous && !page.guard;
                (self.some(zone, fits)?, MADV_FREE)
            }
            _ => {
                let fits = |page: &Page| {
                    !page.is_private() && page.protection & WRITE != 0 && world.owns(number, page)
                };
                (self.some(ARENA, fits)?, MADV_REMOVE)
            }
        };
        Some((area, What::Advise(advice)))
    }

    fn guard(&mut self) -> Option<(Area, What)> {
        if !self.host.guards {
            return None;
        }
        let remove = self.dice.roll(3) == 0;
        let area = self.some(ARENA, |page| page.is_private() && (page.guard || !remove))?;
        let advice = if remove {
            MADV_GUARD_REMOVE
        } else {
            MADV_GUARD_INSTALL
        };
        Some((area, What::Advise(advice)))
    }

    fn huge_hint(&mut self) -> Option<(Area, What)> {
        let run = self.run(ARENA, false, Page::is_private)?;
        let area = self.dice.part(run);
        Some(match self.dice.roll(4) {
            0 => (area, What::Advise(MADV_HUGEPAGE)),
            1 => (area, What::Advise(MADV_NOHUGEPAGE)),
            _ => (area, What::Hint(MADV_COLLAPSE)),
        })
    }

    /// Makes, changes or removes a mapping of huge pages.
    fn hugetlb(&mut self) -> Option<(Area, What)> {
        if let Some(run) = self.run(HUGE, false, |_| true) {
            let area = whole_huge_pages(run);
            let what = match self.dice.roll(4) {
                0 => What::Unmap,
                _ => What::Protect(self.dice.pick(&[0, 1, 3, 3])),
            };
            return Some((area, what));
        }
        let room = self
            .host
            .huge
            .saturating_sub(self.world.huge_pages() / HUGE_PAGES);
        let most = room.min(ZONES[HUGE].pages / HUGE_PAGES);
        let count = HUGE_PAGES * (1 + self.dice.roll(most.max(1)));
        let area = Area {
            zone: HUGE,
            page: 0,
            count,
        };
        (most > 0).then_some((area, What::Map(Flavour::Hugetlb, READ | WRITE)))
    }

    fn process(&mut self) -> Option<(Area, What)> {
        let alive = self
            .world
            .processes
            .iter()
            .filter(|process| process.alive)
            .count();
        let all = self.world.processes.len();
        // A child's first write to a huge page needs another one.
        let huge = self.pages(HUGE).iter().any(Option::is_some);
        let what = match self.dice.roll(8) {
            0..6 if alive < ALIVE && all < PROCESSES && !huge => What::Fork(all),
            6 if self.number > 0 => What::Exit,
            7 => What::Exec,
            _ => return None,
        };
        Some((Area::default(), what))
    }
}

/// hugetlbfs knows no smaller parts.
fn whole_huge_pages(area: Area) -> Area {
    debug_assert!(area.page.is_multiple_of(HUGE_PAGES) && area.count.is_multiple_of(HUGE_PAGES));
    area
}
