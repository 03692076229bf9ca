//! Optimizer steps, a short training, checkpoints and memory.

use super::{Check, numbers};
use crate::checkpoint::Checkpoints;
use crate::data::TokenShard;
use crate::device;
use crate::linalg;
use crate::params::Weight;
use crate::rng;
use crate::spec::{Plan, parse_plan};
use crate::train::{Trainer, measured_memory};
use anyhow::{Context, Result};
use candle_core::Device;
use rand::Rng;
use std::process::Command;
use std::sync::Arc;

/// Tokens in the vocabulary of the text that is learned.
const VOCABULARY: usize = 61;
/// How far two steps may lie apart, relative to how far they lead.
const STEP_BOUND: f64 = 2e-3;
/// How far the losses of two trainings may lie apart, in nats.
const LOSS_BOUND: f64 = 0.02;
/// The same where one of them rounds its products to bf16.
const LOSS_BOUND_BF16: f64 = 0.05;

/// Every rule: its name, the weights' form and the optimizer.
const RULES: [(&str, &str, &str); 15] = [
    ("AdamW", "dense", "{}"),
    ("Muon", "dense", "{matrices: {muon: {}}}"),
    ("GaLore", "dense", "{matrices: {galore: {rank: 8}}}"),
    ("AdamW on factors", "{factored: {rank: 8}}", "{}"),
    ("heavy ball on factors", "{factored: {rank: 8}}", "{low_rank: {heavy_ball: {}}}"),
    (
        "LORO",
        "{factored: {rank: 8}}",
        "{low_rank: {loro: {exact_every: 2, restart_warmup_steps: 1}}}",
    ),
    ("DLRA spectral", "{low_rank: {rank: 8}}", "{low_rank: {dlra: {momentum: spectral}}}"),
    (
        "DLRA spectral, SVD",
        "{low_rank: {rank: 8}}",
        "{low_rank: {dlra: {momentum: spectral, retraction: svd}}}",
    ),
    ("DLRA adam", "{low_rank: {rank: 8}}", "{low_rank: {dlra: {momentum: adam}}}"),
    (
        "DLRA adam, Nesterov",
        "{low_rank: {rank: 8}}",
        "{low_rank: {dlra: {momentum: adam, nesterov: true}}}",
    ),
    ("DLRA matrix adam", "{low_rank: {rank: 8}}", "{low_rank: {dlra: {momentum: matrix_adam}}}"),
    (
        "DLRA heavy ball",
        "{low_rank: {rank: 8}}",
        "{low_rank: {dlra: {momentum: heavy_ball, retraction: svd}}}",
    ),
    (
        "DLRA augmented BUG",
        "{low_rank: {rank: 8}}",
        "{low_rank: {dlra: {integrator: augmented_bug}}}",
    ),
    (
        "DLRA coefficient cycle",
        "{low_rank: {rank: 8}}",
        "{low_rank: {dlra: {integrator: coefficient_cycle}}}",
    ),
    (
        "DLRA truncated every second step",
        "{low_rank: {rank: 8}}",
        "{low_rank: {dlra: {retraction: svd, truncate_every: 2}}}",
    ),
];
/// The rule of the longer comparisons.
const SPECTRAL: (&str, &str) =
    ("{low_rank: {rank: 8}}", "{low_rank: {dlra: {momentum: spectral, learning_rate: 2e-2}}}");

/// What is added to a plan so that it takes the path of a GPU: on one its kernels, on the CPU what
/// runs where there are none.
fn path_of(device: &Device) -> &'static str {
    if device.is_cpu() { "linalg: device\nkernels: portable\n" } else { "linalg: device\n" }
}

