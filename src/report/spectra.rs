//! The ranks and singular values of one run's low-rank weights, now and over the run: numbers, a
//! table, charts.

use super::columns::{Column, fitted, wrapped};
use super::run_results::{RanksAt, RunResults, SpectrumAt, place_of};
use crate::plot::{Axis, Chart, Mark, Series, figure};
use crate::record::TruncationFigures;
use crate::spec::Target;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Name and singular values, in decreasing order, of each low-rank weight.
type Layers = [(String, Vec<f64>)];

/// A summary of a weight's singular values σ₁ ≥ … ≥ σᵣ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpectrumSummary {
    /// r.
    pub rank: usize,
    /// σ₁, the values a quarter, half and three quarters down the list, and σᵣ.
    pub quantiles: [f64; 5],
    /// exp(−Σ p ln p) with p = σ²/Σσ² (Roy & Vetterli 2007): r for r equal singular values, 1 for a
    /// single one; none if all are zero.
    pub effective_rank: Option<f64>,
    /// The smallest numbers of leading singular values that hold 90% and 99% of the energy Σσ².
    pub holding: [usize; 2],
}

impl SpectrumSummary {
    /// The summary of these singular values, given in decreasing order; none for an empty list.
    pub fn of(singular_values: &[f64]) -> Option<Self> {
        let rank = singular_values.len();
        let last = rank.checked_sub(1)?;
        let holding = [0.9, 0.99].map(|share| holding(singular_values, share));
        let quantiles = [0, 1, 2, 3, 4].map(|quarter| singular_values[(quarter * last + 2) / 4]);
        Some(Self { rank, quantiles, effective_rank: effective_rank(singular_values), holding })
    }
}

fn effective_rank(singular_values: &[f64]) -> Option<f64> {
    let total: f64 = singular_values.iter().map(|value| value * value).sum();
    let shares =
        singular_values.iter().map(|value| value * value / total).filter(|share| *share > 0.0);
    (total > 0.0).then(|| (-shares.map(|share| share * share.ln()).sum::<f64>()).exp())
}

/// The smallest number of leading singular values with this share of Σσ².
fn holding(singular_values: &[f64], share: f64) -> usize {
    let total: f64 = singular_values.iter().map(|value| value * value).sum();
    let mut sum = 0.0;
    let enough = singular_values.iter().position(|value| {
        sum += value * value;
        sum >= share * total
    });
    enough.map_or(singular_values.len(), |index| index + 1)
}

/// The last truncation of a weight in a run.
fn last_truncation<'a>(
    history: Option<&'a RunResults>,
    name: &str,
) -> Option<&'a TruncationFigures> {
    history?.truncations.iter().rev().find(|truncation| truncation.name == name)
}

/// A line for each low-rank weight: its singular values, how their energy is spread, and what the
/// last truncation of the weight discarded; for a terminal of this width, or with every column where
/// none is given.
pub fn spectra_table(now: &Layers, history: Option<&RunResults>, width: Option<usize>) -> String {
    let all: Vec<(&String, SpectrumSummary)> = now
        .iter()
        .filter_map(|(name, values)| Some((name, SpectrumSummary::of(values)?)))
        .collect();
    let numbers = |header: &str, rank: u8, of: &dyn Fn(&SpectrumSummary) -> String| {
        Column::numbers(header, rank, all.iter().map(|(_, summary)| of(summary)).collect())
    };
    let value =
        |index: usize| move |summary: &SpectrumSummary| format!("{:.4}", summary.quantiles[index]);
    let discarded = all.iter().map(|(name, _)| {
        last_truncation(history, name).map_or("–".to_owned(), |truncation| {
            format!("{:.2}% at step {}", 100.0 * truncation.relative_error.powi(2), truncation.step)
        })
    });
    let columns = [
        Column::text("weight", 0, all.iter().map(|(name, _)| (*name).clone()).collect()),
        numbers("rank", 0, &|summary| summary.rank.to_string()),
        numbers("σ max", 1, &value(0)),
        numbers("upper quarter", 5, &value(1)),
        numbers("median", 3, &value(2)),
        numbers("lower quarter", 5, &value(3)),
        numbers("σ min", 1, &value(4)),
        numbers("effective rank", 0, &|summary| {
            summary.effective_rank.map_or("–".to_owned(), |rank| format!("{rank:.1}"))
        }),
        numbers("90% of σ²", 2, &|summary| summary.holding[0].to_string()),
        numbers("99%", 2, &|summary| summary.holding[1].to_string()),
        Column::numbers("discarded", 4, discarded.collect()),
    ];
    let mut lines = fitted(&columns, width);
    lines.push(wrapped(
        "effective rank: exp of the entropy of σ²/Σσ²; 90%, 99%: leading singular values that hold \
         so much of Σσ²; discarded: share of Σσ² that the weight's last truncation by a rank policy \
         cut off",
        width,
    ));
    lines.join("\n")
}

