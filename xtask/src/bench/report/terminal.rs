//! The short table.

use super::{Outcome, Report, Side};

/// Medians of the most important metrics; of ckptd's best way, how it stands to the best of the peers.
pub(crate) fn print(report: &Report) {
    let mut kind = "";
    for outcome in &report.scenarios {
        if outcome.kind != kind {
            kind = &outcome.kind;
            head(outcome);
        }
        print_one(outcome);
    }
    println!(
        "\nmedians; in brackets ckptd's best against the best of the peers, less than 1 is better"
    );
}

fn head(outcome: &Outcome) {
    print!("\n{:<42}", outcome.kind);
    for metric in &outcome.metrics[..outcome.plotted] {
        print!("{:>20}", metric.title);
    }
    println!();
}

fn print_one(outcome: &Outcome) {
    for (index, way) in outcome.ways.iter().enumerate() {
        let name = if index == 0 { &outcome.name } else { "" };
        print!("{name:<20}{:<22}", way.name);
        for metric in &outcome.metrics[..outcome.plotted] {
            let spread = way.spread(&metric.key);
            let mut text = spread.map_or("-".into(), |spread| metric.unit.show(spread.median));
            let own = outcome.best(Side::Ckptd, &metric.key).map(|(name, _)| name);
            let ratio = outcome
                .ratios()
                .into_iter()
                .find(|(found, _)| found.key == metric.key);
            if let (true, Some((_, ratio))) = (own == Some(&way.name), ratio) {
                text += &format!(" ({ratio:.2})");
            }
            print!("{text:>20}");
        }
        println!();
        if let Some(failure) = &way.failure {
            println!(
                "{:20}  could not: {}",
                "",
                failure.replace('\n', "\n                      ")
            );
        }
    }
}