/// Compares steps, trainings and checkpoints; `steps` is the length of the training.
pub fn run(device: &Device, steps: u64, found: &mut dyn FnMut(Check)) {
    let text = text();
    let reference = Device::Cpu;
    for (name, weights, optimizer) in RULES {
        found(Check::new(
            "one step",
            name,
            STEP_BOUND,
            step_difference(&text, weights, optimizer, device),
        ));
    }
    found(Check::new(
        "one step",
        "transfers do not grow with depth",
        0.0,
        extra_transfers(&text, device),
    ));

    let name = |what: &str| format!("{steps} steps, {what}");
    let trained = |extra: &str, device: &Device| {
        Ok(losses(&plan(SPECTRAL.0, SPECTRAL.1, 2, steps, extra)?, device, &text)?.1)
    };
    let expected: Result<f64> = trained("", &reference);
    let against = |loss: Result<f64>| match &expected {
        Ok(expected) => Ok((loss? - expected).abs()),
        Err(error) => Err(anyhow::anyhow!("the CPU's own training failed: {error:#}")),
    };
    found(Check::new(
        "training",
        name("f32 against the CPU"),
        LOSS_BOUND,
        against(trained(path_of(device), device)),
    ));
    let bf16 = format!("{}dtype: {{compute: bf16}}\n", path_of(device));
    found(Check::new(
        "training",
        name("bf16 products against f32"),
        LOSS_BOUND_BF16,
        against(trained(&bf16, device)),
    ));
    found(Check::new(
        "training",
        name("loss falls (its share of the first)"),
        0.95,
        share_of_first_loss(steps, device, &text),
    ));

    let there = resumed(&text, ("", &reference), (path_of(device), device));
    found(Check::new("checkpoint", "written on the CPU, resumed here", LOSS_BOUND, there));
    let back = resumed(&text, (path_of(device), device), ("", &reference));
    found(Check::new("checkpoint", "written here, resumed on the CPU", LOSS_BOUND, back));
    found(Check::new("memory", "kept after a run, MiB", 32.0, kept_memory(&text, device)));
}

/// Two sequences of words in random order: something to learn, in a vocabulary of [`VOCABULARY`].
fn text() -> Arc<TokenShard> {
    let mut random = rng::stream(3, "selftest text", &[]);
    let mut tokens = Vec::new();
    while tokens.len() < 20_000 {
        let word: u32 = random.random_range(0..12);
        tokens.extend((0..5).map(|letter| 1 + word * 5 + letter));
    }
    Arc::new(TokenShard::from_tokens(tokens))
}

fn plan(weights: &str, optimizer: &str, n_layer: usize, steps: u64, extra: &str) -> Result<Plan> {
    let yaml = format!(
        "name: selftest\n\
         model: {{n_layer: {n_layer}, n_head: 2, n_embd: 48, block_size: 32, weights: {weights}}}\n\
         data: {{source: cargo_registry, tokenizer: bytes}}\n\
         train: {{max_steps: {steps}, batch_size: 8, gradient_accumulation_steps: 2}}\n\
         optimizer: {optimizer}\n\
         schedule: {{constant: {{warmup_steps: 0}}}}\n\
         {extra}"
    );
    Ok(parse_plan(&yaml, "selftest", &[])?.1)
}

fn trainer<'a>(plan: &'a Plan, device: &'a Device, text: &Arc<TokenShard>) -> Result<Trainer<'a>> {
    Trainer::fresh(plan, device, VOCABULARY, Arc::clone(text))
}

/// Loss of the first and of the last step of a training.
fn losses(plan: &Plan, device: &Device, text: &Arc<TokenShard>) -> Result<(f64, f64)> {
    let mut trainer = trainer(plan, device, text)?;
    let mut losses = Vec::new();
    for step in 1..=plan.train.max_steps.0 {
        losses.push(trainer.step(step)?.report.loss);
    }
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else {
        anyhow::bail!("a training of no steps has no loss")
    };
    Ok((*first, *last))
}

fn share_of_first_loss(steps: u64, device: &Device, text: &Arc<TokenShard>) -> Result<f64> {
    let (first, last) =
        losses(&plan(SPECTRAL.0, SPECTRAL.1, 2, steps, path_of(device))?, device, text)?;
    Ok(last / first)
}

/// All weights as full matrices, one after another.
fn weights(trainer: &Trainer) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for (_, parameter) in trainer.params.iter() {
        all.extend(numbers(&match &parameter.weight {
            Weight::Dense(tensor) | Weight::Uncut(tensor) => tensor.clone(),
            Weight::LowRank(point) => point.to_dense()?,
        })?);
    }
    Ok(all)
}

/// ‖W_device − W_cpu‖ / ‖W_cpu − W_0‖ over all weights after two steps.
fn step_difference(
    text: &Arc<TokenShard>,
    form: &str,
    optimizer: &str,
    device: &Device,
) -> Result<f64> {
    let (here, there) =
        (plan(form, optimizer, 2, 2, "")?, plan(form, optimizer, 2, 2, path_of(device))?);
    let (mut reference, mut tested) =
        (trainer(&here, &Device::Cpu, text)?, trainer(&there, device, text)?);
    let start = weights(&reference)?;
    for step in 1..=2 {
        reference.step(step)?;
        tested.step(step)?;
    }
    let norm =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let (expected, found) = (weights(&reference)?, weights(&tested)?);
    anyhow::ensure!(
        expected.len() == found.len(),
        "{} weights where there should be {}",
        found.len(),
        expected.len()
    );
    Ok(norm(&found, &expected) / norm(&expected, &start))
}

