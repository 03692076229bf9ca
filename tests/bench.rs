//! `lrpt bench` and `lrpt doctor` through the binary.

mod support;

use serde_json::{Value, json};
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

/// A bench is remembered by the folder of prepared data; other settings go by its rate.
#[test]
fn spec_check_expects_the_time_that_bench_has_measured() {
    let place = Workplace::new();
    let spec = place.spec("{low_rank: {rank: 6}}", "");
    let spec = spec.to_str().expect("UTF-8");
    let bytes = ["--set", "data.tokenizer=bytes"];
    let check = |more: &[&str]| {
        let arguments = [&["spec", "check", spec][..], &bytes, more].concat();
        let output = stdout(&place.run(&arguments, 0));
        output.lines().skip_while(|line| !line.starts_with("time")).collect::<Vec<_>>().join("\n")
    };
    let unknown = check(&[]);
    assert!(unknown.contains("`lrpt bench` has timed no steps here yet"), "{unknown}");
    let bench = [&["bench", spec, "--steps", "3", "--json"][..], &bytes].concat();
    let report: Value = serde_json::from_str(stdout(&place.run(&bench, 0)).trim()).expect("JSON");
    if report["debug_build"] == true {
        return eprintln!("times of a debug build are not kept");
    }
    let seconds = format!("{:.3}", number(&report, "/seconds_per_step/median"));
    let timed = check(&[]);
    assert!(timed.contains("timed by `lrpt bench`") && timed.contains(&seconds), "{timed}");
    let wider = check(&["--set", "model.n_embd=64"]);
    assert!(wider.contains("at the rate of "), "{wider}");

    let damaged = place.path("data/timings.json");
    std::fs::write(&damaged, "[").expect("written");
    let told = check(&[]);
    assert!(told.contains("timings.json is damaged; delete it"), "{told}");
    place.run(&bench, 0);
    assert_eq!(std::fs::read_to_string(&damaged).expect("still there"), "[", "nothing is lost");
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
    let kept = std::fs::read_dir(place.path("data")).expect("the folder of the timings");
    let kept: Vec<_> = kept.map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(kept.iter().all(|name| name == "timings.json"), "no data were prepared: {kept:?}");
}

/// The parts of a step are about the whole, and what they count is what the account counts.
#[test]
fn operations_add_up_to_the_passes_and_to_the_account() {
    let place = Workplace::new();
    let spec = place.spec("dense", "");
    let spec = spec.to_str().expect("UTF-8");
    for overrides in [&[][..], &["--set", "model.arch=llama", "--set", "model.n_kv_head=1"]] {
        let arguments = ["bench", spec, "--vocab-size", "50", "--operations", "--json"];
        let arguments: Vec<&str> = arguments.iter().chain(overrides).copied().collect();
        let report: Value = serde_json::from_str(stdout(&place.run(&arguments, 0)).trim())
            .expect("one JSON object on stdout");
        let rows = report["by_operation"]["rows"].as_array().expect("rows");
        let sum = |key: &str| -> f64 { rows.iter().map(|row| number(row, key)).sum() };
        assert_eq!(sum("/flops"), number(&report, "/operations/flops_per_step"), "{report}");
        let passes = number(&report, "/seconds_per_step/forward")
            + number(&report, "/seconds_per_step/backward");
        assert!((number(&report, "/by_operation/seconds") - passes).abs() < 1e-9);
        let (parts, rest) = (sum("/seconds"), number(&report, "/by_operation/rest_seconds"));
        assert!((parts + rest - passes).abs() < 1e-9 && rest >= 0.0, "{report}");
        assert!(parts > 0.5 * passes, "{parts} of {passes}");
        let find = |name: &str, pass: &str, shape: [u64; 3]| {
            rows.iter()
                .find(|row| {
                    row["name"] == name && row["pass"] == pass && row["shape"] == json!(shape)
                })
                .unwrap_or_else(|| panic!("{name} {pass} {shape:?} in {report}"))
        };
        // Of two micro-batches and two blocks: o alone is 32 x 32 in both architectures.
        assert!(number(find("a bᵀ", "forward", [64, 32, 32]), "/calls") >= 4.0);
        assert!(number(find("aᵀ b", "backward", [32, 64, 32]), "/calls") >= 4.0);
        assert!(number(find("attention", "backward", [8, 16, 16]), "/calls") == 4.0);
        products_alone_are_those_of_the_step(&report, rows);
    }
    let table = stdout(
        &place.run(&["bench", spec, "--vocab-size", "50", "--steps", "1", "--operations"], 0),
    );
    let parts = ["of peak", "layer_norm", "gelu", "64 x 32 x 128", "loss", "rest", "in all"];
    for part in parts.into_iter().chain(["   alone\n", "products alone: "]) {
        assert!(table.contains(part), "{part} in {table}");
    }
}

