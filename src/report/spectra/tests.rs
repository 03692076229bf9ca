//! Spectra of runs made for the purpose.

use super::*;
use crate::report::run_results::tests_support::finished;

#[test]
fn the_effective_rank_counts_equal_directions() {
    assert!((effective_rank(&[2.0; 5]).expect("a rank") - 5.0).abs() < 1e-12);
    assert!((effective_rank(&[3.0, 0.0]).expect("a rank") - 1.0).abs() < 1e-12);
    assert_eq!(effective_rank(&[0.0, 0.0]), None);
}

#[test]
fn a_summary_of_known_values() {
    let summary = SpectrumSummary::of(&[5.0, 4.0, 3.0, 2.0, 1.0]).expect("a summary");
    assert_eq!((summary.rank, summary.quantiles), (5, [5.0, 4.0, 3.0, 2.0, 1.0]));
    // Energies 25, 16, 9, 4, 1 of 55: 41/55 = 75%, 50/55 = 91%, 54/55 = 98%.
    assert_eq!(summary.holding, [3, 5]);
    assert_eq!(SpectrumSummary::of(&[0.5]).expect("a summary").quantiles, [0.5; 5]);
    assert_eq!(SpectrumSummary::of(&[]), None);
}

#[test]
fn blocks_are_read_from_names_and_thinned() {
    for name in
        ["transformer.h.12.attn.q", "model.layers.12.attn.q", "model.layers.12.attn.q.adapter"]
    {
        assert_eq!(place_of(name), Some((12, Target::Q)), "{name}");
    }
    for name in ["transformer.wte.weight", "lm_head.adapter"] {
        assert_eq!(place_of(name), None, "{name}");
    }
    assert!(
        is_weight("transformer.h.0.mlp.up", Target::UP, 0)
            && !is_weight("transformer.h.0.mlp.up", Target::UP, 1)
    );
    assert_eq!(shown(&(0..12).collect()), [0, 1, 3, 4, 6, 7, 9, 11]);
    assert_eq!(shown(&(0..3).collect()), [0, 1, 2]);
}

#[test]
fn a_run_with_changing_ranks_gets_a_table_and_all_panels() {
    let name = |block: usize| format!("transformer.h.{block}.attn.q");
    let mut run = finished(1, 2.0);
    run.ranks = [(50, 3), (100, 2)]
        .map(|(step, rank)| RanksAt { step, layers: vec![(name(0), rank), (name(1), 2)] })
        .into();
    run.spectra = [50, 100]
        .map(|step| SpectrumAt {
            step,
            layers: vec![(name(0), vec![2.0, 1.0]), (name(1), vec![1.0, 1.0])],
        })
        .into();
    run.truncations = vec![TruncationFigures {
        step: 80,
        name: name(0),
        relative_error: 0.1,
        discarded_energy: Some(0.05),
    }];
    let now = run.spectra[1].layers.clone();
    let table = spectra_table(&now, Some(&run), None);
    assert!(table.contains("1.00% at step 80"), "{table}");
    let svg = spectra_figure("Spectra", &now, Some(&run));
    for part in ["q: singular values", "q: median", "q: effective rank", "q: rank", "block 1"] {
        assert!(svg.contains(part), "{part}");
    }
    let fixed = finished(1, 2.0);
    assert!(
        !spectra_figure("Spectra", &now, Some(&fixed)).contains("q: rank"),
        "its ranks did not change"
    );
    let json = spectra_json(&now, Some(&run));
    assert_eq!(json[0]["truncations"][0]["discarded_energy"], 0.05);
    assert_eq!(json[1]["history"].as_array().map(Vec::len), Some(2));
    assert!(
        spectra_table(&now, None, None).lines().nth(1).is_some_and(|line| line.ends_with('–')),
        "a checkpoint without its run"
    );
}
