//! The comparison as charts.

use super::budget::Spending;
use super::comparison::Comparison;
use super::groups::{Candidate, Group};
use super::run_results::RunResults;
use super::statistics::Estimate;
use crate::plot::{Axis, Bars, Chart, Mark, Series};

/// A chart with the sentence that says how to read it.
pub struct Explained {
    /// File name without ending.
    pub name: &'static str,
    /// How to read it.
    pub caption: String,
    /// Whether it needs the width of the page.
    pub wide: bool,
    /// The image.
    pub svg: String,
}

/// All charts there are data for.
pub fn charts(comparison: &Comparison) -> Vec<Explained> {
    let mut charts = vec![loss_curves(comparison), pareto(comparison)];
    charts.extend(learning_rates(comparison));
    charts.extend(ranks(comparison));
    charts.extend(spectra_over_time(comparison));
    charts.extend(spectra(comparison));
    charts.extend(times(comparison));
    charts
}

fn loss_curves(comparison: &Comparison) -> Explained {
    let panels: Vec<Chart> = Spending::ALL.iter().map(|spending| loss_curve(comparison, *spending)).collect();
    Explained {
        name: "loss",
        caption: "Validation loss over the run, mean over the seeds of each method's best learning rate; bars are standard errors. \
                  Lower and further left is better."
            .into(),
        wide: true,
        svg: crate::plot::figure("Validation loss against tokens, FLOPs and seconds", &panels, 3),
    }
}

fn loss_curve(comparison: &Comparison, spending: Spending) -> Chart {
    let series = groups(comparison).enumerate().map(|(colour, group)| {
        let runs: Vec<&RunResults> = group.chosen().runs.values().collect();
        let count = runs.iter().map(|run| run.validations.len()).min().unwrap_or(0);
        let at = |index: usize| {
            let points: Vec<_> = runs.iter().map(|run| run.validations[index]).collect();
            let x = Estimate::of(&points.iter().map(|point| spending.of(point)).collect::<Vec<_>>())?;
            let y = Estimate::of(&points.iter().map(|point| point.loss).collect::<Vec<_>>())?;
            Some(((x.mean, y.mean), y.standard_error.unwrap_or(0.0)))
        };
        let (points, errors) = (0..count).filter_map(at).unzip();
        Series::new(&group.name, Mark::LineWithDots, colour, points).with_errors(errors)
    });
    let label = match spending {
        Spending::Tokens => "training tokens",
        Spending::Flops => "training FLOPs, counted",
        Spending::Seconds => "seconds of training steps",
    };
    Chart {
        title: format!("Loss against {}", spending.name()),
        x: Axis::linear(label),
        y: Axis::linear("validation loss (nats per token)"),
        series: series.collect(),
    }
}

fn pareto(comparison: &Comparison) -> Explained {
    let mut series = Vec::new();
    let mut points: Vec<(f64, f64)> =
        comparison.groups.iter().map(|(_, s)| (s.parameters, s.loss.mean)).filter(|(p, _)| p.is_finite()).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut front: Vec<(f64, f64)> = Vec::new();
    for point in points {
        if front.last().is_none_or(|last| point.1 < last.1) {
            front.push(point);
        }
    }
    if front.len() > 1 {
        series.push(Series::new("best at its size or smaller", Mark::Dashed, 6, front));
    }
    for (colour, (group, summary)) in comparison.groups.iter().enumerate() {
        let point = vec![(summary.parameters, summary.loss.mean)];
        series.push(Series::new(&group.name, Mark::Dots, colour, point).with_errors(vec![summary.loss.standard_error.unwrap_or(0.0)]));
    }
    let chart = Chart {
        title: "Final loss against parameters".into(),
        x: Axis::log("parameters at the end of training"),
        y: Axis::linear("validation loss (nats per token)"),
        series,
    };
    Explained {
        name: "parameters",
        caption:
            "Final validation loss against the number of trained parameters; bars are standard errors over seeds. No method beats those \
                  on the dashed line at their size or smaller."
                .into(),
        wide: false,
        svg: chart.to_svg(),
    }
}

