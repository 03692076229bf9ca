//! A snapshot as one piece of bytes, for processes that do not read the checkpoint themselves.

use super::{Snapshot, tensors};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What stands before the tensors.
#[derive(Serialize, Deserialize)]
struct Head {
    step: u64,
    config: serde_json::Value,
    state: serde_json::Value,
    /// Bytes of the model's tensors, which come first; the optimizer's are the rest.
    model: usize,
}

impl Snapshot {
    /// All of it as bytes.
    ///
    /// # Errors
    /// As for writing a checkpoint: two tensors of one name, or a type that no file has.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let model = tensors::encode(&self.model)?;
        let optimizer = tensors::encode(&self.optimizer)?;
        let head = serde_json::to_vec(&Head {
            step: self.step,
            config: self.config.clone(),
            state: self.state.clone(),
            model: model.len(),
        })?;
        Ok([&(head.len() as u64).to_le_bytes(), head.as_slice(), &model, &optimizer].concat())
    }

    /// The snapshot of [`Snapshot::to_bytes`].
    ///
    /// # Errors
    /// If the bytes are no snapshot's.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let cut = "a snapshot's bytes are cut off";
        let (length, rest) = bytes.split_first_chunk::<8>().context(cut)?;
        let length = u64::from_le_bytes(*length) as usize;
        ensure!(length <= rest.len(), cut);
        let (head, rest) = rest.split_at(length);
        let Head { step, config, state, model } = serde_json::from_slice(head)?;
        ensure!(model <= rest.len(), cut);
        let (model, optimizer) = rest.split_at(model);
        let (model, optimizer) = (tensors::decode(model)?, tensors::decode(optimizer)?);
        Ok(Self { step, config, model, optimizer, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn a_snapshot_comes_back() {
        let tensor = |x: f32| Tensor::new(&[[x, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let snapshot = Snapshot {
            step: 7,
            config: serde_json::json!({"width": 2}),
            model: vec![("w".into(), tensor(1.0)), ("v".into(), tensor(-1.0))],
            optimizer: vec![("w/m".into(), tensor(0.5))],
            state: serde_json::json!({"best": null}),
        };
        let bytes = snapshot.to_bytes().unwrap();
        let back = Snapshot::from_bytes(&bytes).unwrap();
        assert_eq!((back.step, &back.config, &back.state), (7, &snapshot.config, &snapshot.state));
        let names: Vec<&str> = back.model.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["v", "w"], "in the order of names");
        assert_eq!(back.model[1].1.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(back.optimizer[0].1.to_vec2::<f32>().unwrap(), [[0.5, 2.0], [3.0, 4.0]]);
        for length in [0, 7, 20] {
            Snapshot::from_bytes(&bytes[..length]).unwrap_err();
        }
    }
}
