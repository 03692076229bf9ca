//! A weight matrix as one dense tensor, whatever its form here.

use crate::lowrank::LowRank;
use crate::model::ModelConfig;
use crate::params::{ParamStore, Parameter, Weight};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// The head of every architecture, here and there, where it is not the table of tokens.
pub(super) const HEAD_WEIGHT: &str = "lm_head.weight";

/// The head of an imported model by its name here; none where it is the table of tokens, which
/// some write twice.
///
/// # Errors
/// If what is there is not what `config.json` says.
pub(super) fn imported_head(
    model: &ModelConfig,
    table: &Tensor,
    head: Option<Tensor>,
) -> Result<Option<(String, Tensor)>> {
    let differs = |head: &Tensor| -> Result<bool> {
        let difference = (head - table)?.abs()?.flatten_all()?.max(0)?;
        Ok(difference.to_dtype(DType::F64)?.to_scalar::<f64>()? != 0.0)
    };
    let Some(head) = head else {
        ensure!(
            model.ties_embeddings(),
            "the imported model: there is no `{HEAD_WEIGHT}`, and config.json says that it is not the \
             token table (tie_word_embeddings)"
        );
        return Ok(None);
    };
    ensure!(
        head.dims() == table.dims(),
        "the imported model: `{HEAD_WEIGHT}` has shape {:?}, the token table {:?}",
        head.dims(),
        table.dims()
    );
    if !model.ties_embeddings() {
        return Ok(Some((HEAD_WEIGHT.to_owned(), head)));
    }
    ensure!(
        !differs(&head)?,
        "the imported model: `{HEAD_WEIGHT}` is not the token table, but config.json says that it is \
         (tie_word_embeddings)"
    );
    Ok(None)
}

/// A layer of `transformers` with a matrix, `transformer.h.0.attn.c_attn`, and the sites here that
/// make it up: more than one where it is fused, one below the other.
pub(super) struct Module {
    pub name: String,
    pub sites: Vec<String>,
}

/// Parameters by name, on the host.
pub struct Named<'a> {
    parameters: BTreeMap<&'a str, &'a Parameter>,
}

impl<'a> Named<'a> {
    /// The parameters of a store.
    pub fn new(params: &'a ParamStore) -> Self {
        let parameters = params.iter().map(|(_, parameter)| (parameter.name.as_str(), parameter));
        Self { parameters: parameters.collect() }
    }

    /// A dense parameter.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn dense(&self, name: &str) -> Result<Tensor> {
        self.find(name)?.with_context(|| format!("the model has no parameter `{name}`"))
    }

    /// A vector, or zeros where the model has none of this name (a bias, in a model without).
    ///
    /// # Errors
    /// If the parameter is no dense one.
    pub fn vector_or_zeros(&self, name: &str, like: &Tensor, size: usize) -> Result<Tensor> {
        match self.find(name)? {
            Some(vector) => Ok(vector),
            None => Ok(Tensor::zeros(size, like.dtype(), &Device::Cpu)?),
        }
    }

    /// W: m × n of a site: dense as it is, or the product of its factors.
    ///
    /// # Errors
    /// If the site has no weight in any form, or one with an adapter, which must be merged first
    /// ([`crate::model::merged`]).
    pub fn matrix(&self, site: &str) -> Result<Tensor> {
        let has_adapter = [".adapter", ".adapter.b"]
            .into_iter()
            .any(|leaf| self.parameters.contains_key(format!("{site}{leaf}").as_str()));
        ensure!(!has_adapter, "`{site}` has an adapter that was not merged into it");
        let factor = |leaf: &str| self.find(&format!("{site}.{leaf}"));
        if let Some(point) = self.point(site) {
            return Ok(point.to_device(&Device::Cpu)?.to_dense()?);
        }
        if let Some(uncut) = self.uncut(site) {
            return Ok(uncut.to_device(&Device::Cpu)?);
        }
        if let Some(dense) = factor("weight")? {
            return Ok(dense);
        }
        if let (Some(b), Some(a)) = (factor("b")?, factor("a")?) {
            return Ok(b.matmul(&a)?);
        }
        match (factor("u")?, factor("s")?, factor("vt")?) {
            (Some(u), Some(s), Some(vt)) => Ok(u.matmul(&s)?.matmul(&vt)?),
            _ => anyhow::bail!("the model has no weight `{site}`"),
        }
    }

    /// The point of a low-rank weight; none where the site has another form.
    pub fn point(&self, site: &str) -> Option<&'a LowRank> {
        match self.parameters.get(site).map(|parameter| &parameter.weight) {
            Some(Weight::LowRank(point)) => Some(point),
            _ => None,
        }
    }

    /// The matrix of a low-rank weight that is dense until it is cut; none where the site has another
    /// form.
    fn uncut(&self, site: &str) -> Option<&'a Tensor> {
        match self.parameters.get(site).map(|parameter| &parameter.weight) {
            Some(Weight::Uncut(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// Whether a site has a weight matrix, in any form.
    pub fn has_matrix(&self, site: &str) -> bool {
        let is_there = |leaf: &str| self.parameters.contains_key(format!("{site}{leaf}").as_str());
        self.point(site).is_some()
            || self.uncut(site).is_some()
            || [".weight", ".b", ".u"].into_iter().any(is_there)
    }

    fn find(&self, name: &str) -> Result<Option<Tensor>> {
        match self.parameters.get(name).map(|parameter| &parameter.weight) {
            None => Ok(None),
            Some(Weight::Dense(tensor) | Weight::Uncut(tensor)) => {
                Ok(Some(tensor.to_device(&Device::Cpu)?))
            }
            Some(Weight::LowRank(_)) => {
                anyhow::bail!("`{name}` is low-rank where a dense parameter is due")
            }
        }
    }
}
