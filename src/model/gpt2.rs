//! The GPT-2 decoder: learned positions, pre-norm blocks, GELU (tanh form), tied head or one
//! of its own. Forward only.
//!
//! Shapes: B sequences, T tokens, C = `n_embd`, V vocabulary.

use super::config::ModelConfig;
use super::head::Head;
use super::layers::{Declarations, LayerNorm, Linear, Pass};
use super::network::{Network, Structure};
use super::projections::Projections;
use crate::ops::{self, AttentionHeads, Compute, Value};
use crate::params::ParamId;
use crate::spec::Target;
use candle_core::{Result, Tensor};

/// A GPT-2 of some size.
#[derive(Clone, Debug)]
pub struct Gpt2 {
    structure: Structure,
    token_table: ParamId,
    position_table: ParamId,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    head: Head,
}

#[derive(Clone, Debug)]
struct Block {
    norm_1: LayerNorm,
    qkv: Projections,
    output: Linear,
    norm_2: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Gpt2 {
    /// The structure for this configuration.
    pub fn new(config: ModelConfig) -> Self {
        let mut declarations = Declarations::default();
        let width = config.n_embd;
        let token_table = declarations.table("transformer.wte.weight", config.vocab_size, width);
        let position_table = declarations.table("transformer.wpe.weight", config.block_size, width);
        let blocks = (0..config.n_layer)
            .map(|layer| Block::declare(&config, layer, &mut declarations))
            .collect();
        let final_norm = norm(&config, "transformer.ln_f", &mut declarations);
        let head = Head::declare(&mut declarations, &config, token_table);
        let Declarations { parameters: declared, sites } = declarations;
        let structure = Structure { config, compute: Compute::default(), declared, sites };
        Self { structure, token_table, position_table, blocks, final_norm, head }
    }
}

fn norm(config: &ModelConfig, name: &str, declarations: &mut Declarations) -> LayerNorm {
    LayerNorm::declare(declarations, name, config.n_embd, config.bias, config.norm_epsilon())
}

impl Network for Gpt2 {
    fn structure(&self) -> &Structure {
        &self.structure
    }

    fn structure_mut(&mut self) -> &mut Structure {
        &mut self.structure
    }

    fn head(&self) -> Head {
        self.head
    }

    fn run(
        &self,
        pass: &Pass,
        tokens: &Tensor,
        observe: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<Value> {
        let config = self.config();
        let table = pass.dense(self.token_table)?;
        let embedded = match pass.documents {
            None => {
                let positions = pass.positions(self.position_table, tokens.dim(1)?)?;
                ops::embedding(pass.tape, tokens, &table, &positions)?
            }
            Some(documents) => {
                let positions = documents.positions().to_device(tokens.device())?;
                let tokens = ops::token_embedding(pass.tape, tokens, &table)?;
                let table = pass.dense(self.position_table)?;
                let positions = ops::token_embedding(pass.tape, &positions, &table)?;
                ops::add(pass.tape, &tokens, &positions)?
            }
        };
        let mut x = pass.dropout(&embedded, "embedding", 0)?;
        observe("transformer.wte", x.tensor())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.attention(pass, layer, &x, config.heads())?;
            observe(&format!("transformer.h.{layer}.attn"), x.tensor())?;
            x = block.mlp(pass, layer, &x)?;
            observe(&format!("transformer.h.{layer}.mlp"), x.tensor())?;
        }
        let hidden = self.final_norm.forward(pass, &x)?;
        observe("transformer.ln_f", hidden.tensor())?;
        Ok(hidden)
    }
}

impl Block {
    fn declare(config: &ModelConfig, layer: usize, declarations: &mut Declarations) -> Self {
        let prefix = format!("transformer.h.{layer}");
        let linear = |name: &str, kind, declarations: &mut Declarations| {
            Linear::of_block(declarations, config, format!("{prefix}.{name}"), layer, kind)
        };
        Self {
            norm_1: norm(config, &format!("{prefix}.ln_1"), declarations),
            qkv: Projections::of_block(declarations, config, &format!("{prefix}.attn"), layer),
            output: linear("attn.o", Target::O, declarations),
            norm_2: norm(config, &format!("{prefix}.ln_2"), declarations),
            up: linear("mlp.up", Target::UP, declarations),
            down: linear("mlp.down", Target::DOWN, declarations),
        }
    }

