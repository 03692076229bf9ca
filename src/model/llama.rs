//! The Llama decoder (Touvron et al. 2023): rotary positions, pre-norm blocks by the root mean
//! square, SwiGLU, a head of its own or a tied one. Forward only.
//!
//! Shapes: B sequences, T tokens, C = `n_embd`, V vocabulary.

use super::config::ModelConfig;
use super::head::Head;
use super::layers::{Declarations, Linear, Pass, RmsNorm};
use super::network::{Network, Structure};
use super::projections::Projections;
use crate::ops::{self, AttentionHeads, Compute, Rotation, Value};
use crate::params::ParamId;
use crate::spec::Target;
use candle_core::{Result, Tensor, bail};

/// A Llama of some size.
#[derive(Clone, Debug)]
pub struct Llama {
    structure: Structure,
    token_table: ParamId,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    head: Head,
}

#[derive(Clone, Debug)]
struct Block {
    norm_1: RmsNorm,
    qkv: Projections,
    output: Linear,
    norm_2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Llama {
    /// The structure for this configuration.
    pub fn new(config: ModelConfig) -> Self {
        let mut declarations = Declarations::default();
        let token_table =
            declarations.table("model.embed_tokens.weight", config.vocab_size, config.n_embd);
        let blocks = (0..config.n_layer)
            .map(|layer| Block::declare(&config, layer, &mut declarations))
            .collect();
        let final_norm = norm(&config, "model.norm", &mut declarations);
        let head = Head::declare(&mut declarations, &config, token_table);
        let Declarations { parameters: declared, sites } = declarations;
        let structure = Structure { config, compute: Compute::default(), declared, sites };
        Self { structure, token_table, blocks, final_norm, head }
    }
}

fn norm(config: &ModelConfig, name: &str, declarations: &mut Declarations) -> RmsNorm {
    RmsNorm::declare(declarations, name, config.n_embd, config.norm_epsilon())
}

impl Network for Llama {
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
        let (config, (_, count)) = (self.config(), tokens.dims2()?);
        let first = pass.first_position();
        if first + count > config.block_size {
            let length = first + count;
            bail!("a sequence of {length} tokens exceeds the block size of {}", config.block_size)
        }
        let table = pass.dense(self.token_table)?;
        let (dtype, device) = (table.tensor().dtype(), table.tensor().device());
        let rotation = Rotation::new(
            config.n_embd / config.n_head,
            config.rope_theta(),
            first,
            count,
            dtype,
            device,
        )?;
        let rotation = match pass.documents {
            None => rotation,
            Some(documents) => rotation.of_documents(documents)?,
        };
        let embedded = ops::token_embedding(pass.tape, tokens, &table)?;
        let mut x = pass.dropout(&embedded, "embedding", 0)?;
        observe("model.embed_tokens", x.tensor())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.attention(pass, layer, &x, config.heads(), &rotation)?;
            observe(&format!("model.layers.{layer}.self_attn"), x.tensor())?;
            x = block.mlp(pass, layer, &x)?;
            observe(&format!("model.layers.{layer}.mlp"), x.tensor())?;
        }
        let hidden = self.final_norm.forward(pass, &x)?;
        observe("model.norm", hidden.tensor())?;
        Ok(hidden)
    }
}

impl Block {
    fn declare(config: &ModelConfig, layer: usize, declarations: &mut Declarations) -> Self {
        let prefix = format!("model.layers.{layer}");
        let linear = |name: &str, kind, declarations: &mut Declarations| {
            Linear::of_block(declarations, config, format!("{prefix}.{name}"), layer, kind)
        };
        Self {
            norm_1: norm(config, &format!("{prefix}.input_layernorm"), declarations),
            qkv: Projections::of_block(declarations, config, &format!("{prefix}.self_attn"), layer),
            output: linear("self_attn.o", Target::O, declarations),
            norm_2: norm(config, &format!("{prefix}.post_attention_layernorm"), declarations),
            gate: linear("mlp.gate", Target::GATE, declarations),
            up: linear("mlp.up", Target::UP, declarations),
            down: linear("mlp.down", Target::DOWN, declarations),
        }
    }

