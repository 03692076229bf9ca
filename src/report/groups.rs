//! Groups of runs. Runs that differ only in their seed form one candidate. Candidates that differ
//! in a searched setting, such as a learning rate, form one group, and the best of them represents
//! it.

use super::run_results::RunResults;
use super::statistics::Estimate;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// A run and its place in an experiment.
#[derive(Clone, Debug)]
pub struct LabelledRun {
    /// Name of the run, unique in the experiment.
    pub id: String,
    /// The method of which its group is one size.
    pub family: String,
    /// What it represents: a method, with any settings that make it a different experiment.
    pub group: String,
    /// Searched settings, key path and value as written.
    pub tuned: BTreeMap<String, String>,
    /// Its seed.
    pub seed: u64,
    /// Whether it only helps to choose searched settings and is part of no figure.
    pub searches_only: bool,
    /// The run; none if it has not started.
    pub results: Option<RunResults>,
    /// Why it has no result, if it failed.
    pub failure: Option<String>,
    /// Whether the experiment's own rule leaves this run out, for instance because its learning
    /// rate was not the best on the first seed.
    pub not_needed: bool,
}

/// The last key of a path, which is how tables name a setting.
pub fn last_key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Runs that differ only in their seed.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Searched settings, key path and value as written.
    pub tuned: BTreeMap<String, String>,
    /// Finished runs by seed.
    pub runs: BTreeMap<u64, RunResults>,
    /// Finished runs by seed that only helped to choose.
    pub search_runs: BTreeMap<u64, RunResults>,
}

fn final_losses(runs: &BTreeMap<u64, RunResults>) -> BTreeMap<u64, f64> {
    runs.iter().filter_map(|(seed, run)| Some((*seed, run.last()?.loss))).collect()
}

impl Candidate {
    /// Final validation loss by seed.
    pub fn losses(&self) -> BTreeMap<u64, f64> {
        final_losses(&self.runs)
    }

    /// The losses by seed that it is chosen or not chosen by: of runs that only searched, or where
    /// there are none, of all.
    pub fn search_losses(&self) -> BTreeMap<u64, f64> {
        final_losses(if self.search_runs.is_empty() { &self.runs } else { &self.search_runs })
    }

    /// The searched settings in words: `learning_rate 0.01`.
    pub fn label(&self) -> String {
        self.tuned
            .iter()
            .map(|(key, value)| format!("{} {value}", last_key(key)))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Whether the search shows that the best of the searched values is a true optimum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// Nothing was searched, or only one value was tried: not tuned.
    None,
    /// The best lies inside its list, which has this many values.
    Inside(usize),
    /// The best lies at the end of its list, given as setting and value: not tuned, since a value
    /// beyond it may be better.
    Edge(String),
}

/// Candidates of one method.
#[derive(Clone, Debug)]
pub struct Group {
    /// What the runs represent.
    pub name: String,
    /// The method of which it is one size; groups of one family are joined in charts.
    pub family: String,
    /// One for each combination of searched settings, in the order of their first appearance.
    pub candidates: Vec<Candidate>,
    /// Index of the best.
    pub best: usize,
    /// How the best lies among the values tried.
    pub search: Search,
    /// Runs without a result, with the reason.
    pub missing: Vec<(String, String)>,
}

impl Group {
    /// The candidate that represents the group.
    pub fn chosen(&self) -> &Candidate {
        &self.candidates[self.best]
    }

