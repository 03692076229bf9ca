//! How the loss of a method falls with the operations it is given, over its sizes.

use super::comparison::Comparison;
use crate::plot::PowerLaw;

/// Sizes that a power law is fitted to.
const FEWEST_SIZES: usize = 3;

/// Operations of the largest size over those of the smallest that a power law is fitted to: sizes
/// that lie nearer say little about it.
const LEAST_SPAN: f64 = 4.0;

/// The law of one method.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// The method.
    pub family: String,
    /// Number of its sizes.
    pub sizes: usize,
    /// Mean final loss L in nats per token against counted operations C: L = a Cᵇ.
    pub law: PowerLaw,
}

impl Comparison {
    /// The methods compared, each once, in the order of their best loss.
    pub(super) fn families(&self) -> Vec<&str> {
        let mut families: Vec<&str> = Vec::new();
        for (group, _) in &self.groups {
            if !families.contains(&group.family.as_str()) {
                families.push(&group.family);
            }
        }
        families
    }

    /// Power laws of the loss in operations, one for each method of three sizes or more.
    pub fn scaling(&self) -> Vec<Scaling> {
        let law_of = |family: &str| {
            let of_family = self.groups.iter().filter(|(group, _)| group.family == family);
            let points: Vec<(f64, f64)> = of_family.map(|(_, s)| (s.flops, s.loss.mean)).collect();
            let most = points.iter().map(|point| point.0).fold(0.0, f64::max);
            let least = points.iter().map(|point| point.0).fold(f64::INFINITY, f64::min);
            let is_far = points.len() >= FEWEST_SIZES && most >= LEAST_SPAN * least;
            let law = is_far.then(|| PowerLaw::through(&points)).flatten()?;
            Some(Scaling { family: family.to_owned(), sizes: points.len(), law })
        };
        self.families().into_iter().filter_map(law_of).collect()
    }
}

/// The laws in a sentence; none where there are none.
pub(super) fn remark(comparison: &Comparison) -> Option<String> {
    let laws = comparison.scaling();
    let each = laws.iter().map(|scaling| {
        format!("{} {:.4} ({} sizes)", scaling.family, scaling.law.exponent, scaling.sizes)
    });
    let each = each.collect::<Vec<_>>().join(", ");
    (!laws.is_empty()).then(|| {
        format!(
            "Power laws L = a Cᵇ of the mean loss in counted operations, least squares on logarithms; \
             b: {each}. With no floor of the loss they hold between the sizes alone."
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::comparison::compare;
    use super::super::groups::{LabelledRun, group_runs};
    use super::super::run_results::tests_support::finished;
    use super::*;
    use std::collections::BTreeMap;

    fn run(family: &str, size: &str, loss: f64, flops: f64) -> LabelledRun {
        let mut results = finished(1, loss);
        for point in &mut results.validations {
            point.flops = flops;
        }
        LabelledRun {
            id: format!("{family}-{size}"),
            family: family.into(),
            group: format!("{family}-{size}"),
            tuned: BTreeMap::new(),
            seed: 1,
            searches_only: false,
            results: Some(results),
            failure: None,
            not_needed: false,
        }
    }

    /// 2, 1 and 1/2 nats at 1, 100 and 10⁴ operations: b = ln(1/4) / ln(10⁴).
    #[test]
    fn a_law_for_each_method_of_three_sizes() {
        let runs = vec![
            run("dense", "small", 2.0, 1e10),
            run("dense", "middle", 1.0, 1e12),
            run("dense", "large", 0.5, 1e14),
            run("two sizes", "small", 2.0, 1e10),
            run("two sizes", "large", 1.0, 1e12),
            run("too near", "small", 2.0, 1e10),
            run("too near", "middle", 1.0, 2e10),
            run("too near", "large", 0.7, 3e10),
        ];
        let comparison = compare("t", group_runs(runs), None, None).expect("comparable");
        let scaling = comparison.scaling();
        assert_eq!(scaling.len(), 1, "{scaling:?}");
        assert_eq!((scaling[0].family.as_str(), scaling[0].sizes), ("dense", 3));
        assert!((scaling[0].law.exponent - 0.25f64.ln() / 1e4f64.ln()).abs() < 1e-12);
        let remark = remark(&comparison).expect("a law");
        assert!(remark.contains("b: dense -0.1505 (3 sizes)."), "{remark}");
    }
}
