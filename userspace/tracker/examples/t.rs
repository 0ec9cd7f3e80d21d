use std::time::Instant;
fn main() {
    let t = Instant::now();
    let tracker = tracker::Tracker::load().unwrap_or_else(|e| {
        eprintln!("{e}");
        std::process::exit(1)
    });
    println!("load {:?}", t.elapsed());
    let pid: u32 = std::env::args().nth(1).unwrap().parse().unwrap();
    for _ in 0..3 {
        let t = Instant::now();
        let m = tracker.mappings(pid).unwrap();
        println!("{} mappings {:?}", m.len(), t.elapsed());
        let t = Instant::now();
        let n = m
            .iter()
            .filter(|m| tracker.flag_names(m.flags).is_some())
            .count();
        println!("{n} names {:?}", t.elapsed());
        if std::env::args().count() > 2 {
            for m in m {
                println!("{m:x?} {:?}", tracker.flag_names(m.flags));
            }
        }
    }
    let t = Instant::now();
    let s = std::fs::read(format!("/proc/{pid}/smaps")).unwrap();
    println!("smaps {} {:?}", s.len(), t.elapsed());
}
