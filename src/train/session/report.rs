//! What a session tells its observers: figures, ranks, spectra, validation, samples.

use super::together::OfAllProcesses;
use super::{Session, divergence};
use crate::lowrank::Truncation;
use crate::model::{Request, Sampling, generate};
use crate::optim::StepReport;
use crate::params::{ParamId, Parameter};
use crate::record::{
    Evaluation, Event, LayerRank, Observer, Observers, Ranks, Sample, Spectra, Step,
};
use crate::rng;
use crate::spec::DenseOptimizerSpec;
use crate::train::evaluate::ValidationLoss;
use crate::train::memory;
use crate::train::meter::Meter;
use anyhow::Result;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::time::Instant;

impl Session<'_> {
    pub(super) fn step_record(
        &self,
        report: &StepReport,
        of_all: Option<OfAllProcesses>,
        meter: &mut Meter,
    ) -> Step {
        let settings = self.trainer.optimizer.settings();
        let DenseOptimizerSpec::Adamw(dense) = &settings.rules.dense;
        let has_low_rank = self.trainer.params.ranks().next().is_some();
        let means = meter.take();
        let mut memory = memory::measured(self.options.device);
        let largest = of_all.map(|of_all| of_all.largest_peak).filter(|peak| *peak > 0);
        memory.extend(largest.map(|peak| ("peak_largest", peak)));
        Step {
            step: self.state.step,
            tokens: self.state.tokens,
            flops: self.state.flops,
            parameters: self.trainer.params.element_count() as u64,
            loss: report.loss,
            grad_norm: report.gradient_norm,
            learning_rate: dense.learning_rate * report.schedule_factor,
            low_rank_learning_rate: settings
                .rules
                .dlra()
                .filter(|_| has_low_rank)
                .map(|dlra| dlra.learning_rate * report.schedule_factor),
            tokens_per_second: means.tokens_per_second,
            rank_mean: self.trainer.params.mean_rank(),
            wire_bytes: of_all.map(|of_all| of_all.wire_bytes),
            times: means.times,
            memory,
        }
    }

    /// The rank of every low-rank weight, with the truncation errors of this step.
    pub(super) fn ranks(
        &self,
        truncations: &[(ParamId, Truncation)],
        defect: Option<f64>,
    ) -> Ranks {
        let truncations: BTreeMap<_, _> =
            truncations.iter().map(|(id, truncation)| (*id, truncation)).collect();
        let layers = self.trainer.params.ranks().map(|(id, parameter, rank)| LayerRank {
            name: parameter.name.clone(),
            rank,
            truncation_error: truncations.get(&id).map(|truncation| truncation.relative_error),
            discarded_energy: truncations.get(&id).map(|truncation| truncation.error.powi(2)),
        });
        Ranks { step: self.state.step, layers: layers.collect(), defect }
    }

    /// The singular values of every low-rank weight.
    fn spectra(&self) -> Result<Spectra> {
        let weights: Vec<_> = self.trainer.params.ranks().collect();
        let layer = |(_, parameter, _): &(ParamId, &Parameter, usize)| {
            Ok((parameter.name.clone(), parameter.weight.singular_values()?))
        };
        Ok(Spectra {
            step: self.state.step,
            layers: weights.par_iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// Validation loss and a sample of text.
    pub(super) fn evaluate(
        &self,
        truncations: &[(ParamId, Truncation)],
        observers: &mut Observers,
    ) -> Result<ValidationLoss> {
        let started = Instant::now();
        let loss = self.validation_loss()?;
        let step = self.state.step;
        observers.on(&Event::Evaluation(Evaluation {
            step,
            tokens: self.state.tokens,
            flops: self.state.flops,
            parameters: self.trainer.params.element_count() as u64,
            loss: loss.loss,
            perplexity: loss.perplexity,
            bits_per_byte: loss.bits_per_byte,
            validation_tokens: loss.tokens,
            seconds: started.elapsed().as_secs_f64(),
        }))?;
        divergence::ensure_finite_validation(loss.loss, step)?;
        if !self.writes() {
            return Ok(loss);
        }
        if self.trainer.params.ranks().next().is_some() {
            observers.on(&Event::Ranks(self.ranks(truncations, self.worst_defect()?)))?;
            observers.on(&Event::Spectra(self.spectra()?))?;
        }
        let sample = &self.plan.sample;
        if sample.tokens.0 > 0 {
            let prompt = if sample.prompt.is_empty() { "\n" } else { &sample.prompt };
            let sampling = Sampling {
                temperature: sample.temperature,
                top_k: sample.top_k,
                top_p: sample.top_p,
                seed: rng::key64(self.plan.seed, "sample", &[step]),
            };
            // A tokenizer that cannot encode the prompt (characters unseen in the text) is no
            // reason to end a run.
            let prompt = self.tokenizer.encode_or_first(prompt);
            let count = sample.tokens.0 as usize;
            let request =
                Request { prompt: &prompt, count, samples: 1, end: None, slide: 1, sampling };
            let (model, params) = (self.trainer.model.as_ref(), &self.trainer.params);
            let tokens = generate(model, params, request, &mut |_, _| true)?.concat();
            let text = self.tokenizer.show(&[prompt, tokens].concat())?;
            // The file of a sample would make a folder that has gone anew.
            self.check_lock()?;
            observers.on(&Event::Sample(Sample { step, text }))?;
        }
        Ok(loss)
    }

    /// Largest ‖UᵀU − I‖_F or ‖VᵀV − I‖_F over the low-rank weights; none where all are still dense.
    fn worst_defect(&self) -> Result<Option<f64>> {
        let mut worst: Option<f64> = None;
        for (_, _, point) in self.trainer.params.low_rank() {
            let defect = point.orthonormality_defect()?;
            worst = Some(worst.map_or(defect, |w| w.max(defect)));
        }
        Ok(worst)
    }
}
