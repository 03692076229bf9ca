//! Finding where a number stopped being finite.

use crate::model::{DropoutKey, Network, Sequences};
use crate::ops::scalar;
use crate::params::ParamStore;
use candle_core::{Result, Tensor};

/// The first parameter or layer output that is not finite when these sequences run through
/// the model; `None` if all are.
pub fn first_non_finite(
    model: &dyn Network,
    params: &ParamStore,
    sequences: Sequences,
    dropout: Option<DropoutKey>,
) -> Result<Option<String>> {
    for (_, parameter) in params.iter() {
        for (leaf, tensor) in parameter.weight.leaves() {
            if !is_finite(tensor)? {
                return Ok(Some(format!("the parameter `{}{leaf}`", parameter.name)));
            }
        }
    }
    let mut found = None;
    let mut observe = |name: &str, output: &Tensor| {
        if found.is_none() && !is_finite(output)? {
            found = Some(format!("the output of `{name}`"));
        }
        Ok(())
    };
    model.hidden_observed(params, &model.inference_tape(), sequences, dropout, &mut observe)?;
    Ok(found)
}

fn is_finite(tensor: &Tensor) -> Result<bool> {
    // max |x| would skip NaN; a sum of |x| · 0 is 0 exactly if every x is finite.
    Ok(scalar(&(tensor.abs()? * 0.0)?.sum_all()?)? == 0.0)
}
