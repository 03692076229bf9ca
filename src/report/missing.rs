//! Runs that have no result, named with the reason: a few each by itself, many as a number.

/// Runs without a result that are named one by one for the same reason; of more, a count is given.
const NAMED: usize = 3;

/// Names of runs that have no result, each with the reason; many for one reason as one remark.
pub(super) fn missing<'a>(runs: impl Iterator<Item = &'a (String, String)>) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (id, why) in runs {
        match reasons.iter_mut().find(|(known, _)| known == why) {
            Some((_, ids)) => ids.push(id),
            None => reasons.push((why, vec![id])),
        }
    }
    let remarks = reasons.into_iter().flat_map(|(why, ids)| match ids.split_at_checked(NAMED) {
        Some((named, rest)) if !rest.is_empty() => {
            vec![format!("No result: {} and {} more: {why}.", named.join(", "), rest.len())]
        }
        _ => ids.into_iter().map(|id| format!("No result: {id}: {why}.")).collect(),
    });
    remarks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_runs_without_a_result_are_counted() {
        let run = |id: &str, why: &str| (id.to_owned(), why.to_owned());
        let mut runs = vec![run("a", "not begun"), run("b", "failed"), run("c", "not begun")];
        assert_eq!(
            missing(runs.iter()),
            ["No result: a: not begun.", "No result: c: not begun.", "No result: b: failed."]
        );
        runs.extend(["d", "e", "f"].map(|id| run(id, "not begun")));
        assert_eq!(
            missing(runs.iter()),
            ["No result: a, c, d and 2 more: not begun.", "No result: b: failed."]
        );
    }
}