fn learning_rates(comparison: &Comparison) -> Option<Explained> {
    let tuned_rate = |candidate: &Candidate| {
        let (_, value) = candidate.tuned.iter().find(|(key, _)| key.ends_with("learning_rate"))?;
        value.parse::<f64>().ok()
    };
    let series: Vec<Series> = groups(comparison)
        .enumerate()
        .filter_map(|(colour, group)| {
            let at = |candidate: &Candidate| {
                let loss = Estimate::of(&candidate.losses().into_values().collect::<Vec<_>>())?;
                Some(((tuned_rate(candidate)?, loss.mean), loss.standard_error.unwrap_or(0.0)))
            };
            let mut found: Vec<_> = group.candidates.iter().filter_map(at).collect();
            found.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
            let (points, errors): (Vec<_>, Vec<_>) = found.into_iter().unzip();
            (points.len() > 1).then(|| Series::new(&group.name, Mark::LineWithDots, colour, points).with_errors(errors))
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let chart = Chart {
        title: "Final loss against learning rate".into(),
        x: Axis::log("peak learning rate"),
        y: Axis::linear("validation loss (nats per token)"),
        series,
    };
    let caption = "Each method over its list of learning rates. A curve that still falls at its end was not tuned; one that is flat \
                   near its lowest point is easy to tune.";
    Some(Explained { name: "learning-rates", caption: caption.into(), wide: false, svg: chart.to_svg() })
}

/// Panels over the layers, for one run of each of the first methods that have low-rank weights.
fn of_low_rank_runs<T>(comparison: &Comparison, most: usize, of: impl Fn(&Group, &RunResults) -> Option<T>) -> Vec<T> {
    let runs = groups(comparison).filter_map(|group| Some((group, group.chosen().runs.values().next()?)));
    runs.filter_map(|(group, run)| of(group, run)).take(most).collect()
}

/// A value of every low-rank weight at some steps, by name.
type OverTime = Vec<(u64, Vec<(String, f64)>)>;

/// One panel for each kind of weight, one line for each block, of the best method that has such values; none where none has.
fn per_layer(comparison: &Comparison, label: &str, of: impl Fn(&RunResults) -> Option<OverTime>) -> Option<(String, Vec<Chart>)> {
    let (name, values) = of_low_rank_runs(comparison, 1, |group, run| Some((group.name.clone(), of(run)?))).pop()?;
    let blocks = values.iter().flat_map(|(_, layers)| layers).filter_map(|(name, _)| block_of(name)).max()? + 1;
    let panel = |target: &str| {
        let ends = format!(".{target}");
        let line = |block: usize| {
            let is_weight = |name: &str| block_of(name) == Some(block) && name.ends_with(&ends);
            let at = |(step, layers): &(u64, Vec<(String, f64)>)| Some((*step as f64, layers.iter().find(|(name, _)| is_weight(name))?.1));
            Series::new(format!("block {block}"), Mark::Line, block, values.iter().filter_map(at).collect())
        };
        let series: Vec<Series> = (0..blocks).map(line).filter(|series| !series.points.is_empty()).collect();
        (!series.is_empty()).then(|| Chart { title: target.to_owned(), x: Axis::linear("step"), y: Axis::linear(label), series })
    };
    Some((name, targets().filter_map(panel).collect()))
}

/// The block of a weight named as in `transformer.h.3.attn.q`.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("transformer.h.")?.split('.').next()?.parse().ok()
}

fn ranks(comparison: &Comparison) -> Option<Explained> {
    let changing = |run: &RunResults| {
        let changes = run.ranks.windows(2).any(|pair| pair[0].layers != pair[1].layers);
        let at = |ranks: &super::run_results::RanksAt| {
            (ranks.step, ranks.layers.iter().map(|(name, rank)| (name.clone(), *rank as f64)).collect())
        };
        changes.then(|| run.ranks.iter().map(at).collect())
    };
    let (name, panels) = per_layer(comparison, "rank", changing)?;
    let caption = format!("{name}: rank of every low-rank weight over the run, by kind of weight, first seed.");
    Some(Explained { name: "ranks", caption, wide: true, svg: crate::plot::figure("Ranks over the run", &panels, 3) })
}

/// exp(−Σ p ln p) with p = σ² / Σσ² (Roy & Vetterli 2007): r for r equal singular values, 1 for a single one; none of zeros.
fn effective_rank(singular_values: &[f64]) -> Option<f64> {
    let total: f64 = singular_values.iter().map(|value| value * value).sum();
    let shares = singular_values.iter().map(|value| value * value / total).filter(|share| *share > 0.0);
    (total > 0.0).then(|| (-shares.map(|share| share * share.ln()).sum::<f64>()).exp())
}

fn spectra_over_time(comparison: &Comparison) -> Option<Explained> {
    let effective = |run: &RunResults| {
        let at = |spectrum: &super::run_results::SpectrumAt| {
            let layers = spectrum.layers.iter().filter_map(|(name, values)| Some((name.clone(), effective_rank(values)?)));
            (spectrum.step, layers.collect())
        };
        (run.spectra.len() > 1).then(|| run.spectra.iter().map(at).collect())
    };
    let (name, panels) = per_layer(comparison, "effective rank", effective)?;
    let caption = format!(
        "{name}: effective rank of every low-rank weight's singular values over the run, exp of the entropy of σ²/Σσ², by kind of weight, first \
         seed: as many as the rank when all are equal, fewer as some dominate."
    );
    Some(Explained { name: "effective-ranks", caption, wide: true, svg: crate::plot::figure("Effective ranks over the run", &panels, 3) })
}

fn spectra(comparison: &Comparison) -> Option<Explained> {
    let panels = of_low_rank_runs(comparison, 4, |group, run| {
        let last = run.spectra.last()?;
        let middle = last.layers.iter().filter_map(|(name, _)| block_of(name)).max()? / 2;
        let series: Vec<Series> = targets()
            .enumerate()
            .filter_map(|(colour, target)| {
                let prefix = format!("transformer.h.{middle}.");
                let ends = format!(".{target}");
                let (_, values) = last.layers.iter().find(|(name, _)| name.starts_with(&prefix) && name.ends_with(&ends))?;
                Some(Series::new(target, Mark::Line, colour, (1..).map(|i| i as f64).zip(values.iter().copied()).collect()))
            })
            .collect();
        (!series.is_empty()).then(|| Chart {
            title: format!("Block {middle}: {}", group.name),
            x: Axis::linear("index"),
            y: Axis::log("singular value"),
            series,
        })
    });
    if panels.is_empty() {
        return None;
    }
    let caption = "Singular values of one block's weights at the end of training, first seed. A flat spectrum uses all of its rank; one that \
                   falls steeply could do with less.";
    Some(Explained {
        name: "spectra",
        caption: caption.into(),
        wide: panels.len() > 1,
        svg: crate::plot::figure("Singular values at the end", &panels, 2),
    })
}

fn times(comparison: &Comparison) -> Option<Explained> {
    const PHASES: [(&str, &str); 5] = [
        ("data", "data"),
        ("forward", "forward"),
        ("backward", "backward"),
        ("optimizer", "dense optimizer"),
        ("linalg", "low-rank optimizer"),
    ];
    let bars: Vec<(String, Vec<f64>)> = groups(comparison)
        .map(|group| {
            let runs: Vec<&RunResults> = group.chosen().runs.values().collect();
            let of = |phase: &str| {
                let values: Vec<f64> = runs.iter().filter_map(|run| run.seconds_by_phase.get(phase)).map(|seconds| 1e3 * seconds).collect();
                Estimate::of(&values).map_or(0.0, |estimate| estimate.mean)
            };
            (group.name.clone(), PHASES.iter().map(|(phase, _)| of(phase)).collect())
        })
        .collect();
    if bars.iter().all(|(_, parts)| parts.iter().sum::<f64>() == 0.0) {
        return None;
    }
    let chart = Bars {
        title: "Where a training step's time went".into(),
        label: "milliseconds per step".into(),
        parts: PHASES.iter().map(|(_, name)| (*name).to_owned()).collect(),
        bars,
    };
    let caption = "Mean milliseconds of a training step by phase. Runs that shared the machine's cores with others are slower than alone.";
    Some(Explained { name: "times", caption: caption.into(), wide: true, svg: chart.to_svg() })
}

fn groups(comparison: &Comparison) -> impl Iterator<Item = &Group> {
    comparison.groups.iter().map(|(group, _)| group)
}

fn targets() -> impl Iterator<Item = &'static str> {
    crate::spec::Target::ALL.into_iter().map(crate::spec::Target::name)
}

#[cfg(test)]
mod tests {
    use super::{block_of, effective_rank};

    #[test]
    fn the_effective_rank_counts_equal_directions() {
        assert!((effective_rank(&[2.0; 5]).expect("a rank") - 5.0).abs() < 1e-12);
        assert!((effective_rank(&[3.0, 0.0]).expect("a rank") - 1.0).abs() < 1e-12);
        assert_eq!(effective_rank(&[0.0, 0.0]), None);
    }

    #[test]
    fn blocks_are_read_from_names() {
        assert_eq!(block_of("transformer.h.12.attn.q"), Some(12));
        assert_eq!(block_of("transformer.wte.weight"), None);
    }
}
