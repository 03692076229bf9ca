//! The GPT-2 decoder: learned positions, pre-norm blocks, GELU (tanh form), tied head. Forward
//! only.
//!
//! Shapes: B sequences, T tokens, C = `n_embd`, V vocabulary.

use super::config::ModelConfig;
use super::layers::{Declarations, Head, INIT_STANDARD_DEVIATION, LayerNorm, Linear, Pass};
use super::network::{DropoutKey, Network, Site, Structure};
use crate::ops::{self, Compute, Tape, Value};
use crate::params::{ParamId, ParamStore};
use crate::spec::Target;
use candle_core::{Result, Tensor};

/// Added to the variance in layer norms.
const NORM_EPSILON: f64 = 1e-5;

/// A GPT-2 of some size.
#[derive(Clone, Debug)]
pub struct Gpt2 {
    structure: Structure,
    token_table: ParamId,
    position_table: ParamId,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
}

#[derive(Clone, Debug)]
struct Block {
    norm_1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
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
        let Declarations { parameters: declared, sites } = declarations;
        let structure = Structure { config, compute: Compute::default(), declared, sites };
        Self { structure, token_table, position_table, blocks, final_norm }
    }
}

fn norm(config: &ModelConfig, name: &str, declarations: &mut Declarations) -> LayerNorm {
    LayerNorm::declare(declarations, name, config.n_embd, config.bias, NORM_EPSILON)
}

impl Network for Gpt2 {
    fn structure(&self) -> &Structure {
        &self.structure
    }

    fn structure_mut(&mut self) -> &mut Structure {
        &mut self.structure
    }

    fn head(&self) -> Head {
        Head { weight: self.token_table }
    }

    fn hidden_observed(
        &self,
        params: &ParamStore,
        tape: &Tape,
        tokens: &Tensor,
        dropout: Option<DropoutKey>,
        observe: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<Value> {
        let config = self.config();
        let pass = Pass { params, tape, probability: config.dropout, key: dropout };
        let embedded = ops::embedding(
            tape,
            tokens,
            &pass.dense(self.token_table)?,
            &pass.dense(self.position_table)?,
        )?;
        let mut x = pass.dropout(&embedded, "embedding", 0)?;
        observe("transformer.wte", x.tensor())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.attention(&pass, layer, &x, config.n_head)?;
            observe(&format!("transformer.h.{layer}.attn"), x.tensor())?;
            x = block.mlp(&pass, layer, &x)?;
            observe(&format!("transformer.h.{layer}.mlp"), x.tensor())?;
        }
        let hidden = self.final_norm.forward(&pass, &x)?;
        observe("transformer.ln_f", hidden.tensor())?;
        Ok(hidden)
    }
}

impl Block {
    fn declare(config: &ModelConfig, layer: usize, declarations: &mut Declarations) -> Self {
        let prefix = format!("transformer.h.{layer}");
        let linear = |name: &str, kind, declarations: &mut Declarations| {
            let (rows, columns) = config.shape(kind);
            let site = Site { name: format!("{prefix}.{name}"), layer, kind, rows, columns };
            // Those that write to the residual stream, 2 in a block, add up.
            let writes = matches!(kind, Target::O | Target::DOWN);
            let standard_deviation = INIT_STANDARD_DEVIATION
                / if writes { (2.0 * config.n_layer as f64).sqrt() } else { 1.0 };
            Linear::declare(declarations, site, config.form(kind), config.bias, standard_deviation)
        };
        Self {
            norm_1: norm(config, &format!("{prefix}.ln_1"), declarations),
            query: linear("attn.q", Target::Q, declarations),
            key: linear("attn.k", Target::K, declarations),
            value: linear("attn.v", Target::V, declarations),
            output: linear("attn.o", Target::O, declarations),
            norm_2: norm(config, &format!("{prefix}.ln_2"), declarations),
            up: linear("mlp.up", Target::UP, declarations),
            down: linear("mlp.down", Target::DOWN, declarations),
        }
    }

    /// x + O(attention(Q, K, V)) of the normed x.
    fn attention(&self, pass: &Pass, layer: usize, x: &Value, n_head: usize) -> Result<Value> {
        let h = self.norm_1.forward(pass, x)?;
        let (q, k, v) = (
            self.query.forward(pass, &h)?,
            self.key.forward(pass, &h)?,
            self.value.forward(pass, &h)?,
        );
        drop(h);
        let mixed = ops::causal_attention(
            pass.tape,
            &q,
            &k,
            &v,
            n_head,
            pass.dropout_at("attention", layer),
        )?;
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
