//! `ckptd doctor`: what works here.

use crate::cli::Doctor;
use crate::doctor::{self, State};
use crate::failure::Failure;
use crate::output::{Style, print, print_json, styled};
use std::process::ExitCode;

/// Prints every fact.
pub(crate) fn execute(args: &Doctor) -> Result<ExitCode, Failure> {
    let facts = doctor::facts();
    if args.output.json {
        print_json(&facts);
    } else {
        let width = facts
            .iter()
            .map(|fact| fact.name.chars().count())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for fact in &facts {
            let (style, word) = match fact.state {
                State::Good => (Style::Green, "ok     "),
                State::Limited => (Style::Yellow, "limited"),
                State::Missing => (Style::Red, "missing"),
            };
            text += &format!(
                "{}  {:width$}  {}\n",
                styled(style, word),
                fact.name,
                fact.found
            );
            if fact.state != State::Good {
                let indent = " ".repeat(width + 11);
                text += &format!("{indent}{}\n", fact.meaning);
                if let Some(advice) = &fact.advice {
                    text += &format!("{indent}{advice}\n");
                }
            }
        }
        print(&text);
    }
    Ok(ExitCode::SUCCESS)
}
