//! The comparison as charts.

use super::budget::Spending;
use super::comparison::Comparison;
use super::frontier::frontier;
use super::groups::{Candidate, Group};
use super::run_results::RunResults;
use super::spectra::{effective_ranks_over_time, ranks_over_time, spectra_of_middle_block};
use super::statistics::Estimate;
use crate::plot::{Axis, Bars, Chart, Mark, Series};
use crate::spec::Target;

/// A chart with a sentence that says how to read it.
pub struct Explained {
    /// File name without its extension.
    pub name: &'static str,
    /// How to read it.
    pub caption: String,
    /// Whether it needs the width of the page.
    pub wide: bool,
    /// The image.
    pub svg: String,
    /// Its charts one by one, which a page can lay out as its width allows.
    pub panels: Vec<String>,
}

impl Explained {
    /// Charts in rows of this many, which belong together.
    pub(super) fn of_panels(
        name: &'static str,
        caption: String,
        title: &str,
        charts: &[Chart],
        columns: usize,
    ) -> Self {
        let svg = crate::plot::figure(title, charts, columns);
        let panels = charts.iter().map(Chart::to_svg).collect();
        Self { name, caption, wide: charts.len() > 1, svg, panels }
    }
}

/// All charts for which there are data.
pub fn charts(comparison: &Comparison) -> Vec<Explained> {
    let mut charts = vec![loss_curves(comparison), frontier(comparison)];
    charts.extend(learning_rates(comparison));
    charts.extend(ranks(comparison));
    charts.extend(effective_ranks(comparison));
    charts.extend(spectra(comparison));
    charts.extend(times(comparison));
    charts
}

fn loss_curves(comparison: &Comparison) -> Explained {
    let panels: Vec<Chart> =
        Spending::ALL.iter().map(|spending| loss_curve(comparison, *spending)).collect();
    let caption = "Validation loss over the run, mean over the seeds of each method's best learning rate; bars are standard errors. \
                   Lower and further left is better.";
    let title = "Validation loss against tokens, FLOPs and seconds";
    Explained::of_panels("loss", caption.into(), title, &panels, 3)
}