/// The table's figures of each weight as JSON, with all singular values now and at each validation
/// of the run.
pub fn spectra_json(now: &Layers, history: Option<&RunResults>) -> Vec<Value> {
    let of = |(name, values): &(String, Vec<f64>)| {
        let summary = SpectrumSummary::of(values)?;
        let truncations = history.map(|run| {
            run.truncations.iter().filter(|truncation| truncation.name == *name).collect::<Vec<_>>()
        });
        let truncations = truncations.unwrap_or_default().into_iter().map(|truncation| {
            json!({
                "step": truncation.step,
                "relative_error": truncation.relative_error,
                "discarded_energy": truncation.discarded_energy,
            })
        });
        let at =
            |(step, values): (u64, &Vec<f64>)| json!({"step": step, "singular_values": values});
        Some(json!({
            "name": name, "rank": summary.rank, "singular_values": values, "effective_rank": summary.effective_rank,
            "holding_90_percent": summary.holding[0], "holding_99_percent": summary.holding[1],
            "truncations": truncations.collect::<Vec<_>>(),
            "history": history.into_iter().flat_map(|run| spectra_of(run, name)).map(at).collect::<Vec<_>>(),
        }))
    };
    now.iter().filter_map(of).collect()
}

/// The singular values of a weight at each validation.
fn spectra_of<'a>(run: &'a RunResults, name: &'a str) -> impl Iterator<Item = (u64, &'a Vec<f64>)> {
    run.spectra
        .iter()
        .filter_map(move |at| Some((at.step, &at.layers.iter().find(|(of, _)| of == name)?.1)))
}

