//! Names of jobs.

use crate::failure::{Exit, Failure};

/// A job's name made from the program's: what its path ends in, in letters that a name may have.
pub(crate) fn default_name(program: &str) -> String {
    let base = program
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = base
        .chars()
        .map(|c| if legal(c) { c } else { '_' })
        .take(48)
        .collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() {
        "job".to_owned()
    } else {
        name.to_owned()
    }
}

/// A job's name is that of its directory here and in the store. The store's own rule is the same or narrower.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    let why = match name {
        "" => "it is empty",
        _ if name.starts_with(['.', '-']) => "it begins with a dot or a dash",
        _ if name.len() > 128 => "it is longer than 128 bytes",
        _ if name.contains(|c: char| c == '/' || c.is_control()) => {
            "it has a slash or a control character"
        }
        _ => return Ok(()),
    };
    Err(Failure::new(format!("{name:?} cannot be the name of a job: {why}")).exit(Exit::Usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ["", ".", "..", "-x", "a/b", "a\n", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("heat-2.b").is_ok());
    }

    #[test]
    fn default_names_come_from_the_program() {
        let names = ["./numpy/run.sh", "/usr/bin/[", "a b", "..", "dir/"].map(default_name);
        assert_eq!(names, ["run.sh", "_", "a_b", "job", "dir"]);
    }
}
