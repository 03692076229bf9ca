//! The report: a self-contained page, and Markdown with its charts beside it.

use super::charts::{Explained, charts};
use super::comparison::Comparison;
use super::table::{html_table, markdown_table, markdown_text, remarks};
use crate::error::Failure;
use crate::figures::count;
use crate::fs::{refuse_link, write_atomic};
use crate::plot::escape;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Writes `report.html`, `report.md` and the charts as SVG into a folder; returns the page's path.
///
/// # Errors
/// If a file that would be written is a link, or cannot be written.
pub fn write_report(comparison: &Comparison, folder: &Path) -> Result<PathBuf> {
    let charts = charts(comparison);
    let names = charts.iter().map(|chart| format!("{}.svg", chart.name));
    let files = names.chain(["report.md".into(), "report.html".into()]);
    for path in files.map(|name| folder.join(name)) {
        refuse_link(&path).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    std::fs::create_dir_all(folder)
        .map_err(|error| anyhow::anyhow!("cannot create {}: {error}", folder.display()))?;
    for chart in &charts {
        write_atomic(&folder.join(format!("{}.svg", chart.name)), chart.svg.as_bytes())?;
    }
    write_atomic(&folder.join("report.md"), markdown(comparison, &charts).as_bytes())?;
    let page = folder.join("report.html");
    write_atomic(&page, html(comparison, &charts).as_bytes())?;
    Ok(page)
}

/// How the runs were made, one fact per line.
fn protocol(comparison: &Comparison) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(run) =
        comparison.groups.iter().find_map(|(group, _)| group.chosen().runs.values().next())
    {
        let (plan, data) = (&run.plan, &run.data);
        lines.push(format!(
            "Text: {}; {} training and {} validation tokens; tokenizer: {}; content {}.",
            data.source,
            count(data.train_tokens as f64),
            count(data.val_tokens as f64),
            data.tokenizer,
            &data.content_hash[..data.content_hash.len().min(12)]
        ));
        let model = &plan.model;
        lines.push(format!(
            "Network: {} blocks, {} heads, width {}, block size {}; validation on {} tokens, the \
             same for every run.",
            model.n_layer, model.n_head, model.n_embd, model.block_size, plan.eval.tokens
        ));
        lines.push(format!("Machine: {}.", run.machine));
    }
    for (group, summary) in &comparison.groups {
        let (tried, seeds) = (group.candidates.len(), summary.loss.count);
        let chosen = group.chosen().label();
        let chosen = if chosen.is_empty() { String::new() } else { format!(", the best {chosen}") };
        lines.push(format!(
            "{}: {tried} setting{} tried{chosen}; {seeds} seed{}.",
            group.name,
            plural(tried),
            plural(seeds)
        ));
        for (seed, run) in &group.chosen().runs {
            if run.rollbacks + run.skipped_steps > 0 {
                lines.push(format!(
                    "{}, seed {seed}: steps diverged; {} rollback{}, {} step{} left out.",
                    group.name,
                    run.rollbacks,
                    plural(run.rollbacks as usize),
                    run.skipped_steps,
                    plural(run.skipped_steps as usize)
                ));
            }
        }
    }
    lines
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// The main finding, in one sentence.
fn headline(comparison: &Comparison) -> String {
    let (best, summary) = &comparison.groups[0];
    let loss = super::table::estimate(&summary.loss);
    let baseline =
        comparison.baseline.filter(|index| *index != 0).map(|index| &comparison.groups[index]);
    match (
        baseline,
        summary.difference.and_then(|difference| Some((difference, difference.half_interval?))),
    ) {
        (Some((group, base)), Some((difference, half))) => format!(
            "Lowest validation loss: {} with {loss}, {:+.4} ± {half:.4} from {} (95% interval, \
             paired by seed) with {:.2} of its parameters.",
            best.name,
            difference.estimate.mean,
            group.name,
            summary.parameters / base.parameters
        ),
        _ => format!("Lowest validation loss: {} with {loss}.", best.name),
    }
}

fn markdown(comparison: &Comparison, charts: &[Explained]) -> String {
    let list = |lines: Vec<String>| {
        lines.iter().map(|line| format!("* {}", markdown_text(line))).collect::<Vec<_>>().join("\n")
    };
    let images: String = charts
        .iter()
        .map(|chart| {
            format!("![{0}]({0}.svg)\n\n{1}\n\n", chart.name, markdown_text(&chart.caption))
        })
        .collect();
    format!(
        "# {}\n\n{}\n\n{}\n\n{}\n\n{images}## How the runs were made\n\n{}\n",
        markdown_text(&comparison.name),
        markdown_text(&headline(comparison)),
        markdown_table(comparison),
        list(remarks(comparison)),
        list(protocol(comparison))
    )
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;margin:2rem auto;max-width:1420px;padding:0 1rem;line-height:1.5;\
background:#fff;color:#24292f;overflow-wrap:break-word}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}.headline{font-size:1.1rem}\
.wide{overflow-x:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85rem}\
th,td{padding:.35rem .6rem;border-bottom:1px solid #d8dee4;text-align:left;vertical-align:top}th{border-bottom:2px solid #8c959f}\
.runs td:not(:first-child):not(.long){white-space:nowrap}.runs td:first-child{min-width:8rem}.runs .long{min-width:11rem}.facts{margin-bottom:1.5rem}.facts th{border-bottom:1px solid #d8dee4;font-weight:600;white-space:nowrap}\
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1.5rem}.full{grid-column:1/-1}\
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:.5rem}.panels svg,.one svg{width:100%}.one svg{max-width:620px}\
figure{margin:0;min-width:0}figcaption{max-width:60rem;color:#57606a;font-size:.9rem}ul{max-width:60rem;color:#57606a;font-size:.9rem;padding-left:1.2rem}\
pre{background:#f6f8fa;padding:.8rem;overflow-x:auto;font-size:.85rem;line-height:1.4}pre.text{white-space:pre-wrap}summary{cursor:pointer}\
@media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}th,td,.facts th{border-color:#2a313a}th{border-color:#656c76}\
pre{background:#161b22}figcaption,ul{color:#9198a1}}";

/// A whole page with a title, which needs nothing beside it.
pub(super) fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         {body}</body>\n</html>\n"
    )
}

/// Charts with their captions, side by side where there is room.
pub(super) fn figures(charts: &[Explained]) -> String {
    let figure = |chart: &Explained| {
        let class = if chart.wide { " class=\"full\"" } else { "" };
        let kind = if chart.panels.len() == 1 { "one" } else { "panels" };
        let images = chart.panels.concat();
        format!(
            "<figure{class}><div class=\"{kind}\">{images}</div><figcaption>{}</figcaption></figure>\n",
            escape(&chart.caption)
        )
    };
    let figures: String = charts.iter().map(figure).collect();
    format!("<div class=\"figures\">\n{figures}</div>\n")
}

fn html(comparison: &Comparison, charts: &[Explained]) -> String {
    let list = |lines: Vec<String>| {
        lines.iter().map(|line| format!("<li>{}</li>", escape(line))).collect::<String>()
    };
    let body = format!(
        "<p class=\"headline\">{}</p>\n<div class=\"wide\">{}</div>\n<ul>{}</ul>\n{}\
         <h2>How the runs were made</h2>\n<ul>{}</ul>\n",
        escape(&headline(comparison)),
        html_table(comparison),
        list(remarks(comparison)),
        figures(charts),
        list(protocol(comparison))
    );
    document(&comparison.name, &body)
}

#[cfg(test)]
mod tests {
    use super::super::comparison::compare;
    use super::super::groups::{LabelledRun, group_runs};
    use super::super::run_results::tests_support::finished;
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_report_has_every_figure_and_escapes_names() {
        let run = |group: &str, rate: &str, seed: u64, loss: f64| LabelledRun {
            id: format!("{group}-{rate}-{seed}"),
            family: group.into(),
            group: group.into(),
            tuned: BTreeMap::from([(
                "optimizer.dense.adamw.learning_rate".to_owned(),
                rate.to_owned(),
            )]),
            seed,
            searches_only: false,
            results: Some(finished(seed, loss)),
            failure: None,
            not_needed: false,
        };
        let mut runs = Vec::new();
        for seed in [1, 2, 3] {
            let noise = 0.01 * seed as f64;
            runs.extend([("dense <AdamW>", 2.0), ("spectral", 1.9)].iter().flat_map(
                |(group, loss)| {
                    [("0.001", 0.2), ("0.003", 0.0), ("0.006", 0.1)]
                        .map(|(rate, worse)| run(group, rate, seed, loss + worse + noise))
                },
            ));
        }
        let comparison =
            compare("a sweep", group_runs(runs), Some("dense <AdamW>"), None).expect("comparable");
        let folder = tempfile::tempdir().expect("a folder");
        let page =
            std::fs::read_to_string(write_report(&comparison, folder.path()).expect("written"))
                .expect("the page");
        for part in [
            "dense &lt;AdamW&gt;",
            "best of 3",
            "-0.1000 ± 0.0000",
            "Lowest validation loss: spectral with 1.9200 ± 0.0058",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("<AdamW>") && !page.contains("NaN"));
        let markdown = std::fs::read_to_string(folder.path().join("report.md")).expect("Markdown");
        assert!(
            markdown.contains("dense &lt;AdamW&gt;") && !markdown.contains("<AdamW>"),
            "{markdown}"
        );
        for name in ["loss", "frontier", "learning-rates", "effective-ranks", "spectra", "times"] {
            assert!(markdown.contains(&format!("({name}.svg)")), "{name}");
            assert!(folder.path().join(format!("{name}.svg")).exists(), "{name}");
        }
        assert_eq!(
            page.matches("<figure").count(),
            6,
            "no ranks changed, so there is no chart of ranks"
        );
    }
}
