//! Sizes of one method: the power law that a comparison fits, and what `--dry-run` counts for ranks
//! that fall or are cut.

use super::support::Workplace;
use super::{bench, json, summary, sweep, text};

/// Variants of one family are one method: `compare` fits a line through ln loss over ln operations,
/// here to three sizes that lie a factor of four apart.
#[test]
fn sizes_of_a_family_have_a_power_law() {
    let place = Workplace::new();
    let body = "seeds: [1]\nset: {model.weights: dense}\nvariants:\n  \
         - {name: small, family: dense, set: {train.batch_size: 2}}\n  \
         - {name: middle, family: dense, set: {train.batch_size: 4}}\n  \
         - {name: large, family: dense, set: {train.batch_size: 8}}\n  \
         - {name: alone}\n";
    place.run(&["sweep", &sweep(&place, body)], 0);
    let manifest = json(&place.path("runs/small/manifest.json"));
    let families: Vec<Option<&str>> = manifest["runs"]
        .as_array()
        .expect("runs")
        .iter()
        .map(|run| run["family"].as_str())
        .collect();
    assert_eq!(families, [Some("dense"), Some("dense"), Some("dense"), None]);

    let compared = summary(&place.run(&["compare", "runs/small", "--json"], 0));
    let scaling = compared["scaling"].as_array().expect("laws");
    assert_eq!(scaling.len(), 1, "{compared}");
    assert_eq!(
        (scaling[0]["family"].as_str(), scaling[0]["sizes"].as_u64()),
        (Some("dense"), Some(3))
    );
    let mut logs: Vec<(f64, f64)> = compared["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter(|group| group["family"] == "dense")
        .map(|group| {
            (
                group["flops"].as_f64().expect("FLOPs").ln(),
                group["loss"].as_f64().expect("a loss").ln(),
            )
        })
        .collect();
    // Equally spaced in ln operations: the slope of least squares is that between the ends.
    logs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let slope = (logs[2].1 - logs[0].1) / (logs[2].0 - logs[0].0);
    let exponent = scaling[0]["exponent"].as_f64().expect("an exponent");
    assert!((exponent - slope).abs() < 1e-9, "{exponent} is not {slope}");
    let table = text(&place.run(&["compare", "runs/small"], 0).stdout);
    assert!(table.contains(&format!("b: dense {exponent:.4} (3 sizes).")), "{table}");
    let chart =
        std::fs::read_to_string(place.path("runs/small/report/frontier.svg")).expect("a chart");
    assert!(chart.contains(">dense<") && !chart.contains(">middle<"), "{chart}");

    let refused = sweep(&place, "seeds: [1]\nvariants:\n  - {name: one, family: ''}\n");
    let refused = text(&place.run(&["sweep", &refused, "--dry-run"], 2).stderr);
    assert!(refused.contains("`one`: family is empty"), "{refused}");
}

/// `--dry-run` counts what is left at the end: of ranks that fall to a share of the dense numbers,
/// and of weights that are cut to one before the first step, whose operations are those of the ranks
/// that are left.
#[test]
fn a_dry_run_counts_what_falling_and_cut_ranks_leave() {
    let place = Workplace::new();
    place.spec("dense", "");
    place.run(&["train", "spec.yaml", "--run-dir", "source"], 0);
    let full = "model.weights: {low_rank: {rank: full, start: dense}}";
    let cut = "model.weights: {low_rank: {rank: full, cut: {budget: {share: 0.5}}}}";
    let body = format!(
        "seeds: [1]\nvariants:\n  - {{name: dense, set: {{model.weights: dense}}}}\n  \
         - {{name: falling, set: {{{full}, rank: {{budget: {{final_share: 0.5, start: 1, every: 2}}}}}}}}\n  \
         - {{name: cut, set: {{{cut}, init: {{run: {}}}}}}}\n",
        place.path("source").display()
    );
    let path = sweep(&place, &body);
    let listed = text(&place.run(&["sweep", &path, "--dry-run", "--wide"], 0).stdout);
    let row = |name: &str| -> Vec<f64> {
        let line = listed.lines().find(|line| line.starts_with(name)).expect("a line");
        let number = |word: &str| {
            let digits = word.strip_suffix('k');
            let scale = if digits.is_some() { 1e3 } else { 1.0 };
            digits.unwrap_or(word).parse::<f64>().map(|number| scale * number).ok()
        };
        line.split_whitespace().filter_map(number).collect()
    };
    // Parameters, tokens, steps, FLOPs, then r (m + n - r).
    let (dense, falling, cut) = (row("dense-seed-1"), row("falling-seed-1"), row("cut-seed-1"));
    let of_dense = bench(&place, "dense");
    let width = json_of_spec(&place, "n_embd");
    let matrices = 12.0 * json_of_spec(&place, "n_layer") * width * width;
    let left = of_dense["parameters"].as_f64().expect("a count") - 0.5 * matrices;
    for (name, row) in [("falling", &falling), ("cut", &cut)] {
        let listed = row.last().expect("a number");
        assert!((listed / left - 1.0).abs() < 0.005, "{name}: {listed} is not {left}");
    }
    assert!((dense.last().expect("1") / dense[0] - 1.0).abs() < 1e-9, "{dense:?}");
    // Ranks of half the numbers take fewer operations than full ones, and falling to them more.
    assert!(cut[3] < falling[3], "{cut:?} {falling:?}");
}

/// A number of the small spec's model section.
fn json_of_spec(place: &Workplace, key: &str) -> f64 {
    let text = std::fs::read_to_string(place.path("spec.yaml")).expect("the spec");
    let spec: serde_json::Value = serde_yaml::from_str(&text).expect("YAML");
    spec["model"][key].as_f64().expect("a number")
}
