//! What is known of a run's first weights where they came from another model.

use crate::params::ParamId;
use crate::spec::{InitSpec, RankCount, Target};
use serde::Serialize;
use std::collections::BTreeMap;

/// Where a run's first weights came from, as `init.json` has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InitReport {
    /// The source, as the spec names it.
    pub source: InitSpec,
    /// BLAKE3 of the source's tensors, in hexadecimal.
    pub hash: String,
    /// Matrices that were cut to a rank.
    pub truncated: usize,
    /// Share of ‖W‖_F² of those matrices that the cuts discarded.
    pub discarded_energy: f64,
    /// The same by kind of matrix.
    pub kinds: BTreeMap<Target, CutReport>,
    #[serde(skip)]
    matrices: BTreeMap<ParamId, MatrixCut>,
}

/// What cuts came to, over the matrices of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CutReport {
    /// Matrices.
    pub matrices: usize,
    /// Share of their ‖W‖_F² that was discarded.
    pub discarded_energy: f64,
    /// Smallest rank.
    pub least_rank: usize,
    /// Largest rank.
    pub largest_rank: usize,
    /// Numbers as exported, r (m + n − r) each.
    pub numbers: u64,
    /// Numbers as full matrices, m n each.
    pub dense_numbers: u64,
}

/// A matrix that was cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MatrixCut {
    pub target: Target,
    pub rows: usize,
    pub columns: usize,
    pub rank: usize,
    /// ‖W‖² less what was discarded.
    pub kept: f64,
    /// ‖W‖².
    pub whole: f64,
}

impl InitReport {
    /// What came from a source whose tensors have this hash.
    pub(super) fn new(
        source: InitSpec,
        hash: String,
        matrices: BTreeMap<ParamId, MatrixCut>,
    ) -> Self {
        let discarded = |cuts: &[&MatrixCut]| {
            let sums = cuts.iter().map(|cut| (cut.kept, cut.whole));
            let (kept, whole) =
                sums.fold((0.0, 0.0), |(kept, whole), (k, w)| (kept + k, whole + w));
            if whole > 0.0 { (1.0 - kept / whole).max(0.0) } else { 0.0 }
        };
        let all: Vec<&MatrixCut> = matrices.values().collect();
        let mut by_kind: BTreeMap<Target, Vec<&MatrixCut>> = BTreeMap::new();
        all.iter().for_each(|cut| by_kind.entry(cut.target).or_default().push(cut));
        let report = |cuts: &Vec<&MatrixCut>| CutReport {
            matrices: cuts.len(),
            discarded_energy: discarded(cuts),
            least_rank: cuts.iter().map(|cut| cut.rank).min().unwrap_or(0),
            largest_rank: cuts.iter().map(|cut| cut.rank).max().unwrap_or(0),
            numbers: cuts
                .iter()
                .map(|cut| RankCount::Exported.numbers(cut.rows + cut.columns, cut.rank))
                .sum(),
            dense_numbers: cuts.iter().map(|cut| (cut.rows * cut.columns) as u64).sum(),
        };
        Self {
            source,
            hash,
            truncated: matrices.len(),
            discarded_energy: discarded(&all),
            kinds: by_kind.iter().map(|(target, cuts)| (*target, report(cuts))).collect(),
            matrices,
        }
    }

    /// The same after further cuts; `kept` and `whole` of each are those of what was left before.
    pub(super) fn cut_further(self, further: BTreeMap<ParamId, MatrixCut>) -> Self {
        let mut matrices = self.matrices;
        for (id, cut) in further {
            let discarded = cut.whole - cut.kept;
            let whole = matrices.get(&id).copied().unwrap_or(MatrixCut { kept: cut.whole, ..cut });
            matrices
                .insert(id, MatrixCut { rank: cut.rank, kept: whole.kept - discarded, ..whole });
        }
        Self::new(self.source, self.hash, matrices)
    }

    /// What the log says of it, a line for each kind that was cut.
    pub(super) fn lines(&self) -> Vec<String> {
        let kinds = self.kinds.iter().map(|(target, cut)| {
            format!(
                "  {}: {} of rank {}, {:.3} of their numbers as exported, {:.3}% of their energy \
                 left out",
                target.name(),
                match cut.matrices {
                    1 => "1 matrix".to_owned(),
                    count => format!("{count} matrices"),
                },
                match cut.least_rank == cut.largest_rank {
                    true => cut.least_rank.to_string(),
                    false => format!("{} to {}", cut.least_rank, cut.largest_rank),
                },
                cut.numbers as f64 / cut.dense_numbers.max(1) as f64,
                100.0 * cut.discarded_energy
            )
        });
        let whole = format!(
            "first weights from {} ({} matrices cut to their rank, {:.3}% of their energy left out)",
            self.source.path(),
            self.truncated,
            100.0 * self.discarded_energy
        );
        std::iter::once(whole).chain(kinds).collect()
    }
}
