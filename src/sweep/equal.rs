//! Equal budgets: the steps, the rank or the width with which a run spends what another spends.

use super::sweep_spec::{Budget, Equal, Unknown};
use crate::account::Ledger;
use crate::spec::{
    BudgetPlan, CutBudgetSpec, CutSpec, LowRankStart, Plan, RampShape, RankCount, RankPlan, Target,
    WeightForm, bounds, share_of_dense,
};
use anyhow::{Context, Result, bail, ensure};

/// Narrowest head that a solved width may have, unless the spec's own are narrower: below, scores
/// of attention are sums of a handful of products, and no table of models has such heads.
const NARROWEST_HEAD: usize = 8;

/// Into how many parts a share of the dense numbers is divided where it is solved for.
const SHARES: usize = 1000;

/// A budget may be missed by this share where a setting has come to its end.
const MISS: f64 = 0.02;

/// A budget, and the setting with which to meet it.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What is to be spent.
    pub equal: Equal,
    /// How much of it.
    pub amount: f64,
    /// The setting; none for the usual one.
    pub unknown: Option<Unknown>,
}

/// The plan of a run with one more setting, as on the command line.
pub type Load<'a> = &'a dyn Fn(&str) -> Result<Plan>;

/// What a budget needs to know about plans that only the data or the machine can tell.
pub trait Solver {
    /// Tokens in the vocabulary of a plan.
    ///
    /// # Errors
    /// If the data cannot be prepared.
    fn vocabulary_size(&mut self, plan: &Plan) -> Result<usize>;

    /// Seconds of a training step of a plan, here.
    ///
    /// # Errors
    /// If a step fails.
    fn seconds_per_step(&mut self, plan: &Plan) -> Result<f64>;

    /// How much a plan spends.
    ///
    /// # Errors
    /// As for the questions above; and for parameters if a tolerance decides the ranks.
    fn spending(&mut self, equal: Equal, plan: &Plan) -> Result<f64> {
        let steps = plan.train.max_steps.0 as f64;
        Ok(match equal {
            Equal::Tokens(_) => plan.total_tokens as f64,
            Equal::Parameters(_) => {
                ensure!(
                    !matches!(plan.rank, RankPlan::Tolerance(_)),
                    "a tolerance decides ranks while it trains, so parameters at the end cannot be \
                     made equal beforehand; use `rank: budget`, or `equal: {{flops: …}}`"
                );
                let vocabulary = self.vocabulary_size(plan)?;
                final_parameters(plan, vocabulary) as f64
            }
            Equal::Flops(_) => planned_operations(plan, self.vocabulary_size(plan)?),
            Equal::Seconds(_) => steps * self.seconds_per_step(plan)?,
        })
    }

    /// The setting that makes a plan spend this much.
    ///
    /// Steps are the nearest whole number, so that tokens, FLOPs and seconds are met within half a
    /// step; rank and width are the largest within the budget, which the next one exceeds.
    ///
    /// # Errors
    /// If the budget cannot be met with this setting, naming it and what it spends at its end.
    fn solve(&mut self, wish: Wish, plan: &Plan, load: Load) -> Result<String> {
        let Wish { equal, amount, unknown } = wish;
        let is_dense = plan.model.weights.values().all(|form| form.rank().is_none());
        let unknown = unknown.unwrap_or(match equal {
            Equal::Parameters(_) if is_dense => Unknown::Width,
            Equal::Parameters(_) => Unknown::Rank,
            Equal::Tokens(_) | Equal::Flops(_) | Equal::Seconds(_) => Unknown::Steps,
        });
        let grid = match unknown {
            Unknown::Steps => return self.steps(equal, amount, plan),
            Unknown::Rank => ranks(plan)?,
            Unknown::Width => widths(plan),
            Unknown::Nothing => bail!("nothing is to be solved for"),
        };
        self.largest_within(wish, &grid, load)
    }

    /// The steps that spend this much.
    ///
    /// # Errors
    /// If even one step is above the budget.
    fn steps(&mut self, equal: Equal, amount: f64, plan: &Plan) -> Result<String> {
        let per_step = self.spending(equal, plan)? / plan.train.max_steps.0 as f64;
        let steps = (amount / per_step).round();
        ensure!(
            steps >= 1.0,
            "a step spends {per_step:.3e}, more than the budget of {amount:.3e}; raise the budget \
             or shrink the run"
        );
        Ok(format!("train.max_steps={steps:.0}"))
    }

