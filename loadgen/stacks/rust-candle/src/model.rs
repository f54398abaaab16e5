//! The card model in candle: normalise, clip, 40→256→128→1, sigmoid.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear, ops::sigmoid};

pub const N_FEATURES: usize = 40;
const WIDTHS: [usize; 4] = [N_FEATURES, 256, 128, 1];

pub struct CardModel {
    mean: Tensor,
    inverse_std: Tensor,
    clip: f32,
    layers: Vec<Linear>,
}

impl CardModel {
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let weights = VarBuilder::from_buffered_safetensors(std::fs::read(path)?, DType::F32, &Device::Cpu)?;
        let layers = weights.pp("layers");
        Ok(Self {
            mean: weights.get(N_FEATURES, "mean")?,
            inverse_std: weights.get(N_FEATURES, "inverse_std")?,
            clip: weights.get(1, "clip")?.to_vec1()?[0],
            layers: WIDTHS
                .windows(2)
                .enumerate()
                .map(|(number, width)| linear(width[0], width[1], layers.pp(number)))
                .collect::<Result<_>>()?,
        })
    }

    /// The risk scores of `rows` feature vectors, one after the other.
    pub fn infer(&self, vectors: Vec<f32>, rows: usize) -> Result<Vec<f32>> {
        let features = Tensor::from_vec(vectors, (rows, N_FEATURES), &Device::Cpu)?;
        let scaled = features.broadcast_sub(&self.mean)?.broadcast_mul(&self.inverse_std)?;
        let mut x = scaled.clamp(-self.clip, self.clip)?;
        let (last, hidden) = self.layers.split_last().expect("three layers");
        for layer in hidden {
            x = layer.forward(&x)?.relu()?;
        }
        sigmoid(&last.forward(&x)?)?.squeeze(1)?.to_vec1()
    }
}
