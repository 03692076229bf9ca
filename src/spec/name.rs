//! The one rule for names that become folders: of runs, sweeps and variants.

/// Longest name in bytes: file systems allow 255, and temporary files add to it.
const LONGEST: usize = 200;

/// What is wrong with a name; none if it can be a folder's on every system.
///
/// ```
/// assert_eq!(lrpt::spec::name_problem("gpt-small"), None);
/// assert!(lrpt::spec::name_problem("../elsewhere").is_some());
/// ```
pub fn name_problem(name: &str) -> Option<String> {
    let is_name = !name.is_empty()
        && name.len() <= LONGEST
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    (!is_name).then(|| {
        format!(
            "`{name}` is no name for a folder; use letters, digits, `-`, `_` and `.`, no `.` in \
             front, and at most {LONGEST} characters"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_folder() {
        for name in ["a", "gpt-small", "0.5_x", &"a".repeat(LONGEST)] {
            assert_eq!(name_problem(name), None, "{name}");
        }
        let long = "a".repeat(LONGEST + 1);
        let wrong =
            ["", ".", "..", "../../x", "/tmp/x", "a/b", "a\\b", "a b", ".hidden", "é", "a\n"];
        for name in wrong.into_iter().chain([long.as_str()]) {
            assert!(name_problem(name).is_some(), "{name:?}");
        }
    }
}