    /// The largest setting of a grid within the budget, by bisection: spending grows with it.
    ///
    /// # Errors
    /// If the smallest is above the budget, or the largest there is far below it.
    fn largest_within(&mut self, wish: Wish, grid: &Grid, load: Load) -> Result<String> {
        let Wish { equal, amount, .. } = wish;
        let (mut low, mut high) = (grid.first - 1, grid.last + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let fits = match load(&grid.setting(middle)) {
                Ok(plan) => self.spending(equal, &plan)? <= amount,
                // Too narrow for the ranks of the spec, or too wide for any machine.
                Err(_) => middle < grid.present,
            };
            if fits { low = middle } else { high = middle }
        }
        let what = grid.what;
        if low < grid.first {
            let least = self.spending(equal, &load(&grid.setting(grid.first))?)?;
            bail!(
                "{what} {} spends {least:.4e}, more than the budget of {amount:.4e}; raise the \
                 budget",
                grid.value(grid.first)
            );
        }
        let (setting, number) = (grid.setting(low), grid.value(low));
        let plan = load(&setting).with_context(|| {
            format!(
                "{what} {number} is the largest within the budget of {amount:.4e}, and is not \
                 possible; raise the budget, or lower the ranks"
            )
        })?;
        let spent = self.spending(equal, &plan)?;
        ensure!(
            low < grid.last || spent >= (1.0 - MISS) * amount,
            "{what} {number} is the largest there is and spends {spent:.4e}, less than the budget \
             of {amount:.4e}; solve for `{}`, or lower the budget",
            if grid.what == "rank" { "width" } else { "steps" }
        );
        Ok(setting)
    }
}

/// Values of a setting in increasing order: `unit` / `parts` times each of `first` to `last`.
pub struct Grid {
    what: &'static str,
    key: &'static str,
    unit: usize,
    parts: usize,
    first: usize,
    last: usize,
    /// Where the spec stands.
    present: usize,
}

impl Grid {
    fn value(&self, index: usize) -> f64 {
        (self.unit * index) as f64 / self.parts as f64
    }

    fn setting(&self, index: usize) -> String {
        format!("{}={}", self.key, self.value(index))
    }
}

impl Equal {
    /// How much of it.
    pub fn budget(self) -> Budget {
        let (Equal::Tokens(budget)
        | Equal::Parameters(budget)
        | Equal::Flops(budget)
        | Equal::Seconds(budget)) = self;
        budget
    }
}

/// The rank of all weights whose rank is not written for their target alone; where a budget ends at
/// a share of the dense numbers, that share.
fn ranks(plan: &Plan) -> Result<Grid> {
    let low_rank = || plan.model.weights.iter().filter(|(_, form)| form.rank().is_some());
    let (is_budget, form) =
        (matches!(plan.rank, RankPlan::Budget(_)), low_rank().map(|(_, form)| form).next());
    if let (RankPlan::Budget(BudgetPlan { final_share: Some(share), .. }), Some(_)) =
        (&plan.rank, form)
    {
        let present = ((share * SHARES as f64).round() as usize).clamp(1, SHARES);
        let (what, key) = ("final_share", "rank.budget.final_share");
        return Ok(Grid { what, key, unit: 1, parts: SHARES, first: 1, last: SHARES, present });
    }
    let key = match form {
        None | Some(WeightForm::Dense) => {
            bail!("its weights are dense, so there is no rank to solve for; use `solve: width`")
        }
        Some(WeightForm::LowRank { .. } | WeightForm::Adapter { .. }) if is_budget => {
            "rank.budget.final_rank"
        }
        Some(WeightForm::LowRank { .. }) => "model.weights.low_rank.rank",
        Some(WeightForm::Factored { .. }) => "model.weights.factored.rank",
        Some(WeightForm::Adapter { .. }) => "model.weights.adapter.rank",
    };
    let side = |target: &Target| {
        let (rows, columns) = plan.model.shape(*target);
        rows.min(columns)
    };
    let present = low_rank().filter_map(|(_, form)| form.rank()).min().unwrap_or(1);
    let smallest_side = low_rank().map(|(target, _)| side(target)).min().unwrap_or(1);
    // A budget of ranks ends below where it starts.
    let last = if is_budget { present.saturating_sub(1).max(1) } else { smallest_side };
    Ok(Grid { what: "rank", key, unit: 1, parts: 1, first: 1, last, present: present.min(last) })
}