/// One SVG image with a row for each kind of weight and a line for each block: the singular values
/// now; over the run the largest, median and smallest singular value and the effective rank; and
/// the rank, where ranks changed.
pub fn spectra_figure(title: &str, now: &Layers, history: Option<&RunResults>) -> String {
    let mut columns = vec![spectra_now(now)];
    if let Some(run) = history {
        columns.push(values_over_time(run));
        columns.extend(effective_ranks_over_time(run));
        columns.extend(ranks_over_time(run));
    }
    let in_row = |target: Target| {
        let of_target = |column: &Vec<(Target, Chart)>| {
            column.iter().find(|(of, _)| *of == target).map(|(_, chart)| chart.clone())
        };
        columns.iter().filter_map(of_target).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<Chart>> =
        Target::of_blocks().map(in_row).filter(|row| !row.is_empty()).collect();
    let width = rows.iter().map(Vec::len).max().unwrap_or(1);
    figure(title, &rows.concat(), width)
}

/// The singular values of every block, a panel for each kind of weight.
pub(super) fn spectra_now(now: &Layers) -> Vec<(Target, Chart)> {
    panels(blocks(now.iter().map(|(name, _)| name.as_str())), |target, block| {
        let values = weight(now, target, block)?;
        let points = (1..).map(f64::from).zip(values.iter().copied()).collect();
        Some(vec![Series::new(block_name(block), Mark::Line, block, points)])
    })
    .into_iter()
    .map(|(target, series)| {
        (
            target,
            chart(
                format!("{}: singular values", target.name()),
                "index",
                Axis::log("singular value"),
                series,
            ),
        )
    })
    .collect()
}

/// Largest, median and smallest singular value of every block at each validation, a panel for each
/// kind of weight.
pub(super) fn values_over_time(run: &RunResults) -> Vec<(Target, Chart)> {
    panels(
        blocks(run.spectra.iter().flat_map(|at| at.layers.iter().map(|(name, _)| name.as_str()))),
        |target, block| {
            let quantile = |index: usize, mark: Mark| {
                let at = |at: &SpectrumAt| {
                    Some((
                        at.step as f64,
                        SpectrumSummary::of(weight(&at.layers, target, block)?)?.quantiles[index],
                    ))
                };
                Series::new(
                    block_name(block),
                    mark,
                    block,
                    run.spectra.iter().filter_map(at).collect(),
                )
            };
            let series =
                vec![quantile(2, Mark::Line), quantile(0, Mark::Dashed), quantile(4, Mark::Dashed)];
            (!series[0].points.is_empty()).then_some(series)
        },
    )
    .into_iter()
    .map(|(target, series)| {
        let title = format!("{}: median, and largest and smallest dashed", target.name());
        (target, chart(title, "step", Axis::log("singular value"), series))
    })
    .collect()
}

/// Effective ranks over the run, a panel for each kind of weight; none unless they were recorded at
/// least twice.
pub fn effective_ranks_over_time(run: &RunResults) -> Option<Vec<(Target, Chart)>> {
    let of = |at: &SpectrumAt| {
        let layers = at
            .layers
            .iter()
            .filter_map(|(name, values)| Some((name.clone(), effective_rank(values)?)));
        (at.step, layers.collect())
    };
    (run.spectra.len() > 1)
        .then(|| over_time("effective rank", &run.spectra.iter().map(of).collect::<Vec<_>>()))
}

/// Ranks over the run, a panel for each kind of weight; `None` if they did not change.
///
/// Every change is recorded, so between two records a rank is that of the first: the lines are
/// steps.
pub fn ranks_over_time(run: &RunResults) -> Option<Vec<(Target, Chart)>> {
    let changes = run.ranks.windows(2).any(|pair| pair[0].layers != pair[1].layers);
    let of = |step: u64, at: &RanksAt| {
        (step, at.layers.iter().map(|(name, rank)| (name.clone(), *rank as f64)).collect())
    };
    let first = run.ranks.first().map(|at| of(at.step, at));
    let steps = run
        .ranks
        .windows(2)
        .flat_map(|pair| [of(pair[1].step, &pair[0]), of(pair[1].step, &pair[1])]);
    changes.then(|| over_time("rank", &first.into_iter().chain(steps).collect::<Vec<_>>()))
}

/// The singular values of the middle block, one line for each kind of weight; `None` if nothing is
/// low-rank.
pub fn spectra_of_middle_block(layers: &Layers) -> Option<Chart> {
    let middle = blocks(layers.iter().map(|(name, _)| name.as_str())).last()? / 2;
    let line = |(colour, target): (usize, Target)| {
        let values = weight(layers, target, middle)?;
        Some(Series::new(
            target.name(),
            Mark::Line,
            colour,
            (1..).map(f64::from).zip(values.iter().copied()).collect(),
        ))
    };
    let series: Vec<Series> = Target::of_blocks().enumerate().filter_map(line).collect();
    (!series.is_empty())
        .then(|| chart(format!("Block {middle}"), "index", Axis::log("singular value"), series))
}

/// Draws one value of every low-rank weight, given by name at some steps, as a panel for each kind
/// of weight with a line for each block.
fn over_time(label: &str, values: &[(u64, Vec<(String, f64)>)]) -> Vec<(Target, Chart)> {
    let names = values.iter().flat_map(|(_, layers)| layers.iter().map(|(name, _)| name.as_str()));
    panels(blocks(names), |target, block| {
        let at = |(step, layers): &(u64, Vec<(String, f64)>)| {
            Some((*step as f64, layers.iter().find(|(name, _)| is_weight(name, target, block))?.1))
        };
        let points: Vec<(f64, f64)> = values.iter().filter_map(at).collect();
        (!points.is_empty())
            .then(|| vec![Series::new(block_name(block), Mark::Line, block, points)])
    })
    .into_iter()
    .map(|(target, series)| {
        (target, chart(format!("{}: {label}", target.name()), "step", Axis::linear(label), series))
    })
    .collect()
}

/// The series of each kind of weight that has any, over these blocks.
fn panels(
    blocks: BTreeSet<usize>,
    series: impl Fn(Target, usize) -> Option<Vec<Series>>,
) -> Vec<(Target, Vec<Series>)> {
    let shown = shown(&blocks);
    let of = |target: Target| {
        (target, shown.iter().filter_map(|block| series(target, *block)).flatten().collect())
    };
    Target::of_blocks()
        .map(of)
        .filter(|(_, series): &(Target, Vec<Series>)| !series.is_empty())
        .collect()
}

fn chart(title: String, x: &str, y: Axis, series: Vec<Series>) -> Chart {
    Chart { title, x: Axis::linear(x), y, series }
}

/// At most as many blocks as there are colours: the first, the last, and others evenly spaced
/// between.
const MOST_BLOCKS: usize = 8;

fn shown(blocks: &BTreeSet<usize>) -> Vec<usize> {
    let all: Vec<usize> = blocks.iter().copied().collect();
    if all.len() <= MOST_BLOCKS {
        return all;
    }
    (0..MOST_BLOCKS).map(|index| all[index * (all.len() - 1) / (MOST_BLOCKS - 1)]).collect()
}

fn blocks<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<usize> {
    names.filter_map(|name| Some(place_of(name)?.0)).collect()
}

fn is_weight(name: &str, target: Target, block: usize) -> bool {
    place_of(name) == Some((block, target))
}

fn weight(layers: &Layers, target: Target, block: usize) -> Option<&[f64]> {
    layers
        .iter()
        .find(|(name, _)| is_weight(name, target, block))
        .map(|(_, values)| values.as_slice())
}

fn block_name(block: usize) -> String {
    format!("block {block}")
}

#[cfg(test)]
mod tests;