    /// Mean and error of the final loss over the chosen candidate's seeds.
    pub fn loss(&self) -> Option<Estimate> {
        Estimate::of(&self.chosen().losses().into_values().collect::<Vec<_>>())
    }
}

/// Groups in the order of their first appearance.
pub fn group_runs(runs: Vec<LabelledRun>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for run in runs {
        let index = groups.iter().position(|group| group.name == run.group).unwrap_or_else(|| {
            groups.push(Group {
                name: run.group.clone(),
                family: run.family.clone(),
                candidates: Vec::new(),
                best: 0,
                search: Search::None,
                missing: Vec::new(),
            });
            groups.len() - 1
        });
        let group = &mut groups[index];
        let candidate = group
            .candidates
            .iter()
            .position(|candidate| candidate.tuned == run.tuned)
            .unwrap_or_else(|| {
                group.candidates.push(Candidate {
                    tuned: run.tuned.clone(),
                    runs: BTreeMap::new(),
                    search_runs: BTreeMap::new(),
                });
                group.candidates.len() - 1
            });
        match run.results {
            Some(results) if results.last().is_some() => {
                let candidate = &mut group.candidates[candidate];
                let runs = if run.searches_only {
                    &mut candidate.search_runs
                } else {
                    &mut candidate.runs
                };
                let reached = |results: &RunResults| results.last().map(|point| point.step);
                let folder = results.folder.clone();
                let other = match runs.entry(run.seed) {
                    Entry::Vacant(place) => {
                        place.insert(results);
                        continue;
                    }
                    Entry::Occupied(known) if reached(known.get()) >= reached(&results) => results,
                    Entry::Occupied(mut known) => known.insert(results),
                };
                let counts = if other.folder == folder { &runs[&run.seed].folder } else { &folder };
                let why = format!("the same run as {}, which stands for both", counts.display());
                group.missing.push((other.folder.display().to_string(), why));
            }
            _ if run.not_needed => {}
            Some(results) => {
                group.missing.push((run.id, run.failure.unwrap_or_else(|| unfinished(&results))))
            }
            None => {
                group.missing.push((run.id, run.failure.unwrap_or_else(|| "not begun".to_owned())))
            }
        }
    }
    for group in &mut groups {
        group.best = best(&group.candidates);
        group.search = search(&group.candidates, group.best);
    }
    groups
}

fn unfinished(results: &RunResults) -> String {
    let state = results.unfinished().unwrap_or_else(|| "no finite loss at its end".to_owned());
    let step = results.validations.last().map_or(0, |point| point.step);
    format!("not finished ({state}), last validated at step {step}")
}

/// The candidate with the smallest mean loss over the seeds that all finished candidates share, and
/// the first of equals. Candidates without a common seed are compared over the seeds they have.
fn best(candidates: &[Candidate]) -> usize {
    let losses: Vec<BTreeMap<u64, f64>> = candidates.iter().map(Candidate::search_losses).collect();
    let mut shared: Option<BTreeSet<u64>> = None;
    for seeds in losses
        .iter()
        .filter(|losses| !losses.is_empty())
        .map(|losses| losses.keys().copied().collect::<BTreeSet<_>>())
    {
        shared = Some(shared.map_or(seeds.clone(), |shared| &shared & &seeds));
    }
    let shared = shared.filter(|seeds| !seeds.is_empty());
    let score = |losses: &BTreeMap<u64, f64>| {
        let counted = losses
            .iter()
            .filter(|(seed, _)| shared.as_ref().is_none_or(|shared| shared.contains(seed)));
        let values: Vec<f64> = counted.map(|(_, loss)| *loss).collect();
        Estimate::of(&values).map_or(f64::INFINITY, |estimate| {
            if estimate.mean.is_finite() { estimate.mean } else { f64::INFINITY }
        })
    };
    let scores: Vec<f64> = losses.iter().map(score).collect();
    (0..scores.len()).min_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b))).unwrap_or(0)
}

/// Where the best lies among all values tried, including those that diverged.
fn search(candidates: &[Candidate], best: usize) -> Search {
    let mut count = 0;
    for (key, chosen) in &candidates[best].tuned {
        let mut values: Vec<f64> = candidates
            .iter()
            .filter_map(|candidate| candidate.tuned.get(key)?.parse().ok())
            .collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let Ok(chosen) = chosen.parse::<f64>() else { continue };
        if values.len() < 2 {
            continue;
        }
        count = count.max(values.len());
        if Some(&chosen) == values.first() || Some(&chosen) == values.last() {
            return Search::Edge(format!("{key} = {chosen}"));
        }
    }
    if count == 0 { Search::None } else { Search::Inside(count) }
}

#[cfg(test)]
mod tests {
    use super::super::run_results::tests_support::finished;
    use super::*;