/// What is timed alone are the products of the step: their shapes, as often as they are called, have
/// the operations that were counted, and seconds and rates agree.
fn products_alone_are_those_of_the_step(report: &Value, rows: &[Value]) {
    let peak = number(report, "/operations/product_peak/flops_per_second");
    let (mut flops, mut seconds, mut alone_seconds, mut others) = (0.0, 0.0, 0.0, 0.0);
    for row in rows {
        let counted = number(row, "/flops");
        if !["a b", "a bᵀ", "aᵀ b", "aᵀ bᵀ"].iter().any(|name| row["name"] == *name) {
            assert!(row["alone_flops_per_second"].is_null(), "no product: {row}");
            others += counted;
            continue;
        }
        let sizes = row["shape"].as_array().expect("a shape").iter();
        let multiplications: u64 = sizes.map(|size| size.as_u64().expect("a size")).product();
        assert_eq!(2.0 * multiplications as f64 * number(row, "/calls"), counted, "{row}");
        let rate = number(row, "/alone_flops_per_second");
        let share = number(row, "/alone_share_of_product_peak");
        assert!(rate > 0.0 && (share * peak / rate - 1.0).abs() < 1e-9, "{row}");
        flops += counted;
        seconds += number(row, "/seconds");
        alone_seconds += counted / rate;
    }
    let found = |key: &str| number(report, &format!("/by_operation/products/{key}"));
    assert!(others > 0.0, "attention is no product of two matrices");
    assert_eq!(found("flops"), flops);
    assert_eq!(flops + others, number(report, "/operations/flops_per_step"));
    assert!((found("seconds") - seconds).abs() < 1e-9, "{report}");
    assert!((found("alone_seconds") - alone_seconds).abs() < 1e-9, "{report}");
    let step = number(report, "/seconds_per_step/mean");
    assert_eq!(found("step_seconds"), step);
    let limit = step - seconds + alone_seconds;
    assert!((found("step_seconds_at_rates_alone") - limit).abs() < 1e-9, "{report}");
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

/// The heap lies in large pages, and what is freed stays in it.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_benchmark_asks_for_large_pages() {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return eprintln!("this kernel has no large pages");
    }
    let place = Workplace::new();
    let spec = place.spec("dense", "");
    let mut child = place
        .lrpt(&["bench", spec.to_str().expect("UTF-8"), "--vocab-size", "20000"])
        .args(["--steps", "100000"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary starts");
    let smaps = format!("/proc/{}/smaps", child.id());
    let is_advised = || {
        let text = std::fs::read_to_string(&smaps).unwrap_or_default();
        let heap = text.split("[heap]").skip(1);
        heap.filter_map(|mapping| mapping.split("VmFlags:").nth(1))
            .any(|flags| flags.lines().next().is_some_and(|flags| flags.contains(" hg")))
    };
    let started = std::time::Instant::now();
    let mut found = false;
    while !found && started.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        found = is_advised();
    }
    child.kill().expect("the child runs still");
    child.wait().expect("the child ends");
    assert!(found, "the heap was not advised");
}