fn loss_curve(comparison: &Comparison, spending: Spending) -> Chart {
    let series = groups(comparison).enumerate().map(|(look, group)| {
        let runs: Vec<&RunResults> = group.chosen().runs.values().collect();
        let count = runs.iter().map(|run| run.validations.len()).min().unwrap_or(0);
        let at = |index: usize| {
            let points: Vec<_> = runs.iter().map(|run| run.validations[index]).collect();
            let x =
                Estimate::of(&points.iter().map(|point| spending.of(point)).collect::<Vec<_>>())?;
            let y = Estimate::of(&points.iter().map(|point| point.loss).collect::<Vec<_>>())?;
            Some(((x.mean, y.mean), y.standard_error.unwrap_or(0.0)))
        };
        let (points, errors) = (0..count).filter_map(at).unzip();
        Series::new(&group.name, Mark::LineWithDots, look, points).with_errors(errors)
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

fn learning_rates(comparison: &Comparison) -> Option<Explained> {
    let tuned_rate = |candidate: &Candidate| {
        let (_, value) = candidate.tuned.iter().find(|(key, _)| key.ends_with("learning_rate"))?;
        value.parse::<f64>().ok()
    };
    let series: Vec<Series> = groups(comparison)
        .enumerate()
        .filter_map(|(look, group)| {
            let at = |candidate: &Candidate| {
                let losses = candidate.search_losses();
                let loss = Estimate::of(&losses.into_values().collect::<Vec<_>>())?;
                Some(((tuned_rate(candidate)?, loss.mean), loss.standard_error.unwrap_or(0.0)))
            };
            let mut found: Vec<_> = group.candidates.iter().filter_map(at).collect();
            found.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
            let (points, errors): (Vec<_>, Vec<_>) = found.into_iter().unzip();
            (points.len() > 1).then(|| {
                Series::new(&group.name, Mark::LineWithDots, look, points).with_errors(errors)
            })
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
    Some(Explained::of_panels("learning-rates", caption.into(), "", &[chart], 1))
}

/// One run of each of the first `most` methods that have such a chart: the name of the method and
/// what `of` makes of the run.
fn of_low_rank_runs<T>(
    comparison: &Comparison,
    most: usize,
    of: impl Fn(&RunResults) -> Option<T>,
) -> Vec<(String, T)> {
    let runs = groups(comparison)
        .filter_map(|group| Some((group.name.clone(), of(group.chosen().runs.values().next()?)?)));
    runs.take(most).collect()
}

fn ranks(comparison: &Comparison) -> Option<Explained> {
    let (name, panels) = of_low_rank_runs(comparison, 1, ranks_over_time).pop()?;
    let caption = format!(
        "{name}: rank of every low-rank weight over the run, by kind of weight, first seed."
    );
    Some(Explained::of_panels("ranks", caption, "Ranks over the run", &charts_of(panels), 3))
}

fn effective_ranks(comparison: &Comparison) -> Option<Explained> {
    let (name, panels) = of_low_rank_runs(comparison, 1, effective_ranks_over_time).pop()?;
    let caption = format!(
        "{name}: effective rank of every low-rank weight's singular values over the run, exp of the entropy of σ²/Σσ², by kind of weight, first \
         seed: as many as the rank when all are equal, fewer as some dominate."
    );
    let (title, charts) = ("Effective ranks over the run", charts_of(panels));
    Some(Explained::of_panels("effective-ranks", caption, title, &charts, 3))
}

pub(super) fn charts_of(panels: Vec<(Target, Chart)>) -> Vec<Chart> {
    panels.into_iter().map(|(_, chart)| chart).collect()
}

fn spectra(comparison: &Comparison) -> Option<Explained> {
    let panels: Vec<Chart> =
        of_low_rank_runs(comparison, 4, |run| spectra_of_middle_block(&run.spectra.last()?.layers))
            .into_iter()
            .map(|(name, chart)| Chart { title: format!("{}: {name}", chart.title), ..chart })
            .collect();
    if panels.is_empty() {
        return None;
    }
    let caption = "Singular values of one block's weights at the end of training, first seed. A flat spectrum uses all of its rank; one that \
                   falls steeply could do with less.";
    let title = "Singular values at the end";
    Some(Explained::of_panels("spectra", caption.into(), title, &panels, 2))
}

fn times(comparison: &Comparison) -> Option<Explained> {
    let rows = groups(comparison).map(|group| {
        let runs: Vec<&RunResults> = group.chosen().runs.values().collect();
        (group.name.clone(), runs)
    });
    times_of(&rows.collect::<Vec<_>>())
}

/// Mean times of a step by phase, a bar for each name over its runs; none where none were measured.
pub(super) fn times_of(rows: &[(String, Vec<&RunResults>)]) -> Option<Explained> {
    const PHASES: [(&str, &str); 5] = [
        ("data", "data"),
        ("forward", "forward"),
        ("backward", "backward"),
        ("optimizer", "dense optimizer"),
        ("linalg", "low-rank optimizer"),
    ];
    let bars: Vec<(String, Vec<f64>)> = rows
        .iter()
        .map(|(name, runs)| {
            let of = |phase: &str| {
                let values: Vec<f64> = runs
                    .iter()
                    .filter_map(|run| run.seconds_by_phase.get(phase))
                    .map(|seconds| 1e3 * seconds)
                    .collect();
                Estimate::of(&values).map_or(0.0, |estimate| estimate.mean)
            };
            (name.clone(), PHASES.iter().map(|(phase, _)| of(phase)).collect())
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
    let (caption, svg) = (caption.into(), chart.to_svg());
    Some(Explained { name: "times", caption, wide: false, panels: vec![svg.clone()], svg })
}

fn groups(comparison: &Comparison) -> impl Iterator<Item = &Group> {
    comparison.groups.iter().map(|(group, _)| group)
}
