//! `lrpt bench` and `lrpt doctor` through the binary.

mod support;

use serde_json::Value;
use support::Workplace;

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn number(report: &Value, path: &str) -> f64 {
    report
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} is no number in {report}"))
}

#[test]
fn bench_prints_one_json_object_whose_figures_agree() {
    let place = Workplace::new();
    let spec = place.spec("{low_rank: {rank: 6}}", "");
    let arguments =
        ["bench", spec.to_str().expect("UTF-8"), "--vocab-size", "50", "--steps", "3", "--json"];
    let report: Value = serde_json::from_str(stdout(&place.run(&arguments, 0)).trim())
        .expect("one JSON object on stdout");

    assert_eq!((report["threads"].as_u64(), report["timed_steps"].as_u64()), (Some(2), Some(3)));
    assert_eq!(report["shape"]["tokens_per_step"], 2 * 4 * 16);
    assert_eq!(number(&report, "/rank_mean"), 6.0);
    assert!(
        (number(&report, "/loss") - 50f64.ln()).abs() < 0.5,
        "random tokens have ln V to offer: {report}"
    );

    let seconds = |phase: &str| number(&report, &format!("/seconds_per_step/{phase}"));
    let phases = ["data", "forward", "backward", "dense_optimizer", "low_rank_optimizer"];
    assert!(phases.iter().all(|phase| seconds(phase) > 0.0), "{report}");
    let in_all: f64 = phases.iter().map(|phase| seconds(phase)).sum();
    assert!(in_all <= seconds("mean") && in_all > 0.5 * seconds("mean"), "{report}");
    assert!(seconds("best") <= seconds("median"));
    let tokens = number(&report, "/tokens_per_second");
    assert!(
        (tokens * seconds("median") - 128.0).abs() < 1e-6
            && tokens <= number(&report, "/tokens_per_second_best")
    );
    let share = number(&report, "/low_rank_optimizer_share");
    assert!((share - seconds("low_rank_optimizer") / seconds("mean")).abs() < 1e-9);

    let (flops, low_rank) =
        ("/operations/flops_per_step", "/operations/low_rank_optimizer_flops_per_step");
    assert!(0.0 < number(&report, low_rank) && number(&report, low_rank) < number(&report, flops));
    let peak = number(&report, "/operations/product_peak/flops_per_second");
    let achieved = number(&report, "/operations/share_of_product_peak");
    assert!((achieved * peak * seconds("median") / number(&report, flops) - 1.0).abs() < 1e-9);
    assert!(peak > 1e8 && 0.0 < achieved && achieved < 1.0, "{report}");
    assert!(
        number(&report, "/memory/predicted_peak") > number(&report, "/memory/predicted_weights")
    );
    if cfg!(target_os = "linux") {
        let measured = number(&report, "/memory/peak");
        assert!(measured > number(&report, "/memory/before") && measured < 1e9, "{report}");
    }
}

#[test]
fn bench_prints_a_table_and_asks_for_an_unknown_vocabulary() {
    let place = Workplace::new();
    let spec = place.spec("dense", "");
    let spec = spec.to_str().expect("UTF-8");
    let refused = place.run(&["bench", spec], 2);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--vocab-size"));
    let arguments =
        ["bench", spec, "--set", "data.tokenizer=bytes", "--steps", "1", "--warm-up", "0"];
    let table = stdout(&place.run(&arguments, 0));
    for part in [
        "backward",
        "low-rank optimizer",
        "tokens per second",
        "share of the peak",
        "peak, measured",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(!place.path("data").exists(), "no data were prepared");
}

#[test]
fn doctor_finds_this_build_and_machine() {
    let found = stdout(&Workplace::new().run(&["doctor"], 0));
    for part in
        [env!("CARGO_PKG_VERSION"), "threads       2 on", "SIMD", "FLOP/s", "cuda", "corpus"]
    {
        assert!(found.contains(part), "{part} in {found}");
    }
}