/// Transfers of the linear algebra in a step of four layers beyond those of two.
fn extra_transfers(text: &Arc<TokenShard>, device: &Device) -> Result<f64> {
    let mut count = [0; 2];
    for (count, layers) in count.iter_mut().zip([2, 4]) {
        let plan = plan(SPECTRAL.0, SPECTRAL.1, layers, 2, path_of(device))?;
        let mut trainer = trainer(&plan, device, text)?;
        trainer.step(1)?;
        let before = linalg::transfers();
        trainer.step(2)?;
        *count = linalg::transfers() - before;
    }
    anyhow::ensure!(
        count[0] > 0,
        "no transfer was counted: the linear algebra did not run on the device"
    );
    Ok(count[1].abs_diff(count[0]) as f64)
}

/// |loss − loss of a run of ten steps on the CPU|, for a run that changes place after five, through a checkpoint on disk.
fn resumed(
    text: &Arc<TokenShard>,
    (extra_before, before): (&str, &Device),
    (extra_after, after): (&str, &Device),
) -> Result<f64> {
    let (_, expected) = losses(&plan(SPECTRAL.0, SPECTRAL.1, 2, 10, "")?, &Device::Cpu, text)?;
    let folder = tempfile::tempdir().context("a temporary folder for checkpoints")?;
    let mut checkpoints = Checkpoints::open(folder.path());
    let (first, second) = (
        plan(SPECTRAL.0, SPECTRAL.1, 2, 10, extra_before)?,
        plan(SPECTRAL.0, SPECTRAL.1, 2, 10, extra_after)?,
    );
    {
        let mut trainer = trainer(&first, before, text)?;
        for step in 1..=5 {
            trainer.step(step)?;
        }
        checkpoints.save(&trainer.snapshot(5, trainer.moments()?, serde_json::Value::Null)?)?;
    }
    let snapshot = crate::checkpoint::load(&checkpoints.path(5))?;
    let mut trainer = Trainer::restored(&second, after, snapshot, Arc::clone(text))?;
    let mut loss = f64::NAN;
    for step in 6..=10 {
        loss = trainer.step(step)?.report.loss;
    }
    Ok((loss - expected).abs())
}

/// MiB that a second run leaves behind: of the device's memory where it has its own, else of the
/// process.
fn kept_memory(text: &Arc<TokenShard>, device: &Device) -> Result<f64> {
    let used = || -> Result<u64> {
        device.synchronize()?;
        match device::memory(device) {
            Some(memory) => Ok(memory.used),
            None => resident(measured_memory(device).get("resident").copied()),
        }
    };
    let plan = plan(SPECTRAL.0, SPECTRAL.1, 2, 5, path_of(device))?;
    losses(&plan, device, text)?;
    let before = used()?;
    losses(&plan, device, text)?;
    Ok(used()?.saturating_sub(before) as f64 / f64::from(1 << 20))
}

/// Bytes of this process, where `/proc` told them, or else as `ps` has them.
///
/// # Errors
/// If nothing measures them: a check of nothing must not pass.
fn resident(from_proc: Option<u64>) -> Result<u64> {
    if let Some(bytes) = from_proc {
        return Ok(bytes);
    }
    let output = Command::new("ps")
        .args(["-o", "rss=", "-p", &std::process::id().to_string()])
        .output()
        .context("the memory of this process is not in /proc, and `ps` cannot be run")?;
    let kibibytes: u64 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .ok()
        .filter(|kibibytes| *kibibytes > 0)
        .context("the memory of this process is not in /proc, and `ps` does not tell it")?;
    Ok(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is no /proc, memory is measured by other means or the check fails.
    #[test]
    fn memory_that_is_not_measured_is_an_error() {
        assert_eq!(resident(Some(7)).unwrap(), 7);
        match resident(None) {
            Ok(bytes) => assert!(bytes > 1 << 20, "{bytes} bytes is no process"),
            Err(error) => assert!(format!("{error:#}").contains("ps"), "{error:#}"),
        }
    }
}