/// Widths that the heads share out, no head narrower than is sensible.
fn widths(plan: &Plan) -> Grid {
    let (heads, model) = (plan.model.n_head.max(1), &plan.model);
    // Rotary positions turn pairs of numbers.
    let pair = if model.arch.is_rotary() { 2 } else { 1 };
    let (unit, present) = (heads * pair, model.n_embd / (heads * pair));
    let first = (NARROWEST_HEAD / pair).min(present).max(1);
    let last = (bounds::MAX_WIDTH as usize / unit).max(first);
    Grid { what: "n_embd", key: "model.n_embd", unit, parts: 1, first, last, present }
}

/// The ranks of a plan's low-rank weights by target.
fn ranks_of(plan: &Plan) -> impl Iterator<Item = (Target, usize)> + '_ {
    plan.model.weights.iter().filter_map(|(target, form)| Some((*target, form.rank()?)))
}

/// The budget of ranks that a plan ends with, and how it counts: of its schedule, or of the cut
/// that it begins with.
fn final_budget(plan: &Plan) -> Option<(RankCount, u64)> {
    match (&plan.rank, plan.cut) {
        (RankPlan::Budget(budget), _) => {
            Some((RankCount::of_budget(budget.final_share), budget.final_parameters))
        }
        (RankPlan::Fixed, Some(CutSpec::Budget(CutBudgetSpec { share, .. }))) => {
            let cut = ranks_of(plan).map(|(target, _)| target);
            Some((RankCount::Exported, share_of_dense(&plan.model, cut, share)))
        }
        _ => None,
    }
}

/// The plan with the ranks that its budget ends with, taken as equal in all weights.
fn at_the_end(plan: &Plan) -> Plan {
    let Some((count, most)) = final_budget(plan) else { return plan.clone() };
    let with_rank = |rank: usize| {
        let mut ending = plan.clone();
        ending.model.start = LowRankStart::Factors;
        for form in ending.model.weights.values_mut() {
            if let WeightForm::LowRank { rank: own } | WeightForm::Adapter { rank: own, .. } = form
            {
                *own = rank.min(*own);
            }
        }
        ending
    };
    let (mut low, mut high) = (1, ranks_of(plan).map(|(_, rank)| rank).max().unwrap_or(1) + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let ending = with_rank(middle);
        let fits = count.of_all(&ending.model, ranks_of(&ending)) <= most;
        if fits { low = middle } else { high = middle }
    }
    with_rank(low)
}

/// Numbers of the trained model, r (m + n − r) for a weight of rank r: at the end of the run, where
/// ranks may fall; by a tolerance as they start.
pub fn final_parameters(plan: &Plan, vocabulary: usize) -> u64 {
    let ending = at_the_end(plan);
    let numbers = Ledger::new(&ending, vocabulary, 1).parameters.manifold_dimension();
    match final_budget(plan) {
        // A share lies between those of two ranks that all weights have.
        Some((RankCount::Exported, left)) => {
            numbers - RankCount::Exported.of_all(&ending.model, ranks_of(&ending)) + left
        }
        _ => numbers,
    }
}

/// Operations of the whole run. Under a budget of ranks, where a step costs about in proportion to
/// what its weights store, the steps of the fall cost what lies between the first and the last by
/// the mean of the fall; ranks by a tolerance are counted as they start.
pub fn planned_operations(plan: &Plan, vocabulary: usize) -> f64 {
    let (steps, last) = (plan.train.max_steps.0, per_step(&at_the_end(plan), vocabulary));
    let RankPlan::Budget(budget) = &plan.rank else { return steps as f64 * last };
    let first = per_step(plan, vocabulary);
    let remaining = match budget.schedule {
        RampShape::Linear | RampShape::Cosine => 0.5,
        RampShape::Cubic => 0.25,
    };
    let start = budget.cycle.start.min(steps);
    let freeze = budget.cycle.freeze.clamp(start, steps);
    let fall = (freeze - start) as f64 * (last + remaining * (first - last));
    start as f64 * first + fall + (steps - freeze) as f64 * last
}

fn per_step(plan: &Plan, vocabulary: usize) -> f64 {
    Ledger::new(plan, vocabulary, 1).flops_per_step() as f64
}
