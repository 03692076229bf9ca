//! Inputs that once broke something, under tests/fuzz/inputs/TARGET/, through the harness of
//! cargo-fuzz, and some that are wrong in a known way.

#[path = "fuzz/harness.rs"]
mod harness;

use std::path::Path;

/// A target with its name.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 11] = [
    ("spec", harness::spec),
    ("plan", harness::plan),
    ("sweep", harness::sweep),
    ("tokenizer", harness::tokenizer),
    ("shard", harness::shard),
    ("checkpoint", harness::checkpoint),
    ("import", harness::import),
    ("gguf", harness::gguf),
    ("json_lines", harness::json_lines),
    ("chat", harness::chat),
    ("operations", harness::operations),
];

#[test]
fn what_was_found_stays_mended() {
    let inputs = Path::new("tests/fuzz/inputs");
    let mut folders = 0;
    for (target, harness) in TARGETS {
        let Ok(files) = std::fs::read_dir(inputs.join(target)) else { continue };
        folders += 1;
        for file in files {
            harness(&std::fs::read(file.expect("an entry").path()).expect("a file"));
        }
    }
    let on_disk = std::fs::read_dir(inputs).expect("a folder").count();
    assert_eq!(folders, on_disk, "a folder of {} belongs to no target", inputs.display());
}

#[test]
fn every_target_takes_nothing_and_noise() {
    let noise: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (_, harness) in TARGETS {
        harness(&[]);
        harness(&noise[..7]);
        harness(&noise);
    }
}

#[test]
fn every_operation_is_as_its_portable_path_on_odd_shapes() {
    for which in 0..6u8 {
        for (a, b) in [(0, 0), (1, 36), (2, 11), (0, 69)] {
            harness::operations(&[which, a, b, b / 2, a * 13, b / 6]);
        }
    }
}

/// Seeds changed at random, many times over, without the compiler of cargo-fuzz; for so many
/// seconds a target as `LRPT_FUZZ_SECONDS` says (by default too few to matter). A panic writes the
/// input that made it to the folder of temporary files.
///
/// ```text
/// LRPT_FUZZ_SECONDS=60 cargo test --release --test fuzz_inputs -- --ignored --nocapture
/// ```
#[test]
#[ignore = "as long as LRPT_FUZZ_SECONDS says"]
fn changed_inputs_break_nothing() {
    let seconds = std::env::var("LRPT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let limit = std::time::Duration::from_secs_f64(seconds.unwrap_or(1.0));
    let mut broken = 0;
    for (target, harness) in TARGETS {
        let seeds = seeds(target);
        let mut random = lrpt::rng::stream(13, target, &[std::process::id().into()]);
        let (started, mut runs, mut slowest) = (std::time::Instant::now(), 0u64, 0.0f64);
        while started.elapsed() < limit {
            let input = changed(&seeds, &mut random);
            let begun = std::time::Instant::now();
            if std::panic::catch_unwind(|| harness(&input)).is_err() {
                broken += 1;
                let path = std::env::temp_dir().join(format!("lrpt-fuzz-{target}-{broken}"));
                std::fs::write(&path, &input).expect("writable");
                println!("{target}: {} breaks it", path.display());
            }
            slowest = slowest.max(begun.elapsed().as_secs_f64());
            runs += 1;
        }
        let seconds = started.elapsed().as_secs_f64();
        println!("{target:<12} {runs:>9} inputs in {seconds:>5.0} s, the slowest {slowest:.2} s");
    }
    assert_eq!(broken, 0, "inputs broke something");
}

/// What inputs of a target are made from.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folders = match target {
        "spec" => vec!["configs", "configs/methods"],
        "sweep" => vec!["configs/sweeps"],
        "tokenizer" => vec!["tests/support"],
        _ => vec![],
    };
    let own = format!("tests/fuzz/inputs/{target}");
    let files = folders.into_iter().chain([own.as_str()]).filter_map(|f| std::fs::read_dir(f).ok());
    let paths = files.flatten().flatten().map(|entry| entry.path());
    let is_seed = |path: &std::path::PathBuf| {
        path.extension().is_none_or(|ending| ending == "yaml" || ending == "json")
    };
    let mut seeds: Vec<_> =
        paths.filter(is_seed).filter_map(|path| std::fs::read(path).ok()).collect();
    seeds.sort();
    seeds.push(b"a: {b: [1, 2]}".to_vec());
    seeds
}

/// Numbers and signs that parsers trip over.
const TOKENS: [&[u8]; 16] = [
    b"0",
    b"-1",
    b"18446744073709551615",
    b"4294967296",
    b"1e999",
    b"null",
    b"{",
    b"]",
    b": ",
    b"\0",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xf0\x9f\x98\x80",
    b"\xc3",
    b"'",
    b"\n",
    b"{{ a * 9 }}",
];

fn changed(seeds: &[Vec<u8>], random: &mut impl rand::Rng) -> Vec<u8> {
    let mut input = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..9) {
        let at = random.random_range(0..=input.len());
        let to = (at + random.random_range(0..24)).min(input.len());
        match random.random_range(0..6) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 => drop(input.drain(at..to)),
            2 => drop(input.splice(at..to, TOKENS[random.random_range(0..TOKENS.len())].to_vec())),
            3 => {
                let piece = input[at..to].to_vec();
                let place = random.random_range(0..=input.len());
                input.splice(place..place, piece);
            }
            4 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                let piece = other[from..(from + 40).min(other.len())].to_vec();
                input.splice(at..to, piece);
            }
            _ if random.random_bool(0.05) => input.truncate(at),
            _ => {
                let number = random.random_range(0..=u64::MAX) >> random.random_range(0..64);
                input.splice(at..to, number.to_string().into_bytes());
            }
        }
    }
    input
}