    /// x + O(attention(Q, K, V)) of the normed x.
    fn attention(
        &self,
        pass: &Pass,
        layer: usize,
        x: &Value,
        heads: AttentionHeads,
    ) -> Result<Value> {
        let h = self.norm_1.forward(pass, x)?;
        let [q, k, v] = self.qkv.forward(pass, &h)?;
        drop(h);
        let mixed = pass.attention(layer, [&q, &k, &v], heads)?;
        drop((q, k, v));
        let out = self.output.forward(pass, &mixed)?;
        ops::add(pass.tape, x, &pass.dropout(&out, "attention output", layer)?)
    }

    /// x + Down(GELU(Up(norm x))).
    fn mlp(&self, pass: &Pass, layer: usize, x: &Value) -> Result<Value> {
        let up = self.up.forward(pass, &self.norm_2.forward(pass, x)?)?;
        let active = ops::gelu(pass.tape, &up)?;
        drop(up);
        let out = self.down.forward(pass, &active)?;
        ops::add(pass.tape, x, &pass.dropout(&out, "mlp output", layer)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;
    use crate::ops::Gradients;
    use crate::params::{ParamStore, Weight};
    use candle_core::{DType, Device};

    fn network(n_kv_head: Option<usize>) -> Box<dyn Network> {
        let config = serde_json::json!({
            "arch": "gpt2", "n_layer": 2, "n_head": 4, "n_kv_head": n_kv_head, "n_embd": 16,
            "block_size": 6, "vocab_size": 11, "dropout": 0.0, "bias": true, "weights": {}
        });
        build(serde_json::from_value(config).expect("a configuration")).expect("a network")
    }

    fn loss(model: &dyn Network, params: &ParamStore) -> (f64, Gradients) {
        let tokens = Tensor::new(&[[1u32, 4, 9, 0, 3, 3], [10, 2, 2, 7, 5, 6]], &Device::Cpu);
        let targets = Tensor::new(&[[4u32, 9, 0, 3, 3, 8], [2, 2, 7, 5, 6, 1]], &Device::Cpu);
        let (tape, mut gradients) = (model.training_tape(), Gradients::new(params.slot_count()));
        let (tokens, targets) = (tokens.expect("ids"), targets.expect("ids"));
        let loss = model.loss(params, &tape, &tokens, &targets, None).expect("forward");
        tape.backward(&loss, &mut gradients).expect("backward");
        (loss.tensor().to_scalar().expect("a number"), gradients)
    }

    /// Two heads of keys and values do what four do of which two in a row are equal; a gradient is
    /// the sum over those that share.
    #[test]
    fn fewer_heads_of_keys_are_as_many_that_repeat() -> Result<()> {
        let (grouped, full) = (network(Some(2)), network(None));
        let few = grouped.initialize(3, DType::F64, &Device::Cpu)?;
        let mut many = full.initialize(3, DType::F64, &Device::Cpu)?;
        // Rows of heads (2, 4, …) to (2, 2, 4, …), and back by sums.
        let repeat = |x: &Tensor| -> Result<Tensor> {
            let heads = x.chunk(2, 0)?;
            Tensor::cat(&[&heads[0], &heads[0], &heads[1], &heads[1]], 0)
        };
        let sum = |x: &Tensor| -> Result<Tensor> {
            let heads = x.chunk(4, 0)?;
            Tensor::cat(&[(&heads[0] + &heads[1])?, (&heads[2] + &heads[3])?], 0)
        };
        let shared = |name: &str| name.contains("attn.k.") || name.contains("attn.v.");
        for (id, parameter) in few.iter() {
            let weight = few.dense(id)?;
            let weight = if shared(&parameter.name) { repeat(weight)? } else { weight.clone() };
            assert_eq!(weight.dims(), many.dense(id)?.dims(), "{}", parameter.name);
            many.set(id, Weight::Dense(weight));
        }
        let ((a, of_few), (b, of_many)) = (loss(&*grouped, &few), loss(&*full, &many));
        assert!((a - b).abs() < 1e-12, "{a} {b}");
        for (id, parameter) in few.iter() {
            let slot = ParamStore::slot(id);
            let (ours, theirs) = (of_few.get(slot).expect("one"), of_many.get(slot).expect("one"));
            let theirs = if shared(&parameter.name) { sum(theirs)? } else { theirs.clone() };
            let error = (ours - theirs)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(error < 1e-12, "{}: {error}", parameter.name);
        }
        Ok(())
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let mut config = network(None).config().clone();
        config.n_kv_head = Some(3);
        let error = build(config).expect_err("3 of 4").to_string();
        assert!(error.contains("n_head 4 is not divisible by its n_kv_head 3"), "{error}");
    }
}
