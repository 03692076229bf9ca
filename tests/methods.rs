//! The tuned settings of every method, `configs/methods/*.yaml`: each resolves, is listed, and
//! differs from the others only in its method.

use lrpt::spec::{self, OptimizerSpec, RankSpec, RunSpec, WeightsSpec};
use std::collections::BTreeSet;
use std::path::Path;

const FOLDER: &str = "configs/methods";

fn methods() -> Vec<(String, RunSpec)> {
    let paths = std::fs::read_dir(FOLDER).expect(FOLDER).map(|entry| entry.expect("entry").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    let load = |path: &Path| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let (spec, _) = spec::load_plan(path, &[]).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(spec::unused_settings(&spec), Vec::<String>::new(), "{name}");
        assert_eq!(spec.name, name, "a config is called like its run");
        (name, spec)
    };
    paths.iter().map(|path| load(path)).collect()
}

#[test]
fn every_method_is_listed_and_every_listed_one_is_there() {
    let names: BTreeSet<String> = methods().into_iter().map(|(name, _)| name).collect();
    assert!(names.len() >= 12, "{names:?}");
    let table =
        std::fs::read_to_string(format!("{FOLDER}/README.md")).expect("the table of methods");
    let listed: BTreeSet<String> = table
        .lines()
        .filter_map(|line| {
            line.strip_prefix("| [")?.split_once("](").map(|(name, _)| name.to_owned())
        })
        .collect();
    assert_eq!(
        names, listed,
        "{FOLDER}/README.md has a row `| [name](name.yaml) | ...` for every file"
    );
    assert!(
        names.iter().all(|name| table.contains(&format!("[{name}]({name}.yaml)"))),
        "every name leads to its file"
    );
}

/// Everything but the form of the weights, the rules and the rank policy is the same, so that
/// figures may stand beside each other.
#[test]
fn methods_share_everything_else() {
    let rest = |mut spec: RunSpec| {
        spec.name = String::new();
        spec.model.weights = WeightsSpec::Dense;
        (spec.optimizer, spec.rank) = (OptimizerSpec::default(), RankSpec::default());
        spec
    };
    let mut methods = methods().into_iter();
    let (first, expected) =
        methods.next().map(|(name, spec)| (name, rest(spec))).expect("a method");
    for (name, spec) in methods {
        assert_eq!(rest(spec), expected, "{name} and {first}");
    }
}