    /// x + O(attention(R Q, R K, V)) of the normed x, with R the rotation by the position.
    fn attention(
        &self,
        pass: &Pass,
        layer: usize,
        x: &Value,
        heads: AttentionHeads,
        rotation: &Rotation,
    ) -> Result<Value> {
        let h = self.norm_1.forward(pass, x)?;
        let [q, k, v] = self.qkv.forward(pass, &h)?;
        drop(h);
        let turned = |x: Value| ops::rotary(pass.tape, &x, rotation);
        let (q, k) = (turned(q)?, turned(k)?);
        let mixed = pass.attention(layer, [&q, &k, &v], heads)?;
        drop((q, k, v));
        let out = self.output.forward(pass, &mixed)?;
        ops::add(pass.tape, x, &pass.dropout(&out, "attention output", layer)?)
    }

    /// x + Down(silu(Gate h) ∘ Up h) with h the normed x.
    fn mlp(&self, pass: &Pass, layer: usize, x: &Value) -> Result<Value> {
        let h = self.norm_2.forward(pass, x)?;
        let (gate, up) = (self.gate.forward(pass, &h)?, self.up.forward(pass, &h)?);
        drop(h);
        let gated = ops::swiglu(pass.tape, &gate, &up)?;
        drop((gate, up));
        let out = self.down.forward(pass, &gated)?;
        ops::add(pass.tape, x, &pass.dropout(&out, "mlp output", layer)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;
    use crate::ops::Gradients;
    use crate::params::ParamStore;
    use candle_core::{D, DType, Device};

    fn network(tied: bool, bias: bool) -> Box<dyn Network> {
        let config = serde_json::json!({
            "arch": "llama", "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16,
            "n_inner": 20, "block_size": 6, "vocab_size": 11, "dropout": 0.0, "bias": bias,
            "tie_word_embeddings": tied, "rope_theta": 500.0, "rms_norm_eps": 1e-3, "weights": {}
        });
        build(serde_json::from_value(config).expect("a configuration")).expect("a network")
    }

    /// Parameters with norms other than 1 and biases other than 0.
    fn parameters(model: &dyn Network) -> ParamStore {
        let mut params = model.initialize(3, DType::F64, &Device::Cpu).expect("parameters");
        for id in (0..params.len()).map(ParamId) {
            let old = params.dense(id).expect("dense").clone();
            let mut stream = crate::rng::stream(4, "llama test", &[id.0 as u64]);
            let noise = crate::rng::normals(&mut stream, old.elem_count());
            let noise = Tensor::from_vec(noise, old.shape(), &Device::Cpu).expect("noise");
            let new = (old * 5.0).and_then(|old| old + (noise * 0.2)?).expect("a sum");
            params.set(id, crate::params::Weight::Dense(new));
        }
        params
    }

    /// Logits of one sequence, written down as in the papers: every head and token by itself.
    fn textbook(params: &ParamStore, tokens: &[u32], tied: bool) -> Result<Vec<Vec<f64>>> {
        let find = |name: &str| {
            let found = params.iter().find(|(_, parameter)| parameter.name == name);
            found.and_then(|(id, _)| params.dense(id).ok()).cloned()
        };
        let get = |name: String| find(&name).unwrap_or_else(|| panic!("{name}"));
        let linear = |x: &Tensor, name: String| -> Result<Tensor> {
            let y = x.matmul(&get(format!("{name}.weight")).t()?)?;
            match find(&format!("{name}.bias")) {
                Some(bias) => y.broadcast_add(&bias),
                None => Ok(y),
            }
        };
        let norm = |x: &Tensor, name: String| -> Result<Tensor> {
            let size = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-3)?.sqrt()?;
            x.broadcast_div(&size)?.broadcast_mul(&get(format!("{name}.weight")))
        };
        // R(p) as a matrix: numbers i and i + 2 of four are a pair.
        let turned = |x: &Tensor, position: usize| -> Result<Tensor> {
            let mut r = vec![0.0; 16];
            for i in 0..2 {
                let angle = position as f64 / 500f64.powf(i as f64 / 2.0);
                (r[i * 4 + i], r[i * 4 + i + 2]) = (angle.cos(), -angle.sin());
                (r[(i + 2) * 4 + i], r[(i + 2) * 4 + i + 2]) = (angle.sin(), angle.cos());
            }
            Tensor::from_vec(r, (4, 4), &Device::Cpu)?.matmul(&x.reshape((4, 1))?)
        };
        let table = get("model.embed_tokens.weight".to_owned());
        let mut x = table.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for layer in 0..2 {
            let block = format!("model.layers.{layer}");
            let h = norm(&x, format!("{block}.input_layernorm"))?;
            let [q, k, v] =
                ["q", "k", "v"].map(|name| linear(&h, format!("{block}.self_attn.{name}")));
            let (q, k, v) = (q?, k?, v?);
            let mut rows = Vec::new();
            for i in 0..tokens.len() {
                for head in 0..4 {
                    let part = |x: &Tensor, token: usize, head: usize| {
                        x.narrow(0, token, 1)?.narrow(1, head * 4, 4)?.squeeze(0)
                    };
                    let query = turned(&part(&q, i, head)?, i)?;
                    let mut scores = Vec::new();
                    for j in 0..=i {
                        let key = turned(&part(&k, j, head / 2)?, j)?;
                        scores.push(((&query * key)?.sum_all()?.to_scalar::<f64>()? / 2.0).exp());
                    }
                    let sum: f64 = scores.iter().sum();
                    let mut mixed = part(&v, 0, head / 2)?.zeros_like()?;
                    for (j, score) in scores.iter().enumerate() {
                        mixed = (mixed + (part(&v, j, head / 2)? * (score / sum))?)?;
                    }
                    rows.push(mixed);
                }
            }
            let mixed = Tensor::cat(&rows, 0)?.reshape((tokens.len(), 16))?;
            x = (x + linear(&mixed, format!("{block}.self_attn.o"))?)?;
            let h = norm(&x, format!("{block}.post_attention_layernorm"))?;
            let gate = linear(&h, format!("{block}.mlp.gate"))?;
            let silu = (&gate / (gate.neg()?.exp()? + 1.0)?)?;
            let gated = (silu * linear(&h, format!("{block}.mlp.up"))?)?;
            x = (x + linear(&gated, format!("{block}.mlp.down"))?)?;
        }
        let h = norm(&x, "model.norm".to_owned())?;
        let head = if tied { table } else { get("lm_head.weight".to_owned()) };
        h.matmul(&head.t()?)?.to_vec2()
    }

    #[test]
    fn logits_are_those_of_the_textbook() -> Result<()> {
        let tokens = [1u32, 4, 9, 0, 3, 3];
        for (tied, bias) in [(true, false), (false, true)] {
            let model = network(tied, bias);
            let params = parameters(&*model);
            let expected = textbook(&params, &tokens, tied)?;
            for count in 1..=tokens.len() {
                let logits =
                    model.next_token_logits(&params, &tokens[..count])?.to_vec1::<f64>()?;
                for (a, b) in logits.iter().zip(&expected[count - 1]) {
                    assert!((a - b).abs() < 1e-10, "tied {tied}, token {count}: {a} {b}");
                }
            }
            let error = model.next_token_logits(&params, &[0; 7]).expect_err("too long");
            assert!(error.to_string().contains("7 tokens exceeds the block size of 6"), "{error}");
        }
        Ok(())
    }

    /// The gradient of the whole network, along one random direction in each parameter.
    #[test]
    fn every_parameter_s_gradient_is_the_central_difference() -> Result<()> {
        let tokens = Tensor::new(&[[1u32, 4, 9, 0, 3, 3], [10, 2, 2, 7, 5, 6]], &Device::Cpu)?;
        let targets = Tensor::new(&[[4u32, 9, 0, 3, 3, 8], [2, 2, 7, 5, 6, 1]], &Device::Cpu)?;
        let model = network(false, true);
        let mut params = parameters(&*model);
        let (tape, mut gradients) = (model.training_tape(), Gradients::new(params.slot_count()));
        let loss = model.loss(&params, &tape, &tokens, &targets, None)?;
        tape.backward(&loss, &mut gradients)?;
        for id in (0..params.len()).map(ParamId) {
            let name = params.get(id).name.clone();
            let old = params.dense(id)?.clone();
            let mut stream = crate::rng::stream(5, "direction", &[id.0 as u64]);
            let direction = crate::rng::normals(&mut stream, old.elem_count());
            let direction = Tensor::from_vec(direction, old.shape(), &Device::Cpu)?;
            let mut loss_at = |step: f64| -> Result<f64> {
                let moved = (&old + (&direction * step)?)?;
                params.set(id, crate::params::Weight::Dense(moved));
                Ok(model.loss_sum(&params, &tokens, &targets)? / 12.0)
            };
            let expected = (loss_at(1e-5)? - loss_at(-1e-5)?) / 2e-5;
            loss_at(0.0)?;
            let gradient = gradients.get(ParamStore::slot(id)).expect("a gradient");
            let found = (gradient * direction)?.sum_all()?.to_scalar::<f64>()?;
            let error = (found - expected).abs() / (expected.abs() + 1e-3);
            assert!(error < 1e-5, "{name}: {found} instead of {expected}");
        }
        Ok(())
    }
}