    fn run(group: &str, rate: &str, seed: u64, loss: Option<f64>) -> LabelledRun {
        LabelledRun {
            id: format!("{group}-{rate}-{seed}"),
            family: group.into(),
            group: group.into(),
            tuned: BTreeMap::from([(
                "optimizer.dense.adamw.learning_rate".to_owned(),
                rate.to_owned(),
            )]),
            seed,
            searches_only: false,
            results: loss.map(|loss| finished(seed, loss)),
            failure: None,
            not_needed: false,
        }
    }

    #[test]
    fn the_best_rate_stands_for_a_method() {
        let runs = vec![
            run("dense", "1e-3", 1, Some(2.2)),
            run("dense", "3e-3", 1, Some(2.0)),
            run("dense", "6e-3", 1, Some(2.1)),
            run("dense", "3e-3", 2, Some(2.4)),
            run("spectral", "0.01", 1, Some(1.9)),
            run("spectral", "0.02", 1, None),
        ];
        let groups = group_runs(runs);
        assert_eq!(
            groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(),
            ["dense", "spectral"]
        );
        // 3e-3 is best on seed 1, which all rates share, though its mean over both seeds is 2.2.
        assert_eq!(groups[0].chosen().tuned["optimizer.dense.adamw.learning_rate"], "3e-3");
        assert_eq!(groups[0].search, Search::Inside(3));
        assert_eq!(groups[0].loss().map(|loss| (loss.count, loss.mean)), Some((2, 2.2)));
        assert_eq!(
            groups[1].search,
            Search::Edge("optimizer.dense.adamw.learning_rate = 0.01".into())
        );
        assert_eq!(groups[1].missing, [("spectral-0.02-1".to_owned(), "not begun".to_owned())]);
    }

    /// The rate that was best where it was searched stands for the method, whatever the reported
    /// seeds say, and its figures are those of the reported seeds alone.
    #[test]
    fn seeds_that_search_choose_and_are_not_reported() {
        let searching = |rate: &str, loss: f64| LabelledRun {
            searches_only: true,
            ..run("dense", rate, 9, Some(loss))
        };
        let groups = group_runs(vec![
            searching("1e-3", 2.2),
            searching("3e-3", 1.0),
            searching("6e-3", 2.1),
            run("dense", "1e-3", 1, Some(1.9)),
            run("dense", "3e-3", 1, Some(2.0)),
            run("dense", "3e-3", 2, Some(2.4)),
        ]);
        assert_eq!(groups[0].chosen().tuned["optimizer.dense.adamw.learning_rate"], "3e-3");
        assert_eq!(groups[0].loss().map(|loss| (loss.count, loss.mean)), Some((2, 2.2)));
        assert_eq!(groups[0].tuning(), "chosen of 3 on seeds apart");
    }

    /// Of a run that was done twice one counts, the one that came further, and the other is named.
    #[test]
    fn the_same_run_twice_counts_once() {
        let whole = || {
            let mut whole = run("dense", "0.1", 1, Some(2.0));
            whole.results.as_mut().expect("results").folder = "runs/whole".into();
            whole
        };
        let mut part = run("dense", "0.1", 1, Some(2.0));
        let results = part.results.as_mut().expect("results");
        results.folder = "runs/part".into();
        results.validations.pop();
        results.as_it_stands = true;
        let expected = "the same run as runs/whole, which stands for both";
        for runs in [vec![whole(), part.clone()], vec![part, whole()]] {
            let groups = group_runs(runs);
            assert_eq!(groups[0].loss().map(|loss| (loss.count, loss.mean)), Some((1, 2.0)));
            assert_eq!(groups[0].missing, [("runs/part".to_owned(), expected.to_owned())]);
        }
    }

    #[test]
    fn a_rate_that_diverged_still_bounds_the_list() {
        let mut diverged = run("dense", "1", 1, None);
        diverged.failure = Some("diverged".into());
        let groups = group_runs(vec![
            run("dense", "0.1", 1, Some(2.2)),
            run("dense", "0.3", 1, Some(2.0)),
            diverged,
        ]);
        assert_eq!(groups[0].search, Search::Inside(3));
        assert_eq!(groups[0].missing, [("dense-1-1".to_owned(), "diverged".to_owned())]);
    }
}
