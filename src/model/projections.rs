//! The layers that make a block's queries, keys and values of its input: three, or one whose outputs
//! are split.

use super::config::ModelConfig;
use super::layers::{Declarations, Linear, Pass};
use crate::ops::{self, Value};
use crate::spec::Target;
use candle_core::Result;

/// q = x W_qᵀ, k = x W_kᵀ and v = x W_vᵀ, with biases where the model has them.
#[derive(Clone, Debug)]
pub enum Projections {
    /// A matrix each.
    Separate([Linear; 3]),
    /// The rows of one matrix, [W_q; W_k; W_v].
    Fused {
        /// The matrix.
        joint: Linear,
        /// Its rows of each part.
        rows: [usize; 3],
    },
}

impl Projections {
    /// The layers of a block, as the configuration has them; `prefix` is the name of its attention.
    pub fn of_block(
        declarations: &mut Declarations,
        config: &ModelConfig,
        prefix: &str,
        layer: usize,
    ) -> Self {
        let mut linear = |kind: Target| {
            let name = format!("{prefix}.{}", kind.name());
            Linear::of_block(declarations, config, name, layer, kind)
        };
        match config.fused_qkv {
            false => Projections::Separate([Target::Q, Target::K, Target::V].map(linear)),
            true => Projections::Fused { joint: linear(Target::QKV), rows: config.qkv_rows() },
        }
    }

    /// Queries (B, T, H d), keys and values (B, T, G d) of the normed x (B, T, C).
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn forward(&self, pass: &Pass, x: &Value) -> Result<[Value; 3]> {
        match self {
            Projections::Separate([query, key, value]) => {
                Ok([query.forward(pass, x)?, key.forward(pass, x)?, value.forward(pass, x)?])
            }
            Projections::Fused { joint, rows } => {
                ops::split(pass.tape, &joint.forward(pass, x)?, *rows)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Network, build};
    use super::*;
    use crate::ops::Gradients;
    use crate::params::{ParamStore, Weight};
    use candle_core::{DType, Device, Tensor};

    fn network(arch: &str, n_kv_head: usize, fused_qkv: bool) -> Box<dyn Network> {
        let config = serde_json::json!({
            "arch": arch, "n_layer": 2, "n_head": 4, "n_kv_head": n_kv_head, "n_embd": 16,
            "block_size": 6, "vocab_size": 11, "dropout": 0.0, "bias": true,
            "fused_qkv": fused_qkv, "weights": {}
        });
        build(serde_json::from_value(config).expect("a configuration")).expect("a network")
    }

    fn loss(model: &dyn Network, params: &ParamStore) -> Result<(f64, Gradients)> {
        let tokens = Tensor::new(&[[1u32, 4, 9, 0, 3, 3], [10, 2, 2, 7, 5, 6]], &Device::Cpu)?;
        let targets = Tensor::new(&[[4u32, 9, 0, 3, 3, 8], [2, 2, 7, 5, 6, 1]], &Device::Cpu)?;
        let (tape, mut gradients) = (model.training_tape(), Gradients::new(params.slot_count()));
        let loss = model.loss(params, &tape, &tokens, &targets, None)?;
        tape.backward(&loss, &mut gradients)?;
        Ok((loss.tensor().to_scalar()?, gradients))
    }

    /// [W_q; W_k; W_v] does what the three do, and its gradient is theirs, one below the other.
    #[test]
    fn one_matrix_is_three_below_one_another() -> Result<()> {
        for (arch, n_kv_head) in [("gpt2", 4), ("gpt2", 1), ("llama", 4), ("llama", 2)] {
            let (joint, three) = (network(arch, n_kv_head, true), network(arch, n_kv_head, false));
            let mut separate = three.initialize(3, DType::F64, &Device::Cpu)?;
            for id in (0..separate.len()).map(crate::params::ParamId) {
                // Biases that are not 0, and weights that matter.
                let old = separate.dense(id)?.clone();
                let mut stream = crate::rng::stream(4, "projections", &[id.0 as u64]);
                let noise = crate::rng::normals(&mut stream, old.elem_count());
                let noise = Tensor::from_vec(noise, old.shape(), &Device::Cpu)?;
                separate.set(id, Weight::Dense((old + (noise * 0.2)?)?));
            }
            let named = |params: &ParamStore, name: &str| {
                params.iter().find(|(_, parameter)| parameter.name == name).map(|(id, _)| id)
            };
            // The tensor of a name, or those of its three parts as one.
            let find = |name: &str, read: &dyn Fn(crate::params::ParamId) -> Result<Tensor>| {
                if let Some(id) = named(&separate, name) {
                    return read(id);
                }
                let part = |kind: &str| {
                    let name = name.replace("attn.qkv.", &format!("attn.{kind}."));
                    read(named(&separate, &name).expect("a part"))
                };
                Tensor::cat(&[part("q")?, part("k")?, part("v")?], 0)
            };
            let mut fused = joint.initialize(3, DType::F64, &Device::Cpu)?;
            let names: Vec<_> = fused.iter().map(|(id, p)| (id, p.name.clone())).collect();
            for (id, name) in &names {
                let tensor = find(name, &|id| separate.dense(id).cloned())?;
                assert_eq!(tensor.dims(), fused.dense(*id)?.dims(), "{name}");
                fused.set(*id, Weight::Dense(tensor));
            }
            let ((a, ours), (b, theirs)) = (loss(&*joint, &fused)?, loss(&*three, &separate)?);
            assert!((a - b).abs() < 1e-12, "{arch} {n_kv_head}: {a} {b}");
            for (id, name) in &names {
                let gradient = |id| Ok(theirs.get(ParamStore::slot(id)).expect("one").clone());
                let expected = find(name, &gradient)?;
                let found = ours.get(ParamStore::slot(*id)).expect("a gradient");
                let error = (found - expected)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(error < 1e-12, "{arch} {n_kv_head} {name}: {error}");
            }
        }
        Ok(())
    }

    /// Entries of the joint matrix begin with the deviation that those of three do, in every form.
    #[test]
    fn it_begins_with_the_deviation_of_three() -> Result<()> {
        let deviation = |form: serde_json::Value| -> Result<f64> {
            let config = serde_json::json!({
                "arch": "gpt2", "n_layer": 1, "n_head": 4, "n_kv_head": 2, "n_embd": 64,
                "block_size": 6, "vocab_size": 11, "dropout": 0.0, "bias": false,
                "fused_qkv": true, "weights": {"qkv": form}
            });
            let config = serde_json::from_value(config).expect("a configuration");
            let model = build(config).expect("a network");
            let params = model.initialize(3, DType::F64, &Device::Cpu)?;
            let is_joint = |name: &str| name.contains("attn.qkv");
            let found = params.iter().find(|(_, parameter)| is_joint(&parameter.name));
            let w = match &found.expect("the joint matrix").1.weight {
                Weight::LowRank(point) => point.to_dense()?,
                Weight::Dense(w) | Weight::Uncut(w) => w.clone(),
            };
            assert_eq!(w.dims(), [128, 64]);
            Ok(w.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt())
        };
        let dense = deviation(serde_json::json!("dense"))?;
        let low_rank = deviation(serde_json::json!({"low_rank": {"rank": 8}}))?;
        assert!((dense - 0.02).abs() < 1e-3, "{dense}");
        assert!((low_rank - 0.02).abs() < 1e-9, "{low_rank}");
        Ok(())
    }
}
