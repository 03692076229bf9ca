//! Files of llama.cpp made for tests.

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use std::path::Path;

/// Writes a Llama of one block, 32 wide with 4 heads, that has these tensors; `more` settings come
/// after its own.
pub fn llama(path: &Path, more: &[(&str, gguf_file::Value)], tensors: &[(&str, Tensor)]) {
    use gguf_file::Value::{F32, String, U32};
    let mut settings = vec![
        ("general.architecture", String("llama".into())),
        ("llama.context_length", U32(16)),
        ("llama.embedding_length", U32(32)),
        ("llama.feed_forward_length", U32(64)),
        ("llama.block_count", U32(1)),
        ("llama.attention.head_count", U32(4)),
        ("llama.attention.layer_norm_rms_epsilon", F32(1e-5)),
    ];
    settings.extend(more.iter().cloned());
    let settings: Vec<(&str, &gguf_file::Value)> = settings.iter().map(|(k, v)| (*k, v)).collect();
    let of = |(name, tensor): &(&str, Tensor)| {
        (name.to_string(), QTensor::quantize(tensor, GgmlDType::F32).expect("numbers"))
    };
    let tensors: Vec<(std::string::String, QTensor)> = tensors.iter().map(of).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let mut file = std::fs::File::create(path).expect("a file");
    gguf_file::write(&mut file, &settings, &tensors).expect("written");
}
